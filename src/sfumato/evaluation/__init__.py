"""How good a model is: numbers with their protocol, ceilings and baselines beside them."""
