"""The denoiser: a network, a schedule and a prediction, seen from outside as x_0 = D(x_t, t, cond)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import Schedule

Clock = Callable[[Tensor], Tensor]


def thousand(t: Tensor) -> Tensor:
    """1000 t: what networks of flows are told."""
    return 1000.0 * t


def row(t: Tensor) -> Tensor:
    """The row of a table of 1000 betas, 999 t: what the published networks are told."""
    return 999.0 * t


class Denoiser(nn.Module):
    """`network(into x_t, clock(t), cond)` -> a tensor of x_t's shape."""

    def __init__(self, network: nn.Module, schedule: Schedule, prediction: Prediction, clock: Clock = thousand) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction, self.clock = network, schedule, prediction, clock

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """x_t (B, C, h, w), t (B,) -> the estimate of x_0 (B, C, h, w). `cond` passes through unread."""
        alpha, sigma = scales = self.schedule(t).like(x_t)
        into, p, q = self.prediction(scales)
        result: Tensor = (q * x_t - sigma * self.network(into * x_t, self.clock(t), cond)) / (q * alpha - p * sigma)
        return result

    def loss(self, x_0: Tensor, t: Tensor, eps: Tensor, cond: Any = None) -> Tensor:
        """L_LDM, one value an example (B,): Rombach et al. (2022), eq. 2 and 3, for every prediction type."""
        alpha, sigma = scales = self.schedule(t).like(x_0)
        into, p, q = self.prediction(scales)
        output = self.network(into * (alpha * x_0 + sigma * eps), self.clock(t), cond)
        result: Tensor = (output - (p * x_0 + q * eps)).square().flatten(1).mean(1)
        return result
