"""Which way through a network: the fastest for this device, type and shape, or the plain one.

Fast paths change rounding, never arithmetic: attention as two products, weight gradients by parts of the batch, group norms
in the layout that their kernel likes (`nn/choose.py` says when), the batch's rows side by side on the cores. Within `plain()` none is taken and the networks are
only torch's own operations, one for each line of their definition: for export, and to tell which path is to blame.
"""

from collections.abc import Iterator
from contextlib import contextmanager

_plain = 0  # a number and no context variable: tracers read it as a constant


def fast() -> bool:
    """Whether fast paths may be taken."""
    return _plain == 0


@contextmanager
def plain() -> Iterator[None]:
    """Within this context no fast path is taken, in all threads."""
    global _plain
    _plain += 1
    try:
        yield
    finally:
        _plain -= 1
