"""Whether generated images look like real ones (precision, density) and real ones are reached (recall, coverage).

Each set's manifold is the union of balls around its features, each as wide as the way to its k-th neighbour in the set.
Precision is the share of generated images inside the real manifold, recall that of real images inside the generated
one (Kynkäänniemi et al., 2019; k = 3). Density counts how many real balls hold a generated image, over k; coverage is
the share of real balls that hold one (Naeem et al., 2020; k = 5): outliers widen neither much.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.evaluation.frechet import check

NEIGHBOURS, DENSE = 3, 5  # k of precision and recall, k of density and coverage


class Manifold(NamedTuple):
    """Shares in [0, 1]; density may be above 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: Tensor, fake: Tensor, *, k: int = NEIGHBOURS, dense: int = DENSE, at_once: int = 1024) -> Manifold:
    """The four of features (N, D) and (M, D), in blocks of `at_once` rows.

    Raises `ValueError` where a set has too few images for its k-th neighbour.
    """
    check(real, fake)
    if len(real) <= max(k, dense) or len(fake) <= k:
        raise ValueError(
            f"neighbours {k} and {dense} need more than {max(k, dense)} images in each set; got {len(real)} and {len(fake)}"
        )
    real, fake = real.double(), fake.double()
    widths = radii(real, (k, dense), at_once)
    (other,) = radii(fake, (k,), at_once)
    inside, held, reached, recalled = (
        0,
        0,
        torch.zeros(len(real), dtype=torch.bool),
        torch.zeros(len(real), dtype=torch.bool),
    )
    for rows, widest in zip(torch.split(fake, at_once), torch.split(other, at_once), strict=True):
        distances = torch.cdist(real, rows)  # (N, rows)
        inside += int((distances <= widths[0][:, None]).any(0).sum())
        balls = distances <= widths[1][:, None]
        held += int(balls.sum())
        reached |= balls.any(1)
        recalled |= (distances <= widest[None]).any(1)
    return Manifold(
        inside / len(fake), float(recalled.double().mean()), held / (dense * len(fake)), float(reached.double().mean())
    )


def coverage(real: Tensor, fake: Tensor, *, dense: int = DENSE, at_once: int = 1024) -> float:
    """The share of real balls that hold a generated image, alone: features (N, D), N above `dense`, and (M, D)."""
    real, fake = real.double(), fake.double()
    (widths,) = radii(real, (dense,), at_once)
    balls = (torch.cdist(real, rows) <= widths[:, None] for rows in torch.split(fake, at_once))
    return float(torch.stack([found.any(1) for found in balls]).any(0).double().mean())


def radii(rows: Tensor, ks: tuple[int, ...], at_once: int = 1024) -> list[Tensor]:
    """The distance of each row to its k-th nearest other, (N,) for each k."""
    found: list[list[Tensor]] = [[] for _ in ks]
    for part in torch.split(rows, at_once):
        nearest = torch.cdist(part, rows).topk(max(ks) + 1, largest=False).values  # the first is the row itself
        for kept, k in zip(found, ks, strict=True):
            kept.append(nearest[:, k])
    return [torch.cat(kept) for kept in found]
