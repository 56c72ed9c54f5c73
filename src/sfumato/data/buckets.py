"""Pictures of any shape in nearly their own: buckets of equal shape, each batch of one of them.

All shapes have about as many pixels as the square of `size`, so that a batch costs the same whichever it is. Every picture
is shown equally often: a bucket has its share of the steps, and goes through its own pictures in orders of its own.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from sfumato import streams
from sfumato.config import Config
from sfumato.shape import Shape


class BucketsConfig(Config):
    """Which shapes there are. Each is the largest of its width whose pixels are not more than those of the square."""

    step: PositiveInt | None = Field(
        None,
        description="pixels that all sides are multiples of; an eighth of data.size, or the next less that divides it",
    )
    longest: float = Field(2.0, ge=1, description="longer side over the shorter one, at most; what is longer is cut")
    least: PositiveInt = Field(16, description="pictures of a bucket; those of smaller ones join the next in shape")

    def shapes(self, size: int) -> list[Shape]:
        """The shapes (height, width), from the lowest to the highest. Raises `ValueError` where `step` does not divide `size`."""
        step = self.step or max(n for n in range(1, max(size // 8, 1) + 1) if size % n == 0)
        if size % step:
            raise ValueError(f"buckets.step {step} does not divide data.size {size}; choose another")
        half = [(n, size * size // n // step * step) for n in range(step, size + 1, step)]
        half = [(short, long) for short, long in half if long <= self.longest * short]
        return sorted({*half, *((long, short) for short, long in half)}, key=lambda s: s[0] / s[1])

    def assigned(self, size: int, sides: Sequence[tuple[int, int]]) -> list[Shape]:
        """The shape of each picture of these (width, height): the nearest in proportions of those that enough pictures have,
        the more common of two that are as near. Where none has enough, it is the commonest. Raises as `shapes`."""
        shapes = self.shapes(size)
        counts = Counter(nearest(shapes, one) for one in sides)
        often = sorted(shapes, key=lambda s: -counts[s])
        kept = [shape for shape in often if counts[shape] >= self.least] or often[:1]
        return [nearest(kept, one) for one in sides]


def nearest(shapes: Sequence[Shape], sides: tuple[int, int]) -> Shape:
    """The shape whose proportions are nearest to those of a picture of this width and height, the first of several."""
    width, height = sides
    return min(shapes, key=lambda s: round(abs(math.log(s[1] * height / (s[0] * width))), 9))


class Steps:
    """Which family is shown at which position where each step, of `batch` positions, shows families of one shape.

    In a period of as many steps as there are families each bucket has as many steps as families, so that every family is
    shown `batch` times. A pure function of seed and position.
    """

    def __init__(self, shapes: Sequence[Shape], batch: int) -> None:
        """`shapes` are the families'."""
        self.batch, self.count = batch, len(shapes)
        self.offset = 0  # positions of a step that a run that goes on has left out, for its last one was shorter
        self.members = [np.array(some, np.int32) for _, some in sorted(alike(shapes).items())]
        self._period = lru_cache(maxsize=2)(self._drawn)

    def _drawn(self, seed: int, period: int) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
        """The bucket of each step of a period, and how many steps of the same one come before it in the period."""
        several = np.repeat(np.arange(len(self.members), dtype=np.int32), [len(m) for m in self.members])
        streams.generator(seed, "buckets", period).shuffle(several)
        before = np.empty_like(several)
        for bucket in range(len(self.members)):
            own = several == bucket
            before[own] = np.arange(own.sum())
        return several, before

    def family(self, seed: int, position: int) -> int:
        """The number of the family at a position."""
        step, place = divmod(position - self.offset, self.batch)
        period, turn = divmod(step, self.count)
        buckets, before = self._period(seed, period)
        members = self.members[buckets[turn]]
        shown = (period * len(members) + int(before[turn])) * self.batch + place
        epoch, at = divmod(shown, len(members))
        return int(members[order(len(members), seed, int(members[0]), epoch)[at]])


@lru_cache(maxsize=64)
def order(count: int, seed: int, bucket: int, epoch: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
    """The order of an epoch of a bucket, which is named by its first family."""
    found = np.arange(count, dtype=np.int32)
    streams.generator(seed, f"order/{bucket}", epoch).shuffle(found)
    return found


def alike(shapes: Sequence[Shape]) -> dict[Shape, list[int]]:
    """The examples of each shape."""
    found = dict[Shape, list[int]]()
    for index, shape in enumerate(shapes):
        found.setdefault(shape, []).append(index)
    return found
