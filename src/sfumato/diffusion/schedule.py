"""Noise schedules: from a time t in [0, 1] to the scales of x_t = alpha x_0 + sigma eps.

t runs from (nearly) clean at 0 to (nearly) noise at 1 in every schedule. Inverses take both scales, not their ratio,
which is infinite at the end of a flow.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from sfumato.config import Config


class Scales(NamedTuple):
    """The two factors of x_t = alpha x_0 + sigma eps."""

    alpha: Tensor
    sigma: Tensor

    def like(self, x: Tensor) -> "Scales":
        """(B,) or () scales reshaped so that they broadcast against x (B, ...)."""
        shape = (-1,) + (1,) * (x.ndim - 1) if self.alpha.ndim else ()
        return Scales(self.alpha.reshape(shape).to(x), self.sigma.reshape(shape).to(x))


class Schedule(Protocol):
    """t (...) -> scales (...), and back."""

    def __call__(self, t: Tensor) -> Scales: ...
    def time(self, scales: Scales) -> Tensor: ...


@dataclass(frozen=True)
class Linear:
    """Rectified flow (Liu et al., 2023; Lipman et al., 2023): alpha = 1 - t, sigma = t."""

    def __call__(self, t: Tensor) -> Scales:
        return Scales(1 - t, t)

    def time(self, scales: Scales) -> Tensor:
        return scales.sigma / (scales.alpha + scales.sigma)


@dataclass(frozen=True)
class Betas:
    """The tables of LDM and Stable Diffusion, linear in sqrt(beta) («scaled linear»), read between their rows."""

    start: float = 0.00085
    end: float = 0.012
    steps: int = 1000
    table: Tensor = field(init=False, repr=False, compare=False)  # log(sigma / alpha), (steps,)

    def __post_init__(self) -> None:
        betas = torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64) ** 2
        object.__setattr__(self, "table", torch.cumprod(1 - betas, 0).logit().neg() / 2)

    def __call__(self, t: Tensor) -> Scales:
        position = (t.double() * (self.steps - 1)).clamp(0, self.steps - 1)
        low = position.floor().long().clamp(max=self.steps - 2)
        table = self.table.to(t.device)
        ratio = torch.lerp(table[low], table[low + 1], position - low)
        return Scales(torch.sigmoid(-2 * ratio).sqrt().to(t), torch.sigmoid(2 * ratio).sqrt().to(t))

    def time(self, scales: Scales) -> Tensor:
        table = self.table.to(scales.alpha.device)
        value = (scales.sigma.double() / scales.alpha.double()).log().clamp(table[0], table[-1])
        high = torch.searchsorted(table, value).clamp(1, self.steps - 1)
        share = (value - table[high - 1]) / (table[high] - table[high - 1])
        return ((high - 1 + share) / (self.steps - 1)).to(scales.alpha)


class ScheduleConfig(Config):
    """A schedule as recipes write it: `{kind: linear}` or `{kind: betas, start: 0.00085, end: 0.012}`."""

    kind: Literal["linear", "betas"] = "linear"
    start: float = Field(0.00085, gt=0, lt=1)
    end: float = Field(0.012, gt=0, lt=1)

    def build(self) -> Schedule:
        """The schedule itself."""
        return Linear() if self.kind == "linear" else Betas(self.start, self.end)
