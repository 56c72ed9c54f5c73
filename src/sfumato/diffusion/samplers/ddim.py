"""DDPM (Ho et al., 2020) and DDIM (Song et al., 2021): keep the estimated noise, or replace part of it by fresh noise."""

from collections.abc import Iterator

from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers.base import Denoise, Step, ancestral, ask, checked, done, move, needed, sampling, snr
from sfumato.streams import Stream


@sampling
def ddim(denoise: Denoise, x: Tensor, grid: Grid, *, eta: float = 0.0, noise: Stream | None = None) -> Iterator[Step]:
    """Song et al. (2021), eq. 12; order 1, one evaluation a step. x (B, C, h, w) starts at the grid's first row.

    `eta` 0 follows the probability flow, 1 is the ancestral sampler of DDPM; above 0 it draws from `noise`, whose step
    n + 1 belongs to the grid's step n. Raises `ValueError` where `eta` is not in [0, 1] or there is nothing to draw from.
    """
    checked("eta", eta, 0.0, 1.0)
    stream = needed(noise, "ddim with eta above 0") if eta else None
    for k, (here, there) in enumerate(grid.pairs()):
        x_0 = ask(denoise, x, here)
        down, up = ancestral(here, there, eta)
        x = move(x, x_0, here, there, down)
        if stream is not None and up:
            x = x + (there.alpha * up) * stream.normal(x.shape[1:], k + 1, x)
        yield done(there, x, x_0)


@sampling
def ddpm(denoise: Denoise, x: Tensor, grid: Grid, *, noise: Stream | None = None) -> Iterator[Step]:
    """Ancestral sampling: the mean and the variance (beta-tilde) of q(x_s | x_t, x_0), Ho et al. (2020), eq. 6 and 7.

    Stochastic, one evaluation a step, for any two rows and not only neighbours of a table. The last step adds no noise.
    Raises `ValueError` where there is no `noise` to draw from.
    """
    stream = needed(noise, "ddpm")
    for k, (here, there) in enumerate(grid.pairs()):
        x_0 = ask(denoise, x, here)
        kept = 0.0 if not there.sigma else snr(here) / snr(there)
        x = (here.alpha / here.sigma**2 * there.sigma**2 / there.alpha) * x + (there.alpha * (1 - kept)) * x_0
        if there.sigma:
            spread = there.sigma * max(1 - kept, 0.0) ** 0.5
            x = x + spread * stream.normal(x.shape[1:], k + 1, x)
        yield done(there, x, x_0)
