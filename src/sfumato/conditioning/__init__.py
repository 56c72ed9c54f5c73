"""Conditions: what the user says, as vectors, tokens and maps that a backbone can read."""
