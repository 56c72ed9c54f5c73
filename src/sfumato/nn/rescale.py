"""Maps brought to another grid: exact area averages, and the learned way from there to the latent's places."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.nn.conv import Conv2d, Downsample


def shares(length: int, out: int) -> Tensor:
    """(out, length): the share of each old place in each new one. Rows sum to 1, and no place counts twice."""
    old = torch.arange(length, dtype=torch.float64)
    new = torch.arange(out, dtype=torch.float64) * (length / out)
    upper = torch.minimum(old[None] + 1, new[:, None] + length / out)
    lower = torch.maximum(old[None], new[:, None])
    return ((upper - lower).clamp(min=0) * (out / length)).float()


def area(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size): each new place is the mean of the area it covers, exactly, for any two sizes.

    One-hot maps stay shares that sum to 1; where the new grid is finer, old places are repeated.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    down, across = (shares(a, b).to(x) for a, b in zip(x.shape[-2:], size, strict=True))
    with torch.autocast(x.device.type, enabled=False):
        return down @ x @ across.T


def smaller(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size): bilinear, antialiased. As `F.interpolate`, in products, whose gradient Apple's GPUs
    have too."""
    filters = [
        F.interpolate(torch.eye(n, device=x.device)[None, None], (m, n), mode="bilinear", antialias=True)[0, 0].to(x)
        for n, m in zip(x.shape[-2:], size, strict=True)
    ]
    with torch.autocast(x.device.type, enabled=False):
        return filters[0] @ x @ filters[1].T


def blurred(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> the same shape: each place the mean of `side` x `side` around it, edges repeated."""
    before, after = (side - 1) // 2, side // 2
    return F.avg_pool2d(F.pad(x, (before, after, before, after), mode="replicate"), side, 1)


class Rescaler(nn.Module):
    """(B, K, 2^stages h, 2^stages w) -> (B, width, h, w): halved `stages` times by learned layers.

    `before(h, w)` says the sides of its input, so that its output lies on the latent's grid, whatever that is.
    """

    def __init__(self, channels: int, width: int, stages: int) -> None:
        super().__init__()
        self.stages = stages
        self.into = Conv2d(channels, width, 1)
        self.down = nn.ModuleList(Downsample(width, width) for _ in range(stages))
        self.out = Conv2d(width, width, 3, padding=1)

    def before(self, size: tuple[int, int]) -> tuple[int, int]:
        """The sides of the input for an output of `size`."""
        return size[0] << self.stages, size[1] << self.stages

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x.to(self.into.weight.dtype))
        for layer in self.down:
            h = layer(F.silu(h))
        result: Tensor = self.out(F.silu(h))
        return result
