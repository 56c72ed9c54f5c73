"""Euler's method with churn, and the ancestral one (Karras et al., 2022; k-diffusion's names).

In (y, r) Euler's method is DDIM, for every schedule: `euler` differs in that it may first add noise and then take a
longer step, `euler_ancestral` with eta is `ddim` with eta, by another road. Both are kept for their names.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from sfumato.diffusion.grid import Grid, Row
from sfumato.diffusion.samplers.base import Denoise, Step, ask, checked, done, move, needed, sampling
from sfumato.diffusion.samplers.ddim import ddim
from sfumato.streams import Stream


def churned(
    x: Tensor, here: Row, grid: Grid, churn: float, noise: Stream | None, step: int, limits: tuple[float, float]
) -> tuple[Tensor, Row]:
    """x with noise added up to the ratio r (1 + churn / N), at most sqrt(2) r: Karras et al. (2022), algorithm 2, 4-6.

    Nothing is added outside of `limits` (ratios), nor above the schedule's own noisy end.
    """
    if not churn or not here.alpha or not limits[0] <= here.ratio <= limits[1]:
        return x, here
    up = grid.at(here.ratio * (1 + min(churn / grid.steps, math.sqrt(2) - 1)))
    if up.ratio <= here.ratio:
        return x, here
    spread = up.alpha * math.sqrt(up.ratio**2 - here.ratio**2)
    return up.alpha / here.alpha * x + spread * needed(noise, "churn").normal(x.shape[1:], step + 1, x), up


@sampling
def euler(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    *,
    churn: float = 0.0,
    limits: tuple[float, float] = (0.0, math.inf),
    noise: Stream | None = None,
) -> Iterator[Step]:
    """y' = y + (r' - r) eps, y = x / alpha: Karras et al. (2022), algorithm 2 without its correction; order 1.

    One evaluation a step. x (B, C, h, w) starts at the grid's first row. With `churn` in [0, infinity) above 0 it draws
    from `noise`; see `churned`.
    """
    checked("churn", churn, 0.0, math.inf)
    for k, (row, there) in enumerate(grid.pairs()):
        x, here = churned(x, row, grid, churn, noise, k, limits)
        x_0 = ask(denoise, x, here)
        x = move(x, x_0, here, there)
        yield done(there, x, x_0)


def euler_ancestral(
    denoise: Denoise, x: Tensor, grid: Grid, *, eta: float = 1.0, noise: Stream | None = None
) -> Iterator[Step]:
    """A step down to less noise than asked, and fresh noise up to it (k-diffusion); stochastic, one evaluation a step."""
    checked("eta", eta, 0.0, 1.0)
    return ddim(denoise, x, grid, eta=eta, noise=needed(noise, "euler_ancestral"))
