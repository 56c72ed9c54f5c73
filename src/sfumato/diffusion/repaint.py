"""Resampling: steps taken again, so that what is filled in agrees with what is kept (Lugmayr et al., 2022, «RePaint»)."""

import math
from collections.abc import Iterator

from torch import Tensor

from sfumato.diffusion.grid import Grid, Row
from sfumato.diffusion.samplers.base import Denoise, Step, ask, checked, done, move, sampling
from sfumato.streams import Stream


@sampling
def repaint(denoise: Denoise, x: Tensor, grid: Grid, *, repeats: int, noise: Stream) -> Iterator[Step]:
    """`ddim`, each step taken `repeats` times: down, back up with fresh noise, and down again (algorithm 1, jumps of one).

    For a denoiser inside `keeping`: the estimate of the hole sees the kept part in every repetition, as deep in noise
    as itself. x (B, C, h, w) starts at the grid's first row; `repeats` evaluations a step but the last, which has one.
    Raises `ValueError` where `repeats` is not in 1..1000.
    """
    checked("repeats", repeats, 1, 1000)
    for k, (here, there) in enumerate(grid.pairs()):
        count = repeats if there.sigma else 1
        for again in range(count):
            x_0 = ask(denoise, x, here)
            x = move(x, x_0, here, there)
            if again < count - 1:
                x = noised(x, there, here, noise.normal(x.shape[1:], k * repeats + again + 1, x))
        yield done(there, x, x_0)


def noised(x: Tensor, here: Row, there: Row, eps: Tensor) -> Tensor:
    """x at a row -> x at a noisier one: the forward process between them, Ho et al. (2020), eq. 2."""
    kept = there.alpha / here.alpha
    spread = math.sqrt(max(there.sigma**2 - (kept * here.sigma) ** 2, 0.0))
    return kept * x + spread * eps
