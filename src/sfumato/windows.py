"""Overlapping windows over a picture or a latent, and their blend: what is too large at once is done in parts.

Windows are laid at a stride, the last one flush with the edge, so that every place is covered. A window counts most in
its middle and fades towards its edges; contributions are divided by their total weight, so where all windows agree the
blend is exact, and where they do not there is no seam.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """A part of a canvas, in its own units (latent places or pixels)."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, x: Tensor) -> Tensor:
        """The view (..., height, width) of x (..., H, W), a copy where the window reaches over the right edge to the left."""
        rows, over = x[..., self.top : self.top + self.height, :], self.left + self.width - x.shape[-1]
        if 0 < over <= self.left < x.shape[-1]:
            return torch.cat([rows[..., self.left :], rows[..., :over]], -1)
        return rows[..., self.left : self.left + self.width]

    def times(self, factor: int) -> "Window":
        """The same window in units `factor` times smaller: latent places to pixels."""
        return Window(*(factor * n for n in self))


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin along a side. Raises `ValueError` unless 1 <= stride <= size."""
    if not 1 <= stride <= size:
        raise ValueError(f"windows of {size} need a stride between 1 and {size} to cover everything; got {stride}")
    if length <= size:
        return [0]
    return [*range(0, length - size, stride), length - size]


def windows(height: int, width: int, size: int, stride: int, wrap: bool = False) -> Iterator[Window]:
    """Windows of `size`, smaller only where the canvas is, row by row, covering (height, width).

    With `wrap` the right edge goes on at the left: windows begin at every stride, and the last ones reach over the edge.
    """
    for top in starts(height, size, stride):
        for left in range(0, width, stride) if wrap else starts(width, size, stride):
            yield Window(top, left, min(size, height), min(size, width))


def fade(height: int, width: int, overlap: int) -> Tensor:
    """The weight of a window's places (height, width) float32: 1 inside, falling linearly over `overlap` to the edge."""
    sides = []
    for length in (height, width):
        place = torch.arange(length) + 1.0
        sides.append((torch.minimum(place, place.flip(0)) / (overlap + 1)).clamp(max=1.0))
    return sides[0][:, None] * sides[1][None, :]


def blend(
    x: Tensor,
    size: int,
    stride: int,
    work: Callable[[Window, Tensor], Tensor],
    factor: int = 1,
    overlap: int | None = None,
    wrap: bool = False,
) -> Tensor:
    """The parts `work(window, x's part)`, blended into one (B, K, factor H, factor W).

    x is (B, C, H, W); `work` gives (B, K, factor h, factor w) for a window (h, w) of it. `overlap` is the width over
    which windows fade into one another, in places of x; by default what they share, size - stride. With `wrap` windows
    reach over the right edge to the left one.
    """
    if wrap:
        return _blend_around(x, size, stride, work, factor, overlap)
    height, width = x.shape[-2:]
    total, weights = None, None
    for window in windows(height, width, size, stride):
        part = work(window, window.crop(x))
        if total is None or weights is None:
            total = part.new_zeros(*part.shape[:2], factor * height, factor * width)
            weights = part.new_zeros(factor * height, factor * width)
        fine = window.times(factor)
        shared = factor * (size - stride if overlap is None else overlap)
        weight = fade(fine.height, fine.width, shared).to(part)
        fine.crop(total).add_(part * weight)
        fine.crop(weights).add_(weight)
    assert total is not None, "a canvas has at least one window"
    assert weights is not None
    return total / weights


def _blend_around(
    x: Tensor, size: int, stride: int, work: Callable[[Window, Tensor], Tensor], factor: int, overlap: int | None
) -> Tensor:
    """`blend` on a canvas whose right edge goes on at the left: each window is turned to the middle and back."""
    height, width = x.shape[-2:]
    total: Tensor | None = None
    weights: Tensor | None = None
    shared = factor * (size - stride if overlap is None else overlap)
    for window in windows(height, width, size, stride, wrap=True):
        left = window.left
        fine = window._replace(left=0).times(factor)
        part = work(window, window._replace(left=0).crop(x.roll(-left, -1)))
        weight = fade(fine.height, fine.width, shared).to(part)
        sums = part.new_zeros(*part.shape[:2], factor * height, factor * width)
        counts = part.new_zeros(factor * height, factor * width)
        fine.crop(sums).copy_(part * weight)
        fine.crop(counts).copy_(weight)
        sums, counts = sums.roll(factor * left, -1), counts.roll(factor * left, -1)
        total, weights = (sums, counts) if total is None or weights is None else (total + sums, weights + counts)
    assert total is not None, "a canvas has at least one window"
    assert weights is not None
    return total / weights
