"""Counter-based randomness: every draw is a function of what it is for, not of what was drawn before.

NumPy's Philox (Salmon et al., 2011) is keyed by (seed, purpose, image, step). So the noise of image i is the same
whatever the batch it is in, the device it goes to, or the number of processes, and a resumed run sees what an
uninterrupted one would. All draws are made on the CPU in float32.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, purpose: str, image: int = 0, step: int = 0) -> np.random.Generator:
    """The generator of this key. Seeds and images are taken modulo 2^64, steps modulo 2^32."""
    low = (zlib.crc32(purpose.encode()) << 32) | (step & 0xFFFFFFFF)
    counter = np.array([0, 0, 0, low], dtype=np.uint64)
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, image & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(shape: Sequence[int], seed: int, purpose: str, images: Sequence[int], step: int = 0) -> Tensor:
    """Standard normal draws (len(images), *shape) float32; row k depends on images[k] only."""
    rows = [generator(seed, purpose, k, step).standard_normal(tuple(shape), dtype=np.float32) for k in images]
    return torch.from_numpy(np.stack(rows))


def uniform(shape: Sequence[int], seed: int, purpose: str, images: Sequence[int], step: int = 0) -> Tensor:
    """Uniform draws in [0, 1), (len(images), *shape) float32; row k depends on images[k] only."""
    rows = [generator(seed, purpose, k, step).random(tuple(shape), dtype=np.float32) for k in images]
    return torch.from_numpy(np.stack(rows))


class Stream:
    """The noise of one request's images: row k is keyed by `seeds[k]` alone."""

    def __init__(self, seeds: Sequence[int], purpose: str = "sample") -> None:
        self.seeds, self.purpose = list(seeds), purpose

    def normal(self, shape: Sequence[int], step: int, like: Tensor | None = None) -> Tensor:
        """Draws (len(seeds), *shape) for a step; step 0 is x_T, the noise injected in step n is n + 1."""
        rows = torch.cat([normal(shape, seed, self.purpose, [0], step) for seed in self.seeds])
        return rows if like is None else rows.to(like)
