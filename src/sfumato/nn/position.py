"""Where a token stands on a grid: rotations of queries and keys, or vectors that are added."""

import torch
from torch import Tensor
from torch.nn import functional as F


def rotations(size: tuple[int, int], width: int, longest: float = 100.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (h w, width / 2) of 2-D rotary positions: half of the angles tell the row, half the column.

    RoPE (Su et al., 2021) by axis, as in Heo et al. (2024); periods go from 2 pi places up to about `longest` times
    that. `width` must be divisible by 4.
    """
    if width % 4:
        raise ValueError(f"rotary positions need heads whose width 4 divides; got {width}, choose other heads")
    count = width // 4
    rates = longest ** -(torch.arange(count, dtype=torch.float32) / count)
    rows, columns = (torch.arange(n, dtype=torch.float32)[:, None] * rates for n in size)
    angles = torch.cat(
        [rows[:, None].expand(-1, size[1], -1), columns[None].expand(size[0], -1, -1)],
        -1,
    ).flatten(0, 1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (first half, second half) of x (B, H, N, d) turned by the angles (N, d / 2)."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x), sin.to(x)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def sines(size: tuple[int, int], width: int, longest: float = 10_000.0) -> Tensor:
    """(h w, width): sines and cosines of the column in the first half, of the row in the second (Peebles & Xie, 2023)."""
    if width % 4:
        raise ValueError(f"sine positions need a width that 4 divides; got {width}")
    count = width // 4
    rates = longest ** -(torch.arange(count, dtype=torch.float64) / count)
    rows, columns = (torch.arange(n, dtype=torch.float64)[:, None] * rates for n in size)
    halves = [torch.cat([a.sin(), a.cos()], -1) for a in (columns, rows)]
    whole = torch.cat(
        [halves[0][None].expand(size[0], -1, -1), halves[1][:, None].expand(-1, size[1], -1)],
        -1,
    )
    return whole.flatten(0, 1).float()


def stretched(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A learned table (W, side, side) for another grid: (h w, W), bicubic where the sides differ."""
    grid = table[None]
    if tuple(table.shape[-2:]) != tuple(size):
        grid = F.interpolate(grid.float(), size, mode="bicubic", align_corners=False).to(table.dtype)
    return grid[0].flatten(1).T
