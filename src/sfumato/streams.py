"""Counter-based randomness: every draw is a function of what it is for, not of what was drawn before.

NumPy's Philox (Salmon et al., 2011) is keyed by (seed, purpose, image, step). So the noise of image i is the same
whatever the batch it is in, the device it goes to, or the number of processes, and a resumed run sees what an
uninterrupted one would. All draws are made on the CPU in float32.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

LOWEST, DEPTH = -24, 11  # octave below which a path is one cell; halvings of an octave
Array = np.ndarray[Any, np.dtype[np.float32]]


def generator(seed: int, purpose: str, image: int = 0, step: int = 0) -> np.random.Generator:
    """The generator of this key. Seeds and images are taken modulo 2^64, steps modulo 2^32."""
    low = (zlib.crc32(purpose.encode(errors="surrogateescape")) << 32) | (step & 0xFFFFFFFF)
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
        self._places: dict[tuple[tuple[int, ...], float], list[Array]] = {}  # paths where they were read last

    def normal(self, shape: Sequence[int], step: int, like: Tensor | None = None) -> Tensor:
        """Draws (len(seeds), *shape) for a step; step 0 is x_T, the noise injected in step n is n + 1."""
        rows = torch.cat([normal(shape, seed, self.purpose, [0], step) for seed in self.seeds])
        return _sent(rows, like)

    def between(self, shape: Sequence[int], low: float, high: float, like: Tensor | None = None) -> Tensor:
        """(W(high) - W(low)) / sqrt(high - low), (len(seeds), *shape), for a Brownian path W an image.

        A path is drawn where it is read (Lévy's construction, octave by octave of its time), so an increment depends on
        its two ends alone: two half steps sum to the whole one. Two ends in one cell of 1/2048 of an octave
        share its draw, and their increment is too small; of 1000 steps up to sixteen are so. Raises `ValueError` unless 0 <= low < high < infinity.
        """
        if not 0 <= low < high < math.inf:
            raise ValueError(f"a Brownian increment needs 0 <= low < high < infinity; got {low}, {high}")
        ends = zip(self.seeds, self._at(shape, low), self._at(shape, high), strict=True)
        rows = [_increment(tuple(shape), seed, self.purpose, (low, a), (high, b)) for seed, a, b in ends]
        return _sent(torch.from_numpy(np.stack(rows)), like)

    def _at(self, shape: Sequence[int], time: float) -> list[Array]:
        """Each path's way into the octave of a time; the last few are kept, for the next step begins where one ended."""
        key = (tuple(shape), time)
        if key not in self._places:
            while len(self._places) > 3:
                del self._places[next(iter(self._places))]
            octave = _octave(time)
            self._places[key] = [_within(key[0], seed, self.purpose, octave, time) for seed in self.seeds]
        return self._places[key]


def _increment(
    shape: tuple[int, ...], seed: int, purpose: str, low: tuple[float, Array], high: tuple[float, Array]
) -> Array:
    total = high[1] - low[1]
    for octave in range(_octave(low[0]), _octave(high[0])):
        total = total + _draw(shape, seed, purpose, octave, 0) * math.sqrt(_width(octave))
    increment: Array = total / math.sqrt(high[0] - low[0])
    return increment


def _within(shape: tuple[int, ...], seed: int, purpose: str, octave: int, time: float) -> Array:
    """W(time) - W(start of the octave): midpoints are drawn down to the cell of `time`, then a bridge inside it."""
    begin, width = _begin(octave), _width(octave)
    share, left = (time - begin) / width, np.zeros(shape, dtype=np.float32)
    if share <= 0:
        return left
    right = _draw(shape, seed, purpose, octave, 0) * math.sqrt(width)
    node = 1
    for _ in range(DEPTH):
        middle = (left + right) / 2 + _draw(shape, seed, purpose, octave, node) * (math.sqrt(width) / 2)
        upper, width = share >= 0.5, width / 2
        left, right = (middle, right) if upper else (left, middle)
        share, node = 2 * share - upper, 2 * node + upper
    spread = math.sqrt(width * share * (1 - share))
    inner: Array = left + (right - left) * share + _draw(shape, seed, purpose, octave, node) * spread
    return inner


def _draw(shape: tuple[int, ...], seed: int, purpose: str, octave: int, node: int) -> Array:
    rng = generator(seed, f"{purpose}/path", octave - LOWEST, node)
    return rng.standard_normal(shape, dtype=np.float32)


def _octave(time: float) -> int:
    return LOWEST if time <= 0 else max(math.floor(math.log2(time)), LOWEST)


def _begin(octave: int) -> float:
    return 0.0 if octave == LOWEST else 2.0**octave


def _width(octave: int) -> float:
    return 2.0 ** (LOWEST + 1) if octave == LOWEST else 2.0**octave


def _sent(rows: Tensor, like: Tensor | None) -> Tensor:
    """On the device and in the type of `like`, without making the host wait for it."""
    if like is None:
        return rows
    if like.is_cuda:
        return rows.pin_memory().to(like.device, non_blocking=True).to(like.dtype)
    return rows.to(like)
