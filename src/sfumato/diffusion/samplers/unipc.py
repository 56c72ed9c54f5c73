"""UniPC (Zhao et al., 2023): a multistep predictor whose every new evaluation also corrects the step before it."""

import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from sfumato.diffusion.grid import Grid, Row
from sfumato.diffusion.samplers.base import Denoise, Step, ask, checked, done, sampling

Past = list[tuple[Tensor, float]]  # estimates of x_0 and their log(alpha / sigma), the newest first


def _weights(nodes: list[float], h: float, count: int) -> list[float]:
    """rho B(h) of eq. 8 and theorem 3.1 for data prediction with B2(h) = exp(-h) - 1; nodes end with 1 in a corrector."""
    phi, factorial, scale = math.expm1(-h) / -h - 1, 1.0, math.expm1(-h)
    right = []
    for k in range(1, count + 1):
        factorial *= k
        right.append(phi * factorial / scale)
        phi = phi / -h - 1 / factorial / (k + 1)
    powers = np.arange(count)
    rho: list[float] = (np.linalg.solve(np.array(nodes)[None, :] ** powers[:, None], np.array(right)) * scale).tolist()
    return rho


def _step(x: Tensor, past: Past, here: Row, there: Row, ahead: Tensor | None = None) -> Tensor:
    """x at `there` from the estimates so far, and from the one made there, in a corrector."""
    h = there.log_snr - here.log_snr
    newest = past[0][0]
    moved = (there.sigma / here.sigma) * x - there.alpha * math.expm1(-h) * newest
    if not math.isfinite(h):
        return moved
    nodes = [(place - here.log_snr) / h for _, place in past[1:]]
    slopes = [(x_0 - newest) / node for (x_0, _), node in zip(past[1:], nodes, strict=True)]
    if ahead is not None:
        nodes, slopes = [*nodes, 1.0], [*slopes, ahead - newest]
    if not nodes:
        return moved
    # the lowest predictor and corrector take the midpoint's half, as the paper's section 3.3 does
    weights = [math.expm1(-h) / 2] if len(nodes) == 1 else _weights(nodes, h, len(nodes))
    for weight, slope in zip(weights, slopes, strict=True):
        moved = moved - there.alpha * weight * slope
    return moved


@sampling
def unipc(denoise: Denoise, x: Tensor, grid: Grid, *, order: int = 2) -> Iterator[Step]:
    """UniPC-`order` (1 to 3) with B2(h) and data prediction, algorithms 5 to 8; one evaluation a step.

    The corrector raises the order by one: UniPC-2 has order 3. The first step and the step to the clean end are the
    lower ones that they can be.
    """
    checked("order", order, 1, 3)
    past: Past = []
    before: tuple[Tensor, Row] | None = None
    for here, there in grid.pairs():
        x_0 = ask(denoise, x, here)
        if before is not None and past:
            x = _step(before[0], past[:order], before[1], here, x_0)
        if here.alpha:
            past = [(x_0, here.log_snr), *past][:order]
        before = (x, here)
        x = _step(x, past or [(x_0, here.log_snr)], here, there)
        yield done(there, x, x_0)
