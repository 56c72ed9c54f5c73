"""Where a sampler steps: N + 1 times with their scales, the last of them clean (alpha 1, sigma 0)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.diffusion.schedule import Schedule

Row = tuple[Tensor, Tensor, Tensor]


class Grid(NamedTuple):
    """Rows of falling noise."""

    t: Tensor  # (N + 1,)
    alpha: Tensor  # (N + 1,)
    sigma: Tensor  # (N + 1,)

    def pairs(self) -> Iterator[tuple[Row, Row]]:
        """Neighbouring rows, N of them."""
        rows = list(zip(self.t, self.alpha, self.sigma, strict=True))
        return zip(rows[:-1], rows[1:], strict=True)


def even(schedule: Schedule, steps: int, start: float = 1.0) -> Grid:
    """`steps` equal steps of time. `start` below 1 begins part of the way down: image-to-image.

    Raises `ValueError` where `steps` is not in 1..1000 or `start` not in (0, 1].
    """
    if not 1 <= steps <= 1000:
        raise ValueError(f"steps lie between 1 and 1000; got {steps}")
    if not 0.0 < start <= 1.0:
        raise ValueError(f"the start lies above 0 and at most at 1; got {start}")
    t = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
    alpha, sigma = (s.clone() for s in schedule(t))
    alpha[-1], sigma[-1] = 1, 0
    return Grid(t, alpha, sigma)
