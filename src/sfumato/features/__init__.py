"""Frozen networks that look at images, for losses and metrics: files that the user has, checked by their SHA-256."""
