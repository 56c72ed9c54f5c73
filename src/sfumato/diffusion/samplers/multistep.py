"""Adams-Bashforth methods: the noise estimates of past steps are continued by a polynomial.

`plms` (Liu et al., 2022) continues them in r = sigma / alpha, `deis` (Zhang & Chen, 2023) in log r. Weights come from
the rows as they lie, so uneven grids keep their order; PLMS's published constants hold for even ones only.
"""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from sfumato.diffusion.grid import FAR, Grid
from sfumato.diffusion.samplers.base import Denoise, Step, ask, checked, done, move, noise_of, sampling
from sfumato.diffusion.samplers.heun import trapezoid

PUBLISHED = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

Past = list[tuple[Tensor, float]]  # estimates of eps and where they were taken, the newest first


def _adams(places: list[float], to: float) -> list[float]:
    """Weights w with sum w_j f(places_j) the mean over [places_0, to] of the polynomial through f."""
    nodes = (np.array(places) - places[0]) / (to - places[0])
    powers = np.arange(len(nodes))
    found: list[float] = np.linalg.solve(nodes[None, :] ** powers[:, None], 1 / (powers + 1)).tolist()
    return found


def _exponential(places: list[float], to: float) -> list[float]:
    """Weights w with sum w_j f(places_j) the integral over [places_0, to] of exp(l) times the polynomial through f."""
    nodes, width = np.array(places) - places[0], to - places[0]
    moments = [np.expm1(width)]
    for k in range(1, len(nodes)):
        moments.append(np.exp(width) * width**k - k * moments[-1])
    powers = np.arange(len(nodes))
    weights = np.linalg.solve(nodes[None, :] ** powers[:, None], np.array(moments)) * np.exp(places[0])
    return weights.tolist()  # type: ignore[no-any-return]


def _sum(past: Past, weights: tuple[float, ...] | list[float]) -> Tensor:
    total = weights[0] * past[0][0]
    for weight, (eps, _) in zip(weights[1:], past[1:], strict=False):
        total = total + weight * eps
    return total


@sampling
def plms(denoise: Denoise, x: Tensor, grid: Grid, *, order: int = 4, published: bool = False) -> Iterator[Step]:
    """Adams-Bashforth up to `order` 4 in (y, r), a Heun step first; order 3 with its start-up, N + 1 evaluations.

    Liu et al. (2022), eq. 12 and algorithm 2, with weights for the grid at hand, or with the constants for an even one
    where `published`. The step to the clean end, where there is one, gives the estimate of x_0.
    """
    checked("order", order, 1, 4)
    past: Past = []
    for k, (here, there) in enumerate(grid.pairs()):
        x_0 = ask(denoise, x, here)
        eps = noise_of(x, x_0, here)
        if here.ratio <= FAR:  # further off a polynomial in r has nothing to hold on to
            past = [(eps, here.ratio), *past][:order]
        if not there.sigma:
            x = x_0
        elif k == 0 and order > 1:
            y = move(x, x_0, here, there)
            ahead = ask(denoise, y, there)
            x = trapezoid(x, (x_0 + ahead) / 2, (eps + noise_of(y, ahead, there)) / 2, here, there)
        elif not past:
            x = move(x, x_0, here, there)
        else:
            weights = PUBLISHED[len(past) - 1] if published else _adams([r for _, r in past], there.ratio)
            x = trapezoid(x, x_0, _sum(past, weights), here, there)
        yield done(there, x, x_0)


@sampling
def deis(denoise: Denoise, x: Tensor, grid: Grid, *, order: int = 3) -> Iterator[Step]:
    """tAB-DEIS in log r, up to `order` 3: Zhang & Chen (2023), eq. 14 and appendix B; one evaluation a step.

    Order 2 with its start-up, which is one Euler step. The step to the clean end gives the estimate of x_0.
    """
    checked("order", order, 1, 3)
    past: Past = []
    for here, there in grid.pairs():
        x_0 = ask(denoise, x, here)
        if here.alpha:
            past = [(noise_of(x, x_0, here), -here.log_snr), *past][:order]
        if not there.sigma:
            x = x_0
        elif not here.alpha:
            x = move(x, x_0, here, there)
        else:
            change = _sum(past, _exponential([place for _, place in past], -there.log_snr))
            x = there.alpha * (x / here.alpha + change)
        yield done(there, x, x_0)
