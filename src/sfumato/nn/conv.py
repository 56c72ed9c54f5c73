"""Residual blocks and the ways between resolutions, from which the coder and the U-Net are made."""

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import lanes
from sfumato.nn import choose
from sfumato.nn.norm import norm

Down = Literal["unshuffle", "strided", "asymmetric"]
Up = Literal["shuffle", "nearest"]
Change = Literal["none", "down", "up"]
M = TypeVar("M", bound=nn.Module)


def zeroed(module: M) -> M:
    """The module with all its parameters at zero: a branch that starts by adding nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Conv2d(nn.Conv2d):
    """torch's own, with a weight gradient that takes its time on no device: see `choose.apart`."""

    def forward(self, input: Tensor) -> Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str) or not choose.apart(input, self.weight):
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        if dtype != torch.bfloat16:
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(dtype)
        how = (self.stride, self.padding, self.dilation, self.groups)
        with torch.autocast("cpu", enabled=False):
            result: Tensor = _Apart.apply(input.to(dtype), self.weight.to(dtype), bias, how)  # type: ignore[no-untyped-call]
        return result


class _Apart(torch.autograd.Function):
    """A convolution whose weight gradient is a sum over parts of the batch, each worked out by one thread."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, how: Any) -> Tensor:
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, bias, ctx.how = inputs
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        rest = ([weight.shape[0]] if ctx.biased else None, stride, padding, dilation, False, [0, 0], groups)
        into, own, weights = ctx.needs_input_grad[0], torch.ops.aten.convolution_backward, [ctx.needs_input_grad[1]]
        weights.append(ctx.biased and ctx.needs_input_grad[2])
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: torch knows how
            return *own(gradient, x, weight, *rest, [into, *weights]), None
        found = [own(gradient, x, weight, *rest, [True, False, False])[0] if into else None, None, None]
        if any(weights):  # the library works both out at once, asked for one or not
            count = min(len(x), torch.get_num_threads())
            parts = list(zip(gradient.tensor_split(count), x.tensor_split(count), strict=True))
            made = lanes.one_thread_each(lambda p: own(*p, weight, *rest, [False, *weights])[1:], parts)
            found[1:] = [
                torch.stack(several).sum(0, dtype=torch.float32).to(x.dtype) if w else None
                for several, w in zip(zip(*made, strict=True), weights, strict=True)
            ]
        return *found, None


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, out, H/2, W/2).

    `unshuffle` moves 2x2 pixels into channels before a 1x1 convolution: no pixel is lost and no stride-2 weight
    gradient is needed, which is slow on CPUs. `strided` (U-Nets) and `asymmetric` (first stages: padding only right
    and below) are those of Rombach et al. (2022).
    """

    def __init__(self, channels: int, out: int, how: Down = "unshuffle") -> None:
        super().__init__()
        self.how = how
        if how == "unshuffle":
            self.conv = Conv2d(4 * channels, out, 1)
        else:
            self.conv = Conv2d(channels, out, 3, stride=2, padding=1 if how == "strided" else 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "unshuffle":
            x = F.pixel_unshuffle(x, 2)
        elif self.how == "asymmetric":
            x = F.pad(x, (0, 1, 0, 1))
        result: Tensor = self.conv(x)
        return result


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, out, 2H, 2W): a 1x1 convolution and pixel shuffle, or nearest and a 3x3 convolution."""

    def __init__(self, channels: int, out: int, how: Up = "shuffle") -> None:
        super().__init__()
        self.how = how
        self.conv = Conv2d(channels, 4 * out, 1) if how == "shuffle" else Conv2d(channels, out, 3, padding=1)
        if how == "shuffle":
            smooth_(self.conv, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "shuffle":
            return F.pixel_shuffle(self.conv(x), 2)
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


@torch.no_grad()
def smooth_(conv: nn.Conv2d, factor: int) -> None:
    """Start a convolution before `pixel_shuffle` with equal weights for the pixels of one block (Aitken et al., 2017).

    Independent weights draw a grid of the block's size into the picture, which training removes only slowly.
    """
    block = factor * factor
    conv.weight.copy_(conv.weight[::block].repeat_interleave(block, 0))
    if conv.bias is not None:
        conv.bias.copy_(conv.bias[::block].repeat_interleave(block, 0))


class ResBlock(nn.Module):
    """(B, C, H, W), embedding (B, E) or None -> (B, out, H', W'); adds to its input, so it starts as (nearly) the identity.

    `scale_shift` lets the embedding scale and shift the second norm (Dhariwal & Nichol, 2021) instead of being added
    before it. `change` halves or doubles the resolution inside the block, as in the published LSUN-Churches model.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        embedding: int = 0,
        *,
        groups: int | None = 32,
        eps: float = 1e-5,
        scale_shift: bool = True,
        change: Change = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.change, self.scale_shift = change, scale_shift
        self.norm1 = norm(channels, groups, eps)
        self.conv1 = Conv2d(channels, out, 3, padding=1)
        self.embed = nn.Linear(embedding, (2 if scale_shift else 1) * out) if embedding else None
        self.norm2 = norm(out, groups, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(Conv2d(out, out, 3, padding=1))
        self.skip = Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def _resize(self, x: Tensor) -> Tensor:
        if self.change == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.change == "up" else x

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv1(self._resize(F.silu(self.norm1(x))))
        if self.embed is None:
            h = self.norm2(h)
        else:
            assert embedding is not None
            e = self.embed(F.silu(embedding))[:, :, None, None]
            if self.scale_shift:
                scale, shift = e.chunk(2, 1)
                h = torch.addcmul(shift, self.norm2(h), 1 + scale)
            else:
                h = self.norm2(h + e)
        result: Tensor = self.skip(self._resize(x)) + self.conv2(self.dropout(F.silu(h)))
        return result
