"""Does a model make its training pictures again? Distances to the nearest training picture, samples beside held-out ones.

A held-out picture is as near to the training set as an honest picture of its kind is. Samples that are nearer, many of
them, are copies (Carlini et al., 2023; Somepalli et al., 2023). Distances are between feature vectors of length one, so
that 0 is the same picture and 2 the opposite.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

QUANTILE = 0.01  # of held-out distances: nearer than that is suspicious


class Nearest(NamedTuple):
    """For each picture the training picture that is nearest to it, and how far that is in [0, 2]."""

    indices: Tensor
    distances: Tensor


def nearest(pictures: Tensor, train: Tensor, at_once: int = 1024) -> Nearest:
    """Of features (N, D) against (M, D). Raises `ValueError` where one of them is empty."""
    if not len(pictures) or not len(train):
        raise ValueError("there is nothing to compare: give samples and training pictures")
    bank = F.normalize(train.double(), dim=1)
    found = [(F.normalize(part.double(), dim=1) @ bank.T).max(1) for part in torch.split(pictures, at_once)]
    likeness = torch.cat([f.values for f in found]).clamp(-1, 1)
    return Nearest(torch.cat([f.indices for f in found]), (2 - 2 * likeness).clamp(min=0).sqrt().float())


def memorising(samples: Tensor, held_out: Tensor, train: Tensor) -> dict[str, Any]:
    """Quantiles of both kinds of distances, and the share of samples nearer than a hundredth of held-out pictures are.

    Features (N, D). `suspicious` is that share: 0.01 where samples are no nearer than held-out pictures; the expected
    chance spread of it stands beside. `pairs` are the nearest samples: [sample, training picture, distance].
    """
    own, other = nearest(samples, train), nearest(held_out, train)
    edge = float(torch.quantile(other.distances, QUANTILE))
    order = own.distances.argsort()[:8].tolist()
    return {
        "samples": _quantiles(own.distances),
        "held_out": _quantiles(other.distances),
        "suspicious": float((own.distances < edge).float().mean()),
        "expected": QUANTILE,
        "± by chance": (QUANTILE * (1 - QUANTILE) * (1 / len(samples) + 1 / len(held_out))) ** 0.5,
        "pairs": [[k, int(own.indices[k]), round(float(own.distances[k]), 4)] for k in order],
    }


def _quantiles(distances: Tensor) -> dict[str, float]:
    return {
        name: round(float(torch.quantile(distances, q)), 4)
        for name, q in (("least", 0.0), ("1 %", 0.01), ("10 %", 0.1), ("median", 0.5))
    }
