"""The paper's comparisons, in small: each study trains what it needs, measures it, and says whether a claim holds here."""
