"""How far two sets of features are apart: as two Gaussians (FID, sFID), or through a kernel (KID).

The Fréchet distance of the Gaussians fitted to two sets is FID (Heusel et al., 2017) where the features are those of
the published Inception network, and sFID (Nash et al., 2021) on its spatial map; with other networks it has another
name. It is biased: fewer images give a higher number, so counts belong to it. The squared maximum mean discrepancy
under a cubic kernel, KID (Binkowski et al., 2018), is not.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato import streams

SUBSETS, SUBSET = 100, 1000  # as published: the mean over subsets of so many images


class Distance(NamedTuple):
    """A mean with its standard deviation over subsets."""

    value: float
    spread: float


class _Given(nn.Module):
    """Features that were computed before, handed through to torchmetrics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, rows: Tensor) -> Tensor:
        return rows


def frechet(real: Tensor, fake: Tensor, at_once: int = 4096) -> float:
    """|m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) of features (N, D) and (M, D), in float64.

    Raises `ValueError` for fewer than two rows, or features of different widths.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    check(real, fake)
    # every process has all features: they are not to be summed over processes
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1]), sync_on_compute=False)
    for rows, kind in ((real, True), (fake, False)):
        for part in torch.split(rows, at_once):
            metric.update(part.double(), real=kind)
    return max(float(metric.compute()), 0.0)


def kernel(real: Tensor, fake: Tensor, *, subsets: int = SUBSETS, subset: int = SUBSET, seed: int = 0) -> Distance:
    """Mean and standard deviation of the unbiased squared MMD over subsets, kernel (x y / D + 1)^3.

    Where a subset would hold both sets whole, the value is that of the whole sets, and the deviation is taken over
    subsets of half of them. Raises `ValueError` as `frechet` does.
    """
    from torchmetrics.image.kid import poly_mmd

    check(real, fake)
    size = min(subset, len(real), len(fake))
    whole = size == len(real) == len(fake)
    size = max(size // 2, 2) if whole else size
    found = []
    for k in range(subsets):
        a, b = (_rows(rows.double(), size, seed, k, name) for rows, name in ((real, "real"), (fake, "fake")))
        found.append(float(poly_mmd(a, b)))
    values = torch.tensor(found, dtype=torch.float64)
    value = float(poly_mmd(real.double(), fake.double())) if whole else float(values.mean())
    return Distance(value, float(values.std()))


def _rows(rows: Tensor, size: int, seed: int, number: int, name: str) -> Tensor:
    if size == len(rows):
        return rows
    order = streams.generator(seed, f"kernel distance, {name}", number).permutation(len(rows))[:size]
    return rows[torch.from_numpy(order)]


def check(real: Tensor, fake: Tensor) -> None:
    """Raise `ValueError` unless both are (N, D) with one D and at least two rows of finite values."""
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (N, D) with one D; got {tuple(real.shape)} and {tuple(fake.shape)}")
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"a distance of two sets needs two images in each; got {len(real)} and {len(fake)}")
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise ValueError("features are not finite; look at the pictures and at the feature network's precision")
