"""DPM-Solver++ (Lu et al., 2022): exact in the linear part, extrapolating the clean estimate in log(alpha / sigma)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers.base import Denoise, Step


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, x: Tensor, grid: Grid) -> Iterator[Step]:
    """Algorithm 2 (2M); order 2, one evaluation a step.

    The first step, the step to the clean end and one from pure noise, where log(alpha / sigma) is infinite, are of
    first order.
    """
    past: tuple[Tensor, Tensor] | None = None
    for (t, a, o), (s, a_next, o_next) in grid.pairs():
        x_0 = denoise(x, t.to(x).expand(len(x)))
        h = (a_next / o_next).log() - (a / o).log()
        guess = x_0
        if past is not None and past[1].isfinite() and h.isfinite():
            guess = x_0 + (x_0 - past[0]) * (h / past[1] / 2)
        x = (o_next / o) * x - a_next * torch.expm1(-h) * guess
        past = (x_0, h)
        yield Step(s, x, x_0)
