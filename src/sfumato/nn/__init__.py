"""Building blocks of every network here: convolutions, attention, embeddings, normalisation."""
