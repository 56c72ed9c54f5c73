"""Group normalisation that is fast and safe in every memory format.

torch's kernels are uneven on the CPU: bfloat16 group norm over channels-last maps is up to 30 times slower than over
contiguous ones, and its backward in channels-last crashes for small maps when the input needs no gradient. So the
layer here makes its input contiguous on the CPU where that pays, and computes the statistics in float32 (as every
published latent diffusion model does) unless autocast already runs the kernel, which accumulates in float32 itself.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def groups_for(channels: int, groups: int) -> int:
    """The largest number of groups not above `groups` that divides `channels`."""
    return next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position (Ba et al., 2016): (B, C, H, W) -> (B, C, H, W).

    It knows no neighbours, so it is exact for tiles; on channels-last maps it copies nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        rows = input.permute(0, 2, 3, 1)
        return F.layer_norm(rows, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def norm(channels: int, groups: int | None, eps: float = 1e-5) -> nn.Module:
    """Group norm, or layer norm over the channels where `groups` is None."""
    return ChannelNorm(channels, eps=eps) if groups is None else GroupNorm(channels, groups, eps)


class GroupNorm(nn.GroupNorm):
    """Wu & He (2018). (B, C, ...) -> (B, C, ...); `groups` shrinks to a divisor of `channels` where it must."""

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__(groups_for(channels, groups), channels, eps=eps)
        self.seen: tuple[Tensor, Tensor] | None = None  # mean and variance a group, (B, groups, 1), while kept or held
        self.state: Literal["free", "keep", "hold"] = "free"

    def keep(self) -> None:
        """Note the statistics of what comes next."""
        self.state = "keep"

    def hold(self) -> None:
        """Normalise by the noted statistics instead of the input's own: tiles of one picture then agree."""
        self.state = "hold" if self.seen is not None else "free"

    def release(self) -> None:
        """Forget what was noted."""
        self.seen, self.state = None, "free"

    def _apart(self, input: Tensor) -> Tensor | None:
        """With held statistics the whole norm; with kept ones these are noted and nothing is returned."""
        rows = input.float().reshape(len(input), self.num_groups, -1)
        if self.state == "keep":
            self.seen = rows.mean(2, keepdim=True), rows.var(2, keepdim=True, correction=0)
            return None
        assert self.seen is not None
        mean, variance = self.seen
        whole = ((rows - mean) * (variance + self.eps).rsqrt()).reshape(input.shape)
        shape = (-1, *[1] * (input.ndim - 2))
        return (whole * self.weight.float().reshape(shape) + self.bias.float().reshape(shape)).to(input.dtype)

    def forward(self, input: Tensor) -> Tensor:
        if self.state != "free" and (made := self._apart(input)) is not None:
            return made
        if input.device.type == "cpu" and (input.dtype != torch.float32 or not input.requires_grad):
            input = input.contiguous()
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        if input.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return F.group_norm(input, self.num_groups, weight, bias, self.eps)
        return F.group_norm(input.float(), self.num_groups, self.weight, self.bias, self.eps).to(input.dtype)
