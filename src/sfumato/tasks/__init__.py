"""Tasks: what one asks of a model. A request type, a function, and three doors made from them."""
