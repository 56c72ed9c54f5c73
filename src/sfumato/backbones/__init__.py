"""Networks that predict: (x_t, clock, conditions) -> a tensor of x_t's shape."""
