"""Diffusion as pure mathematics on tensors, in (alpha, sigma) coordinates: x_t = alpha x_0 + sigma eps."""
