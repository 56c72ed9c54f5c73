"""What all samplers share: `denoise(x_t, t) -> x_0` with condition and guidance bound, and a step's outcome."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """The end of one step: its time, x there, and the last estimate of x_0. The last step's x is clean."""

    time: Tensor
    x: Tensor
    x_0: Tensor


def last(steps: Iterator[Step]) -> Tensor:
    """Run a sampler to its end and give x."""
    x: Tensor | None = None
    for step in steps:
        x = step.x
    assert x is not None, "a grid has at least one step"
    return x
