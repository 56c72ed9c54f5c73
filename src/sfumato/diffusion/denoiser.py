"""The denoiser: a network, a schedule and a prediction, seen from outside as x_0 = D(x_t, t, cond).

Everything that differs between published models is here, and nothing outside needs to know it: what scales the noise
has at time t, what the network is told of it (its clock), what it predicts, and how the clean estimate follows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.diffusion.loss import Weighting
from sfumato.diffusion.prediction import Prediction, blind
from sfumato.diffusion.schedule import Scales, Schedule

Clock = Callable[[Tensor], Tensor]


def thousand(t: Tensor) -> Tensor:
    """1000 t: what networks of flows are told."""
    return 1000.0 * t


def row(t: Tensor) -> Tensor:
    """The row of a table of 1000 betas, 999 t: what the published networks are told."""
    return 999.0 * t


@dataclass(frozen=True)
class Quarter:
    """log(sigma / alpha) / 4, Karras et al. (2022), table 1: c_noise, for any schedule; within ±10 at infinite ends."""

    schedule: Schedule

    def __call__(self, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(t)
        return ((sigma.log() - alpha.log()) / 4).clamp(-10.0, 10.0)


class Denoiser(nn.Module):
    """`network(into x_t, clock(t), cond)` -> a tensor of x_t's shape, turned into the estimate of x_0.

    The scalars are computed in t's own type, float32 at least, whatever x_t's.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, prediction: Prediction, clock: Clock = thousand) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction, self.clock = network, schedule, prediction, clock
        self.blind = blind(prediction, schedule)

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """x_t (B, C, h, w), t (B,) -> the estimate of x_0 (B, C, h, w). `cond` passes through unread.

        Raises `ValueError` where the network predicts noise and x_t is nothing else (alpha 0): there is no x_0 in it.
        """
        scales = self.schedule(_wide(t))
        if self.blind and self._pure(t, scales.alpha):
            raise ValueError(
                "noise prediction says nothing of the clean picture at t = 1, where this schedule is pure noise; "
                "start the grid below 1 (start=0.98), or train with prediction v or flow"
            )
        into, skip, out = self._line(scales)
        shape = (-1,) + (1,) * (x_t.ndim - 1)
        into, skip, out = (s.expand(len(x_t)).reshape(shape).to(x_t) for s in (into, skip, out))
        result: Tensor = skip * x_t + out * self.network(into * x_t, self.clock(t), cond)
        return result

    def slope(self, t: Tensor) -> Tensor:
        """How far the estimate of x_0 moves with the network's output at the times t (B,), (B,): 0 where nothing is noise."""
        return self._line(self.schedule(_wide(t)))[2]

    def _line(self, scales: Scales) -> tuple[Tensor, Tensor, Tensor]:
        """(into, skip, out): the estimate of x_0 is skip x_t + out F(into x_t)."""
        into, p, q = self.prediction(scales)
        whole, clean = q * scales.alpha - p * scales.sigma, scales.sigma == 0
        whole = torch.where(whole == 0, torch.ones_like(whole), whole)
        skip = torch.where(clean, 1 / scales.alpha, q / whole)  # without noise, x_t is x_0 to scale
        return into, skip, torch.where(clean, torch.zeros_like(whole), -scales.sigma / whole)

    def _pure(self, t: Tensor, alpha: Tensor) -> bool:
        """Whether a time has no signal: by the schedule alone where a sampler left its number beside t (see `moment`)."""
        known = getattr(t, "moment", None)
        if known is not None:
            alpha = self.schedule(_wide(torch.tensor(known, dtype=t.dtype))).alpha
        return bool((alpha == 0).any())

    def loss(self, x_0: Tensor, t: Tensor, eps: Tensor, cond: Any = None, weighting: Weighting | None = None) -> Tensor:
        """L_LDM, one value an example (B,): Rombach et al. (2022), eq. 2 and 3, for every prediction type.

        It is the mean square error in what the network predicts, finite at both ends; `weighting` multiplies it.
        """
        return self._judged(x_0, t, eps, cond, weighting)[0]

    def told(
        self, x_0: Tensor, t: Tensor, eps: Tensor, cond: Any = None, weighting: Weighting | None = None
    ) -> tuple[Tensor, Tensor]:
        """`loss` (B,), and the estimate of x_0 (B, C, h, w) by the same call of the network."""
        loss, x_t, output = self._judged(x_0, t, eps, cond, weighting)
        _, skip, out = (s.reshape(-1, 1, 1, 1).to(x_t) for s in self._line(self.schedule(_wide(t))))
        return loss, skip * x_t + out * output

    def _judged(
        self, x_0: Tensor, t: Tensor, eps: Tensor, cond: Any, weighting: Weighting | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, x_t, the network's output)."""
        scales = self.schedule(_wide(t))
        alpha, sigma = scales.like(x_0)
        into, p, q = (s.reshape(alpha.shape).to(x_0) for s in self.prediction(scales))
        x_t = alpha * x_0 + sigma * eps
        output = self.network(into * x_t, self.clock(t), cond)
        result: Tensor = (output - (p * x_0 + q * eps)).square().flatten(1).mean(1)
        if weighting is not None:
            result = weighting(scales, self.prediction).to(result) * result
        return result, x_t, output


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()
