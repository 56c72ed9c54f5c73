"""Which part of a picture is shown: the largest centred square, or one of several drawn from its name, or of another shape.

A frame is told in shares of the picture, so that it fits a picture, its map and its boxes alike, whatever their sizes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sfumato import streams
from sfumato.shape import SQUARE, Shape, centre

Spot = tuple[Any, float, float, float, float]  # a class and its corners, shares of the picture
LEAST_SEEN = 0.1  # share of a box that a frame must show


class Frame(NamedTuple):
    """A part of a picture, a square unless its data say otherwise: its corner and sides, shares of the picture's."""

    left: float
    top: float
    width: float
    height: float

    def region(self, wide: int, high: int, shape: Shape = SQUARE) -> tuple[int, int, int, int]:
        """Its left and upper edge, width and height, in whole pixels of a picture of these sides and in proportions of
        `shape`, (height, width), to the pixel."""
        scale = min(self.width * wide / shape[1], self.height * high / shape[0])
        across = max(min(round(scale * shape[1]), wide), 1)
        down = max(min(round(scale * shape[0]), high), 1)
        return (
            min(max(round(self.left * wide), 0), wide - across),
            min(max(round(self.top * high), 0), high - down),
            across,
            down,
        )

    def square(self, wide: int, high: int) -> tuple[int, int, int]:
        """Its left and upper edge and its side, in whole pixels of a picture of these sides."""
        return self.region(wide, high)[:3]

    def cut(self, array: "np.ndarray[Any, Any]", shape: Shape = SQUARE) -> "np.ndarray[Any, Any]":
        """The part of an array (H, W, ...), in these proportions to the pixel."""
        left, top, across, down = self.region(array.shape[1], array.shape[0], shape)
        return array[top : top + down, left : left + across]

    def stepped(self, wide: int, high: int, step: int) -> "Frame":
        """The frame with its edges at multiples of `step` pixels of a picture of these sides: one that is `step` times
        smaller is cut at the same place to the pixel."""
        if step == 1:
            return self
        left, top, side = (n // step * step for n in self.square(wide, high))
        side = max(side, step)
        return Frame(left / wide, top / high, side / wide, side / high)

    def spots(self, several: Sequence[Spot]) -> list[Spot]:
        """Boxes as the frame shows them: cut at its edges, gone where less than a tenth of them is left."""
        kept: list[Spot] = []
        for label, x0, y0, x1, y1 in several:
            a0, a1 = ((x - self.left) / self.width for x in (x0, x1))
            b0, b1 = ((y - self.top) / self.height for y in (y0, y1))
            c0, c1, d0, d1 = (min(max(v, 0.0), 1.0) for v in (a0, a1, b0, b1))
            if (c1 - c0) * (d1 - d0) > LEAST_SEEN * (a1 - a0) * (b1 - b0):
                kept.append((label, c0, d0, c1, d1))
        return kept


def centred(width: int, height: int, shape: Shape = SQUARE) -> Frame:
    """The largest centred part of a picture in proportions of `shape`, (height, width)."""
    left, top, across, down = centre(width, height, shape)
    return Frame(left / width, top / height, across / width, down / height)


def drawn(width: int, height: int, name: str, number: int, closest: float) -> Frame:
    """A square drawn from the picture's name and the crop's number, its side at least `closest` of the shorter one."""
    rng = streams.generator(0, f"crop/{name}", number)
    side = rng.uniform(closest, 1.0) * min(width, height)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    return Frame(left / width, top / height, side / width, side / height)
