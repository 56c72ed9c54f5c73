"""DDIM (Song et al., 2021): keep the estimated noise, or replace part of it by fresh noise."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers.base import Denoise, Step
from sfumato.streams import Stream


@torch.no_grad()
def ddim(denoise: Denoise, x: Tensor, grid: Grid, *, eta: float = 0.0, noise: Stream | None = None) -> Iterator[Step]:
    """Eq. 12; order 1, one evaluation a step. x (B, C, h, w) starts at the grid's first row.

    `eta` 0 follows the probability flow, 1 is the ancestral sampler of DDPM; above 0 it draws from `noise`, whose step
    n + 1 belongs to the grid's step n. Raises `ValueError` where `eta` is not in [0, 1] or there is nothing to draw from.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta lies between 0 and 1; got {eta}")
    if eta and noise is None:
        raise ValueError("ddim with eta above 0 draws noise: give the images' `noise` stream")
    for k, ((t, a, o), (s, a_next, o_next)) in enumerate(grid.pairs()):
        x_0 = denoise(x, t.to(x).expand(len(x)))
        eps = (x - a * x_0) / o
        kept = o_next
        if eta and noise is not None:
            share = (eta**2 * (1 - (a / a_next * o_next / o) ** 2)).clamp(0, 1)
            kept = o_next * (1 - share).sqrt()
            x = a_next * x_0 + kept * eps + o_next * share.sqrt() * noise.normal(x.shape[1:], k + 1, x)
        else:
            x = a_next * x_0 + kept * eps
        yield Step(s, x, x_0)
