"""Families: the models that the paper compares latent diffusion with, behind the same data, loop, folders and measures."""
