"""Samplers: generators from noise to data. `denoise(x_t, t) -> x_0` has condition and guidance bound."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.streams import Stream

Denoise = Callable[[Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """One step's end."""

    time: Tensor
    x: Tensor
    x_0: Tensor


def last(steps: Iterator[Step]) -> Tensor:
    """Run to the end and give x."""
    x = None
    for step in steps:
        x = step.x
    assert x is not None
    return x


@torch.no_grad()
def ddim(
    denoise: Denoise, x: Tensor, grid: Grid, *, eta: float = 0.0, noise: Stream | None = None
) -> Iterator[Step]:
    """Song et al. (2021), eq. 12."""
    for k, ((t, a, o), (s, a_next, o_next)) in enumerate(grid.pairs()):
        a, o, a_next, o_next = (float(v) for v in (a, o, a_next, o_next))
        x_0 = denoise(x, t.to(x).expand(len(x)))
        eps = (x - a * x_0) / o
        x = a_next * x_0 + o_next * eps
        yield Step(s, x, x_0)
