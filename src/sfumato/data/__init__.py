"""Data sets: indexable examples, so that the order of training is a pure function of the seed."""
