"""Heun's method (Karras et al., 2022, algorithms 1 and 2) for any alpha: the noise estimate is averaged over a step."""

import math
from collections.abc import Iterator

from torch import Tensor

from sfumato.diffusion.grid import FAR, Grid, Row
from sfumato.diffusion.samplers.base import Denoise, Step, ask, checked, done, move, noise_of, sampling
from sfumato.diffusion.samplers.euler import churned
from sfumato.streams import Stream


def trapezoid(x: Tensor, x_0: Tensor, eps: Tensor, here: Row, there: Row) -> Tensor:
    """x at `there` from the noise estimates at both ends; from nearly pure noise, where r is huge, from those of x_0.

    dy = eps dr, y = x / alpha, and dz = x_0 d(1 / r), z = x / sigma, are the same flow. Where r falls from thousands to
    tens, its fall times what is wrong in eps is far more than a picture; 1 / r hardly moves. `x_0` and `eps` are the means
    over the step.
    """
    if here.ratio <= FAR:
        return there.alpha * (x / here.alpha + (there.ratio - here.ratio) * eps)
    nearer = there.alpha / there.sigma - here.alpha / here.sigma
    return there.sigma * (x / here.sigma + nearer * x_0)


@sampling
def heun(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    *,
    churn: float = 0.0,
    limits: tuple[float, float] = (0.0, math.inf),
    noise: Stream | None = None,
) -> Iterator[Step]:
    """y' = y + (r' - r) (eps + eps') / 2, y = x / alpha, eps' the noise estimate after Euler's step: Karras et al. (2022),
    algorithms 1 and 2.

    Order 2, two evaluations a step and one in the last: 2 N - 1. x (B, C, h, w) starts at the grid's first row. With
    `churn` above 0 it draws from `noise`; see `churned`.
    """
    checked("churn", churn, 0.0, math.inf)
    for k, (row, there) in enumerate(grid.pairs()):
        x, here = churned(x, row, grid, churn, noise, k, limits)
        x_0 = ask(denoise, x, here)
        y = move(x, x_0, here, there)
        if there.sigma:
            eps, ahead = noise_of(x, x_0, here), ask(denoise, y, there)
            y = trapezoid(x, (x_0 + ahead) / 2, (eps + noise_of(y, ahead, there)) / 2, here, there)
        x = y
        yield done(there, x, x_0)
