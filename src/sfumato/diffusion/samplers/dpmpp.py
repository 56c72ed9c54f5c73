"""DPM-Solver++ (Lu et al., 2022): exact in the linear part, extrapolating the clean estimate in log(alpha / sigma).

The stochastic ones solve the reverse-time equation. Their fresh noise is the increment of one Brownian path an image,
W((alpha / sigma)²), which is exactly the noise that its linear part integrates: twice the steps see the same path.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from sfumato.diffusion.grid import Grid, Row
from sfumato.diffusion.samplers.base import (
    Denoise,
    Step,
    ancestral,
    ask,
    checked,
    done,
    move,
    needed,
    sampling,
    snr,
)
from sfumato.streams import Stream


@sampling
def dpmpp_2m(denoise: Denoise, x: Tensor, grid: Grid, *, lower_last: bool = False) -> Iterator[Step]:
    """Lu et al. (2022), algorithm 2 (2M); order 2, one evaluation a step. x (B, C, h, w) starts at the grid's first row.

    With lambda = log(alpha / sigma), h and h_before the last two differences of it, and x_0 and x_0_before the estimates:
    x' = sigma' / sigma x - alpha' (exp(-h) - 1) (x_0 + h / (2 h_before) (x_0 - x_0_before)).

    The first step, the step to the clean end and those whose log(alpha / sigma) begins or began at pure noise, where it
    is infinite, are of first order; there are at most three of them. `lower_last` makes the last step one of first order
    on grids that do not end clean too, as published code does below 15 steps.
    """
    past: tuple[Tensor, float] | None = None
    for k, (here, there) in enumerate(grid.pairs()):
        x_0 = ask(denoise, x, here)
        h = there.log_snr - here.log_snr
        guess = x_0
        if past is not None and math.isfinite(h) and not (lower_last and k + 1 == grid.steps):
            guess = x_0 + (x_0 - past[0]) * (h / past[1] / 2)
        x = (there.sigma / here.sigma) * x - there.alpha * math.expm1(-h) * guess
        past = (x_0, h)
        yield done(there, x, x_0)


@sampling
def dpmpp_sde(
    denoise: Denoise, x: Tensor, grid: Grid, *, eta: float = 1.0, noise: Stream | None = None
) -> Iterator[Step]:
    """DPM-Solver++ (2S) of the reverse-time equation, half-way evaluations in log(sigma / alpha) (k-diffusion).

    Stochastic, two evaluations a step and one in the last: 2 N - 1. `eta` in [0, 1] scales the fresh noise, 1 is the
    equation's. x (B, C, h, w); both moves of a step start at its beginning, the second with the estimate half-way (from
    pure noise it starts half-way).
    """
    stream = needed(noise, "dpmpp_sde")
    checked("eta", eta, 0.0, 1.0)
    for here, there in grid.pairs():
        x_0 = ask(denoise, x, here)
        if not there.sigma:
            x = x_0
        else:
            middle = grid.at(math.sqrt(here.ratio * there.ratio) if here.alpha else 2 * there.ratio)
            between = _jump(x, x_0, here, middle, eta, stream)
            x_0 = ask(denoise, between, middle)
            begun = (x, here) if here.alpha else (between, middle)
            x = _jump(begun[0], x_0, begun[1], there, eta, stream)
        yield done(there, x, x_0)


def _jump(x: Tensor, x_0: Tensor, here: Row, there: Row, eta: float, stream: Stream) -> Tensor:
    down, up = ancestral(here, there, eta)
    x = move(x, x_0, here, there, down)
    return x + (there.alpha * up) * stream.between(x.shape[1:], snr(here), snr(there), x) if up else x


@sampling
def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, grid: Grid, *, eta: float = 1.0, noise: Stream | None = None
) -> Iterator[Step]:
    """SDE-DPM-Solver++ (2M), midpoint: Lu et al. (2022), eq. 18 and appendix D; stochastic, one evaluation a step.

    x (B, C, h, w). `eta` in [0, 1] scales the fresh noise: 1 is the reverse-time equation, 0 gives `dpmpp_2m`.
    """
    stream = needed(noise, "dpmpp_2m_sde")
    checked("eta", eta, 0.0, 1.0)
    past: tuple[Tensor, float] | None = None
    for here, there in grid.pairs():
        x_0 = ask(denoise, x, here)
        h = there.log_snr - here.log_snr
        fresh = eta * h if eta else 0.0
        guess = x_0
        if past is not None and math.isfinite(h):
            guess = x_0 + (x_0 - past[0]) * (h / past[1] / 2)
        x = (there.sigma / here.sigma * math.exp(-fresh)) * x - there.alpha * math.expm1(-h - fresh) * guess
        if there.sigma and eta:
            spread = there.sigma * math.sqrt(-math.expm1(-2 * fresh))
            x = x + spread * stream.between(x.shape[1:], snr(here), snr(there), x)
        past = (x_0, h)
        yield done(there, x, x_0)
