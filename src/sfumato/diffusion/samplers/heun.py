"""Heun's method (Karras et al., 2022, algorithm 1) for any alpha: the noise estimate is averaged over a step's ends."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers.base import Denoise, Step


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, grid: Grid) -> Iterator[Step]:
    """Order 2, two evaluations a step, one in the last step and in a first step from pure noise.

    With y = x / alpha and r = sigma / alpha the flow is dy/dr = eps, so the trapezoid rule in r is what is taken.
    """
    for (t, a, o), (s, a_next, o_next) in grid.pairs():
        x_0 = denoise(x, t.to(x).expand(len(x)))
        eps = (x - a * x_0) / o
        y = a_next * x_0 + o_next * eps
        if a > 0 and o_next > 0:
            eps_next = (y - a_next * denoise(y, s.to(x).expand(len(x)))) / o_next
            y = a_next / a * x + (o_next - a_next / a * o) * (eps + eps_next) / 2
        x = y
        yield Step(s, x, x_0)
