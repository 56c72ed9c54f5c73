"""Does a model make its training pictures again? Distances to the nearest training picture, samples beside held-out ones.

A held-out picture is as near to the training set as an honest picture of its kind is. Samples that are nearer, many of
them, are copies (Carlini et al., 2023; Somepalli et al., 2023). Distances are between feature vectors of length one, so
that 0 is the same picture and 2 the opposite.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

QUANTILE = 0.01  # of held-out distances: nearer than that is suspicious
SAME = 1e-3  # a distance below which two pictures are one
SHOWN = 8  # pairs of a table


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

    Features (N, D) and (n, D). The edge is the k-th smallest distance of the n held-out ones, k the hundredth of n + 1 or
    1: a picture of the same kind is nearer with probability k / (n + 1), whatever the distances are, which is `expected`
    of `suspicious`, the share of samples that are; `± by chance` is the standard deviation, over both draws. `chance` is
    the probability that honest samples show such a share or more. `pairs` are the nearest samples: [sample, training
    picture, distance]; `listed` gives all.
    """
    own, other = nearest(samples, train), nearest(held_out, train)
    n, count = len(held_out), len(samples)
    k = max(1, round(QUANTILE * (n + 1)))
    edge = max(float(other.distances.sort().values[k - 1]), SAME)
    nearer, expected = int((own.distances < edge).sum()), k / (n + 1)
    spread = expected * (1 - expected) * (1 + (n + 1) / count) / (n + 2)
    return {
        "samples": _quantiles(own.distances),
        "held_out": _quantiles(other.distances),
        "suspicious": nearer / count,
        "expected": expected,
        "± by chance": spread**0.5,
        "chance": chance(nearer, count, k, n),
        "pairs": [[row["index"], row["nearest"], row["distance"]] for row in listed(own)[:SHOWN]],
    }


def chance(nearer: int, count: int, k: int, n: int) -> float:
    """The probability that of `count` samples at least `nearer` are below the k-th of n held-out values of their kind.

    All orders being as likely, it is that of fewer than k held-out ones among the `nearer` + k - 1 lowest of all.
    """
    lowest, found = nearer + k - 1, 0
    for out in range(max(0, lowest - count), min(k, n + 1)):
        found += math.comb(n, out) * math.comb(count, lowest - out)
    return found / math.comb(n + count, lowest)


def listed(found: Nearest) -> list[dict[str, Any]]:
    """Every picture's nearest training picture: `index`, `nearest`, `distance`, the nearest first."""
    order = found.distances.argsort(stable=True).tolist()
    return [
        {"index": k, "nearest": int(found.indices[k]), "distance": round(float(found.distances[k]), 4)} for k in order
    ]


def _quantiles(distances: Tensor) -> dict[str, float]:
    return {
        name: round(float(torch.quantile(distances, q)), 4)
        for name, q in (("least", 0.0), ("1 %", 0.01), ("10 %", 0.1), ("median", 0.5))
    }
