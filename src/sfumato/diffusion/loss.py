"""How the loss is spread over time: weightings of an example, and densities from which its time is drawn.

The loss is the square error in what the network predicts, F. Papers weight the error of x_0 or of eps instead; for a
given x_t the three are proportional, with W = q alpha - p sigma (see `prediction`),

    error of x_0 = -sigma / W error of F,        error of eps = alpha / W error of F,

so a weight of theirs becomes one of ours by the square of that factor. Where a prediction says nothing of x_0 or eps
the factor is infinite; weights are therefore cut at `CAP`, and are finite at both ends for every schedule.

A weighting takes the scales (B,) and the prediction and gives weights (B,) of F's error in [0, CAP]; SNR = (alpha / sigma)².
A density is given as its inverse distribution function, from uniform draws (B,) that the caller makes, to times (B,).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sfumato.diffusion.prediction import Prediction
from sfumato.diffusion.schedule import Scales, Schedule

Weighting = Callable[[Scales, Prediction], Tensor]
Density = Callable[..., Tensor]  # (u (B,), schedule, its options by name) -> t (B,)

CAP = 1e4
TINY = 1e-9


def _factors(scales: Scales, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor]:
    """alpha², sigma², W², a hair inside the ends, where 0 / 0 takes its limit."""
    near = Scales(scales.alpha.clamp(min=TINY), scales.sigma.clamp(min=TINY))
    _, p, q = prediction(near)
    return near.alpha**2, near.sigma**2, (q * near.alpha - p * near.sigma) ** 2


def simple(scales: Scales, prediction: Prediction) -> Tensor:
    """1: Ho et al. (2020), eq. 14, for noise; the plain square error of every other prediction."""
    return torch.ones_like(scales.alpha)


def min_snr(scales: Scales, prediction: Prediction, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) on the error of x_0, (B,) -> (B,): Hang et al. (2023), eq. 8."""
    a2, o2, w2 = _factors(scales, prediction)
    return (torch.minimum(a2, gamma * o2) / w2).clamp(max=CAP)


def soft_min_snr(scales: Scales, prediction: Prediction, gamma: float = 5.0) -> Tensor:
    """SNR gamma / (SNR + gamma) on the error of x_0: min-SNR without its kink (Crowson et al., 2024, section 4.2)."""
    a2, o2, w2 = _factors(scales, prediction)
    return (gamma * a2 / (a2 + gamma * o2) * o2 / w2).clamp(max=CAP)


def edm(scales: Scales, prediction: Prediction, data_std: float = 0.5) -> Tensor:
    """(r² + d²) / (r d)² on the error of x_0, r = sigma / alpha: Karras et al. (2022), table 1. 1 for edm prediction."""
    a2, o2, w2 = _factors(scales, prediction)
    return ((o2 + a2 * data_std**2) / (data_std**2 * w2)).clamp(max=CAP)


def sigmoid(scales: Scales, prediction: Prediction, bias: float = 0.0) -> Tensor:
    """sigmoid(bias - log SNR) on the error of eps: Kingma & Gao (2023), Hoogeboom et al. (2024).

    Relative to the density of times: the paper's further factor -d log SNR / dt, of uniform times, is left out.
    """
    a2, o2, w2 = _factors(scales, prediction)
    return (o2 / (o2 + a2 * math.exp(-bias)) * a2 / w2).clamp(max=CAP)


def uniform(u: Tensor, schedule: Schedule) -> Tensor:
    """t = u: every time alike, Ho et al. (2020), algorithm 1."""
    return u


def logit_normal(u: Tensor, schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit(t) ~ N(mean, std²): the middle more often than the ends (Esser et al., 2024, eq. 19)."""
    return torch.sigmoid(mean + std * torch.special.ndtri(u))


def log_normal(u: Tensor, schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """log(sigma / alpha) ~ N(mean, std²): Karras et al. (2022), table 1."""
    return schedule.time(Scales.of(mean + std * torch.special.ndtri(u))).to(u)


def cosine_interpolated(
    u: Tensor, schedule: Schedule, size: int = 64, low: int = 32, high: int = 64, limit: float = 15.0
) -> Tensor:
    """Log SNR of a cosine schedule shifted for a noise resolution that moves from `high` to `low` with the noise.

    Hoogeboom et al. (2023), section 3.1, for pictures of `size`; log SNR is kept within ±`limit` before it is shifted.
    """
    begin, end = (math.atan(math.exp(-0.5 * s * limit)) for s in (1.0, -1.0))
    logsnr = -2 * torch.tan(begin + u.double() * (end - begin)).log()
    shift = torch.lerp(
        torch.full_like(logsnr, 2 * math.log(high / size)),
        torch.full_like(logsnr, 2 * math.log(low / size)),
        u.double(),
    )
    return schedule.time(Scales.of(-(logsnr + shift) / 2)).to(u)


def stratified(u: Tensor, places: Tensor, batch: int) -> Tensor:
    """Uniform draws u (B,) moved into one of `batch` equal strata each, by the example's place in the whole batch (B,).

    Each batch then covers all times evenly, with the same density (Kingma et al., 2021, appendix I.1). What comes out is
    uniform on [0, 1) again and may go into any density.
    """
    return ((places.to(u) + u) / batch).clamp(max=1 - 2**-24)  # the sum may round up to a whole number


WEIGHTINGS: dict[str, Weighting] = {
    "simple": simple,
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "edm": edm,
    "sigmoid": sigmoid,
}
DENSITIES: dict[str, Density] = {
    "uniform": uniform,
    "logit_normal": logit_normal,
    "log_normal": log_normal,
    "cosine_interpolated": cosine_interpolated,
}


def weighting(name: str, data_std: float = 0.5) -> Weighting:
    """The weighting of this name; `data_std`, the data's standard deviation, is edm's. Raises `ValueError` with the known
    names."""
    if name not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {name!r}; known: {', '.join(WEIGHTINGS)}")
    return partial(edm, data_std=data_std) if name == "edm" else WEIGHTINGS[name]


def density(name: str) -> Density:
    """The density of this name. Raises `ValueError` with the known names."""
    if name not in DENSITIES:
        raise ValueError(f"unknown density {name!r}; known: {', '.join(DENSITIES)}")
    return DENSITIES[name]
