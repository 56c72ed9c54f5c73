"""What the network predicts: F(into x_t) = p x_0 + q eps, for scales x_t = alpha x_0 + sigma eps.

The loss needs only (p, q), which are finite everywhere. Solving both equations for x_0 gives what a sampler needs,
x_0 = (q x_t - sigma F) / (q alpha - p sigma), finite except where a prediction says nothing of x_0 (noise at alpha = 0).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.diffusion.schedule import Scales, Schedule


class Target(NamedTuple):
    """Three scalars an example, shaped like the scales."""

    into: Tensor
    p: Tensor
    q: Tensor


Prediction = Callable[[Scales], Target]


def clean(s: Scales) -> Target:
    """x_0 itself."""
    one = torch.ones_like(s.alpha)
    return Target(one, one, torch.zeros_like(one))


def noise(s: Scales) -> Target:
    """eps, Ho et al. (2020), eq. 14."""
    one = torch.ones_like(s.alpha)
    return Target(one, torch.zeros_like(one), one)


def v(s: Scales) -> Target:
    """alpha eps - sigma x_0, Salimans & Ho (2022), appendix D."""
    return Target(torch.ones_like(s.alpha), -s.sigma, s.alpha)


def flow(s: Scales) -> Target:
    """eps - x_0, Lipman et al. (2023), Liu et al. (2023)."""
    one = torch.ones_like(s.alpha)
    return Target(one, -one, one)


def edm(s: Scales, data_std: float = 0.5) -> Target:
    """Karras et al. (2022), table 1, for any alpha."""
    norm = ((s.alpha * data_std) ** 2 + s.sigma**2).rsqrt()
    return Target(norm, s.sigma / data_std * norm, -s.alpha * data_std * norm)


FAR = 200.0  # tables of betas that were published with noise end at a ratio of 15 to 160

PREDICTIONS: dict[str, Prediction] = {"clean": clean, "noise": noise, "v": v, "flow": flow, "edm": edm}


def prediction(name: str, data_std: float = 0.5) -> Prediction:
    """The prediction of this name; `data_std`, the data's standard deviation, is edm's. Raises `ValueError` with the known
    names."""
    if name not in PREDICTIONS:
        raise ValueError(f"unknown prediction {name!r}; known: {', '.join(PREDICTIONS)}")
    return partial(edm, data_std=data_std) if name == "edm" else PREDICTIONS[name]


def blind(told: Prediction, schedule: Schedule) -> bool:
    """Whether a prediction says nothing of x_0 at t = 1, or next to nothing: noise, where the schedule's end is all noise, or
    so nearly that an error of the network counts `FAR` times in x_0, as at the end of a cosine's betas."""
    scales = schedule(torch.ones((), dtype=torch.float64))
    _, p, q = told(scales)
    return bool((q * scales.alpha - p * scales.sigma).abs() < torch.hypot(scales.alpha, scales.sigma) / FAR)
