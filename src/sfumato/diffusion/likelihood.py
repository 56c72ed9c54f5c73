"""Log-likelihood by the probability flow (Song et al., 2021, eq. 39; Karras et al., 2022).

With y = x / alpha and l = log(sigma / alpha) the flow is dy/dl = y - D, so along it

    d log p(y) / dl = -(d - tr dD/dy),    log p_0(y_0) = log p_T(y_T) + integral of (d - tr dD/dy) dl.

The trace is estimated without bias by probes, v . (dD/dy) v with random signs v (Hutchinson, 1990; Skilling, 1989).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.diffusion.grid import Grid, Row
from sfumato.diffusion.samplers.base import Denoise, checked, times
from sfumato.streams import Stream


class Likelihood(NamedTuple):
    """Natural logarithms of densities (B,) float64, and the standard errors (B,) that the probes leave."""

    log_p: Tensor
    error: Tensor

    def bits_per_value(self, values: int) -> Tensor:
        """-log2 p over the number of values C h w of an example, (B,)."""
        return -self.log_p / (values * math.log(2))


def log_likelihood(denoise: Denoise, x_0: Tensor, grid: Grid, noise: Stream, *, probes: int = 4) -> Likelihood:
    """The log density of x_0 (B, C, h, w), blurred by the grid's last noisy ratio, under the model's flow.

    Four evaluations and `probes` backward passes of each a step (Runge-Kutta's fourth order in l, between the grid's last
    noisy row and its first, or ratio 1000 where that is pure noise). Unbiased but for the error of these steps and for
    the end, where x is taken as N(0, (alpha² + sigma²) I). The error is that of the mean over `probes`, at least 2.
    `noise` draws the probes: they are the same at all steps, and an image's do not depend on the batch.
    """
    checked("probes", probes, 2, 10_000)
    rows = [row for row in reversed(grid.rows()) if row.sigma]
    path = [row if row.alpha else grid.at(1000.0) for row in rows]
    signs = torch.stack([noise.normal(x_0.shape[1:], k, x_0).sign() for k in range(probes)])
    y = x_0.detach()
    grown = torch.zeros(probes, len(x_0), dtype=torch.float64, device=x_0.device)
    for here, there in zip(path[:-1], path[1:], strict=True):
        if there.ratio > here.ratio:
            y, growth = _step(denoise, y, grid, here, there, signs)
            grown = grown + growth
    end, count = path[-1], y[0].numel()
    std = math.hypot(end.alpha, end.sigma) / end.alpha
    prior = -0.5 * (y.double() / std).square().flatten(1).sum(1) - count * math.log(std * math.sqrt(2 * math.pi))
    each = prior + grown
    return Likelihood(each.mean(0), each.std(0) / math.sqrt(probes))


def _step(denoise: Denoise, y: Tensor, grid: Grid, here: Row, there: Row, signs: Tensor) -> tuple[Tensor, Tensor]:
    middle, h = grid.at(math.sqrt(here.ratio * there.ratio)), math.log(there.ratio / here.ratio)
    k_1, g_1 = _slope(denoise, y, here, signs)
    k_2, g_2 = _slope(denoise, y + h / 2 * k_1, middle, signs)
    k_3, g_3 = _slope(denoise, y + h / 2 * k_2, middle, signs)
    k_4, g_4 = _slope(denoise, y + h * k_3, there, signs)
    return y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4), h / 6 * (g_1 + 2 * g_2 + 2 * g_3 + g_4)


def _slope(denoise: Denoise, y: Tensor, row: Row, signs: Tensor) -> tuple[Tensor, Tensor]:
    """dy/dl (B, C, h, w), and its divergence by each probe (probes, B)."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        x_0 = denoise(row.alpha * y, times(y, row.t))
        traces = []
        for k, v in enumerate(signs):
            (back,) = torch.autograd.grad(x_0, y, v, retain_graph=k + 1 < len(signs))
            traces.append((back * v).double().flatten(1).sum(1))
    return (y - x_0).detach(), y[0].numel() - torch.stack(traces)
