"""Log-likelihood by the probability flow (Song et al., 2021, eq. 39; Karras et al., 2022).

With the angle a = atan(sigma / alpha) and u = x / |(alpha, sigma)| = cos a x_0 + sin a eps the flow is

    du/da = (cos a u - D) / sin a,    log p_0(x_0) = log p_T(u_T) + integral of div (du/da) da + d log cos a_0,

regular up to pure noise, where u_T is exactly N(0, I).
The trace is estimated without bias by probes, v . (dD/dy) v with random signs v (Hutchinson, 1990; Skilling, 1989).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.device import fine, finest
from sfumato.diffusion.grid import Grid, Row
from sfumato.diffusion.samplers.base import Denoise, checked, times
from sfumato.streams import Stream


class Likelihood(NamedTuple):
    """Natural logarithms of densities (B,) and the standard errors (B,) that the probes leave, float64 where there is that."""

    log_p: Tensor
    error: Tensor

    def bits_per_value(self, values: int) -> Tensor:
        """-log2 p over the number of values C h w of an example, (B,)."""
        return -self.log_p / (values * math.log(2))


def log_likelihood(denoise: Denoise, x_0: Tensor, grid: Grid, noise: Stream, *, probes: int = 4) -> Likelihood:
    """The log density of x_0 (B, C, h, w), blurred by the grid's last noisy ratio, under the model's flow.

    Four evaluations and `probes` backward passes of each a step (Runge-Kutta's fourth order in the angle, from the grid's
    last noisy row to its first). Unbiased but for the error of these steps, and of taking u as N(0, I) where the grid
    begins below pure noise. The error is that of the mean over `probes`, at least 2. `noise` draws the probes: they are
    the same at all steps, and an image's do not depend on the batch.
    """
    checked("probes", probes, 2, 10_000)
    path = [row for row in reversed(grid.rows()) if row.sigma]
    signs = torch.stack([noise.normal(x_0.shape[1:], k, x_0).sign() for k in range(probes)])
    u, count = x_0.detach() * math.cos(_angle(path[0])), x_0[0].numel()
    grown = torch.zeros(probes, len(x_0), dtype=finest(x_0.device), device=x_0.device)
    for here, there in zip(path[:-1], path[1:], strict=True):
        u, growth = _step(denoise, u, grid, here, there, signs)
        grown = grown + growth
    prior = -0.5 * fine(u).square().flatten(1).sum(1) - count * math.log(math.sqrt(2 * math.pi))
    each = prior + grown + count * math.log(math.cos(_angle(path[0])))
    return Likelihood(each.mean(0), each.std(0) / math.sqrt(probes))


def discrete(
    denoise: Denoise, x_0: Tensor, levels: Tensor, grid: Grid, noise: Stream, *, probes: int = 4
) -> Likelihood:
    """A lower bound on the log probability of x_0 (B, C, h, w), each of whose values is one of its channel's `levels` (C, K).

    x_0 is blurred by the grid's last noisy ratio and told back by its nearest levels (Kingma et al., 2021, section 3.2):

        log P(x_0) >= E[log p(y) + log P(x_0 | y)] + the entropy of y given x_0,    P(x_0 | y) ~ exp(-|y - x_0|² / 2 r²),

    so that nothing has to be added to pictures of 8 bits in training. Any r gives a bound; a value that the
    model knows for sure costs 0.05 bits where r is a fifth of the levels' distance, and one where it is half of it. One draw of y an example, from `noise`; the rest is as for `log_likelihood`.
    """
    ratio = [row for row in grid.rows() if row.sigma][-1].ratio
    y = x_0 + ratio * noise.normal(x_0.shape[1:], probes, x_0)
    found = log_likelihood(denoise, y, grid, noise, probes=probes)
    off = (fine(y)[..., None] - fine(levels)[:, None, None]).square() / (-2 * ratio**2)  # (B, C, h, w, K)
    back = (fine(y - x_0).square() / (-2 * ratio**2) - off.logsumexp(-1)).flatten(1).sum(1)
    entropy = x_0[0].numel() * (0.5 + math.log(ratio * math.sqrt(2 * math.pi)))
    return Likelihood(found.log_p + back + entropy, found.error)


def _angle(row: Row) -> float:
    return math.atan2(row.sigma, row.alpha)


def _step(denoise: Denoise, u: Tensor, grid: Grid, here: Row, there: Row, signs: Tensor) -> tuple[Tensor, Tensor]:
    h = _angle(there) - _angle(here)
    middle = grid.at(math.tan(_angle(here) + h / 2))
    k_1, g_1 = _slope(denoise, u, here, signs)
    k_2, g_2 = _slope(denoise, u + h / 2 * k_1, middle, signs)
    k_3, g_3 = _slope(denoise, u + h / 2 * k_2, middle, signs)
    k_4, g_4 = _slope(denoise, u + h * k_3, there, signs)
    return u + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4), h / 6 * (g_1 + 2 * g_2 + 2 * g_3 + g_4)


def _slope(denoise: Denoise, u: Tensor, row: Row, signs: Tensor) -> tuple[Tensor, Tensor]:
    """du/da (B, C, h, w), and its divergence by each probe (probes, B)."""
    cos, sin, length = math.cos(_angle(row)), math.sin(_angle(row)), math.hypot(row.alpha, row.sigma)
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        x_0 = denoise(length * u, times(u, row.t))
        traces = []
        for k, v in enumerate(signs):
            (back,) = torch.autograd.grad(x_0, u, v, retain_graph=k + 1 < len(signs))
            traces.append(fine(back * v).flatten(1).sum(1))
    slope = (cos * u - x_0).detach() / sin
    return slope, (cos * u[0].numel() - torch.stack(traces)) / sin
