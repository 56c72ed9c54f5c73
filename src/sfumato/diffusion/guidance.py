"""Guidance: several estimates of x_0 become one, sharper in what tells them apart.

`Branches` holds the conditions that share a network; whatever their number, they run as one batched forward. Every
function here makes one `denoise(x_t, t)` of estimates of x_0. For a given x_t they are affine in eps and v, so formulas
that only mix estimates, with weights that sum to 1, are the papers' on eps or v as they stand; those that measure them
(`rescale`, `apg`, `cfg_zero`) are of the quantity that is named there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.combinators import inner
from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers.base import Denoise, made, moment, repeated
from sfumato.diffusion.schedule import Schedule
from sfumato.windows import Window


@dataclass(frozen=True)
class Branches:
    """Conditions that share a network, run as one batched forward; `join` makes one batch of several conditions.

    `network(x_t, t, cond)` gives x_0. `crop(condition, window)`, where there is one, cuts a condition's pictures and
    boxes for `at`.
    """

    network: Callable[[Tensor, Tensor, Any], Tensor]
    conditions: Sequence[Any]
    join: Callable[[Sequence[Any]], Any]
    crop: Callable[[Any, Window], Any] | None = None

    def __post_init__(self) -> None:
        inner(self.network)

    def at(self, window: Window) -> "Branches":
        """The branches of a part of the canvas, for `tiled`."""
        if self.crop is None:
            return self
        return replace(self, conditions=[self.crop(c, window) for c in self.conditions])

    def bound(self) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
        """(x_t, t) -> an estimate of x_0 a condition."""
        count, joined = len(self.conditions), self.join(self.conditions)

        def run(x_t: Tensor, t: Tensor) -> tuple[Tensor, ...]:
            return self.network(torch.cat([x_t] * count), repeated(t, count), joined).chunk(count)

        return run


def guided(branches: Branches, scale: float, *, rescale: float = 0.0) -> Denoise:
    """Classifier-free guidance (Ho & Salimans, 2022, eq. 6): base + scale (conditional - base), two conditions.

    The second condition is the base: the null one, or a negative. `rescale` in [0, 1] gives back that share of the
    conditional estimate's standard deviation (Lin et al., 2024, eq. 15 and 16, on x_0).
    """
    run = _pair(branches)
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale lies between 0 and 1; got {rescale}")

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        conditional, base = run(x_t, t)
        x_0 = torch.lerp(base, conditional, scale)
        if rescale:
            x_0 = x_0 * torch.lerp(torch.ones_like(_std(x_0)), _std(conditional) / _std(x_0), rescale)
        return x_0

    return denoise


def weighted(branches: Branches, weights: Sequence[float]) -> Denoise:
    """base + sum_i w_i (x_0 of condition i - base), the last condition the base: Liu et al. (2022), eq. 11.

    A negative weight moves away from a condition. Raises `ValueError` unless there is a weight for each but the last.
    """
    if len(weights) != len(branches.conditions) - 1:
        raise ValueError(
            f"{len(branches.conditions)} conditions, the last the base, take one weight fewer; got {weights}"
        )
    run = branches.bound()

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        *several, base = run(x_t, t)
        x_0 = base
        for weight, one in zip(weights, several, strict=True):
            x_0 = x_0 + weight * (one - base)
        return x_0

    return denoise


def apg(
    branches: Branches, scale: float, *, parallel: float = 0.0, limit: float = 15.0, momentum: float = -0.5
) -> Denoise:
    """Adaptive projected guidance (Sadat et al., 2025, algorithm 1): high scales without burnt colours.

    The difference to the base is averaged over steps with a (negative) `momentum`, shortened to the norm `limit` (0: as it
    is), and its part along the conditional estimate, which only saturates, is kept to the share `parallel`.

    With momentum it remembers a run's earlier times: another run, or a time that rises, begins anew, and a time that is
    asked again stands in for itself. Such a one is refused by `adaptive`, and by `tiled` but for one a window (`at=`).
    """
    run, past = _pair(branches), _Average(momentum) if momentum else None

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        conditional, base = run(x_t, t)
        gap = conditional - base
        if past is not None:
            time = moment(t)
            if time is None:
                raise ValueError("APG's momentum needs a sampler that keeps a batch at one time; `adaptive` does not")
            gap = past.add(gap, time)
        if limit:
            gap = gap * (limit / _norm(gap).clamp(min=1e-12)).clamp(max=1.0)
        along = conditional / _norm(conditional).clamp(min=1e-12)
        shared = (gap * along).flatten(1).sum(1).reshape(_norm(gap).shape) * along
        return conditional + (scale - 1) * (gap - shared + parallel * shared)

    return made(denoise, memory=past)


class _Average:
    """The running sum d_k + momentum (d_(k-1) + momentum (...)) over a run's falling times."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.forget()

    def forget(self) -> None:
        self.time: float | None = None
        self.total: Tensor | None = None  # of this time
        self.before: Tensor | None = None  # of the time before it

    def add(self, gap: Tensor, time: float) -> Tensor:
        if self.time is None or time > self.time or self.total is None or self.total.shape != gap.shape:
            self.before = None
        elif time < self.time:
            self.before = self.total
        self.time, self.total = time, gap if self.before is None else gap + self.momentum * self.before
        return self.total


def cfgpp(branches: Branches, scale: float, grid: Grid) -> Denoise:
    """CFG++ (Chung et al., 2025, algorithm 2): the estimate is guided, the noise that is kept is the base's.

    `scale` lies in [0, 1]. For `ddim` on the same grid, with eta 0, this is CFG++ exactly: it equals guidance by
    scale / (1 - r' / r), r and r' the ratios sigma / alpha of the grid's row and its next one.
    """
    run, pairs = _pair(branches), list(grid.pairs())
    if not 0.0 <= scale <= 1.0:
        raise ValueError(f"the scale of CFG++ lies between 0 and 1; got {scale}")

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        time = getattr(t, "moment", None)  # told by a sampler that is at a row of the grid
        if time is None:
            raise ValueError("CFG++ needs a sampler that keeps a batch at one time; `adaptive` does not")
        conditional, base = run(x_t, t)
        here, there = next((p for p in pairs if p[1].t < time), pairs[-1])
        return torch.lerp(base, conditional, scale / (1 - there.ratio / here.ratio))

    return denoise


def cfg_zero(branches: Branches, scale: float, schedule: Schedule, *, still: float = 1.0) -> Denoise:
    """CFG-Zero* (Fan et al., 2025, algorithm 1) for flows: the base is scaled to fit, and the first steps may stand still.

    On velocities v = eps - x_0: v = s v_base + scale (v_cond - s v_base), s = <v_cond, v_base> / |v_base|². At times above
    `still` the velocity is zero (the paper's zero-init; 1.0: nowhere). At sigma 0 there is no velocity and the plain
    guidance is taken.
    """
    run = _pair(branches)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        conditional, base = run(x_t, t)
        alpha, sigma = schedule(t).like(x_t)
        time = t.to(x_t).reshape(
            -1, *[1] * (x_t.ndim - 1)
        )  # pictures may be at times of their own, as under `adaptive`
        v_cond, v_base = ((x_t - (alpha + sigma) * x_0) / sigma for x_0 in (conditional, base))
        fit = (v_cond * v_base).flatten(1).sum(1) / v_base.square().flatten(1).sum(1).clamp(min=1e-12)
        v = torch.lerp(fit.reshape(_norm(base).shape) * v_base, v_cond, scale)
        found = torch.where(time == 0, torch.lerp(base, conditional, scale), (x_t - sigma * v) / (alpha + sigma))
        return torch.where(time > still, x_t / (alpha + sigma), found)

    return denoise


def autoguided(denoise: Denoise, weak: Denoise, scale: float) -> Denoise:
    """weak + scale (denoise - weak): guidance by a weaker model of the same kind (Karras et al., 2024, eq. 3)."""
    inner(denoise, weak)
    return made(lambda x_t, t: torch.lerp(weak(x_t, t), denoise(x_t, t), scale), (denoise, weak))


def _pair(branches: Branches) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    if len(branches.conditions) != 2:
        raise ValueError(f"this guidance takes a condition and a base; got {len(branches.conditions)} conditions")
    return branches.bound()


def _norm(x: Tensor) -> Tensor:
    length: Tensor = x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    return length


def _std(x: Tensor) -> Tensor:
    return x.flatten(1).std(1).reshape(-1, *[1] * (x.ndim - 1)).clamp(min=1e-12)
