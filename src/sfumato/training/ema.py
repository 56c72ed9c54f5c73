"""Averages of the weights along training, each with a width relative to the run so far.

A fixed decay is too long at the start and too short at the end. A power function's average (Karras et al., 2024,
"Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.1) keeps the same relative width at every
moment, so one number fits a run of a minute and a run of a month. Who is used to a decay a step (0.9999) may give that:
it then warms up, min(decay, (1 + step) / (10 + step)), since a long average would else keep the fresh weights.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def exponent(width: float) -> float:
    """The power whose average has standard deviation `width` relative to the run's length (eq. 126 solved for gamma).

    sigma² = (g + 1) / ((g + 2)² (g + 3)); width must be below 0.28, the widest of a growing power.
    """
    if not 0.0 < width < 0.28:
        raise ValueError(f"an average's relative width lies between 0 and 0.28; got {width}")
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = 0.5 * (low + high)
        spread = math.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3)))
        low, high = (middle, high) if spread > width else (low, middle)
    return low


def decays(length: float) -> bool:
    """Whether an average's length is a decay a step, and no relative width."""
    return length >= 0.5


def lasting(length: float) -> float | None:
    """The power of a relative width, None for a decay a step. Raises `ValueError` for what is neither."""
    if not 0 < length < 0.28 and not 0.5 <= length < 1:
        raise ValueError(
            f"an average is given by a relative width below 0.28 or by a decay a step from 0.5 to below 1; got {length:g}"
        )
    return None if decays(length) else exponent(length)


class Averages:
    """One average of the modules' parameters a length, a relative width or a decay; buffers are not averaged."""

    def __init__(self, modules: Sequence[nn.Module], widths: Sequence[float]) -> None:
        self.parameters = [p for m in modules for p in m.parameters()]
        self.lengths = list(widths)
        self.exponents = [lasting(w) for w in widths]
        self.kept = [[p.detach().clone() for p in self.parameters] for _ in widths]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1."""
        for length, power, kept in zip(self.lengths, self.exponents, self.kept, strict=True):
            if power is None:
                share = 1.0 - min(length, (1.0 + step) / (10.0 + step))
            else:
                share = 1.0 - (1.0 - 1.0 / step) ** (power + 1.0)
            torch._foreach_lerp_(kept, [p.detach() for p in self.parameters], share)

    def state(self) -> dict[str, Tensor]:
        """Every average's tensors under flat names."""
        return {f"{k}.{i}": t for k, kept in enumerate(self.kept) for i, t in enumerate(kept)}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for k, kept in enumerate(self.kept):
            for i, tensor in enumerate(kept):
                tensor.copy_(state[f"{k}.{i}"])

    @torch.no_grad()
    def swap(self, index: int = 0) -> None:
        """Exchange the weights and an average; a second call undoes it."""
        for parameter, average in zip(self.parameters, self.kept[index], strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
