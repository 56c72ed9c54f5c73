"""Warnings that are said once, though the parts of a data set are opened one after the other."""

import logging
from functools import lru_cache


@lru_cache(maxsize=64)
def warn(name: str, text: str) -> None:
    """Log the text under this logger's name, once in a process."""
    logging.getLogger(name).warning(text)
