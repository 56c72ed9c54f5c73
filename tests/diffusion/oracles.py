"""Exact denoisers: targets whose posterior mean is known, so that every error is the sampler's."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers import Denoise
from sfumato.diffusion.schedule import Scales, Schedule


def gaussian(schedule: Schedule, mean: float = 1.5, std: float = 0.5) -> Denoise:
    """E[x_0 | x_t] where every value is N(mean, std²)."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, o = schedule(t).like(x_t)
        return mean + a * std**2 / (a**2 * std**2 + o**2) * (x_t - a * mean)

    return denoise


CENTRES = torch.tensor([[-1.2, 0.3], [0.8, 1.1], [0.5, -0.9], [1.4, 0.1]], dtype=torch.float64)
SPREADS = torch.tensor([0.25, 0.15, 0.35, 0.2], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.2, 0.35, 0.15], dtype=torch.float64)


def mixture(schedule: Schedule) -> Denoise:
    """E[x_0 | x_t] where the two channels of every place (B, 2, h, w) are drawn from a mixture of four Gaussians."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, o = (s.reshape(-1, 1, 1, 1) for s in schedule(t))
        x, c, v = x_t.movedim(1, -1), CENTRES.to(x_t), SPREADS.to(x_t) ** 2
        total = a**2 * v + o**2
        gap = x[..., None, :] - a[..., None] * c
        log = SHARES.to(x_t).log() - gap.square().sum(-1) / (2 * total) - total.log()
        means = c + (a * v / total)[..., None] * gap
        return (log.softmax(-1)[..., None] * means).sum(-2).movedim(-1, 1)

    return denoise


def mixture_samples(count: int, seed: int = 0) -> Tensor:
    """Exact draws (count, 2) float64."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(SHARES, count, True, generator=generator)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return CENTRES[which] + SPREADS[which, None] * noise


def between(schedule: Schedule, steps: int, high: float = 10.0, low: float = 0.05) -> Grid:
    """A grid between two noisy rows, even in angle: smooth for every schedule, with no jump to the clean end."""
    angle = torch.linspace(math.atan(high), math.atan(low), steps + 1, dtype=torch.float64)
    t = schedule.time(Scales(angle.cos(), angle.sin()))
    alpha, sigma = schedule(t)
    return Grid(t, alpha, sigma, schedule)


def flowed(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, grid: Grid, substeps: int = 2000) -> Tensor:
    """Where the flow takes x from the grid's first row to its last: Runge-Kutta's fourth order in angle."""
    first, *_, final = grid.rows()
    angles = torch.linspace(
        math.atan2(first.sigma, first.alpha), math.atan2(final.sigma, final.alpha), substeps + 1
    ).double()

    def slope(u: Tensor, angle: Tensor) -> Tensor:
        scales = Scales(angle.cos(), angle.sin())
        assert grid.schedule is not None
        t = grid.schedule.time(scales)
        alpha, sigma = grid.schedule(t)
        x_0 = denoise(u * torch.hypot(alpha, sigma), t.expand(len(u)))
        return -scales.sigma * x_0 + scales.alpha * (u - scales.alpha * x_0) / scales.sigma  # d(cos x_0 + sin eps)

    u = x / math.hypot(first.alpha, first.sigma)
    for a, b in zip(angles[:-1], angles[1:], strict=True):
        h, m = b - a, (a + b) / 2
        k_1 = slope(u, a)
        k_2 = slope(u + h / 2 * k_1, m)
        k_3 = slope(u + h / 2 * k_2, m)
        k_4 = slope(u + h * k_3, b)
        u = u + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return u * math.hypot(final.alpha, final.sigma)
