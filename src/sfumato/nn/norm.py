"""Group normalisation that is fast and safe in every memory format.

torch's kernels are uneven on the CPU: bfloat16 group norm over channels-last maps is up to 30 times slower than over
contiguous ones, and its backward in channels-last crashes for small maps when the input's gradient is not asked for. So
the layer here makes its input contiguous where `choose.turned` says so, and computes the statistics in float32 (as every
published latent diffusion model does) unless autocast already runs the kernel, which accumulates in float32 itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import paths
from sfumato.device import fine
from sfumato.nn import choose


def last(x: Tensor) -> bool:
    """Whether a map or a kernel is channels-last, and not both layouts at once."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


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

    def forward(self, input: Tensor) -> Tensor:
        shared = _shared.get() if _sharing else None
        return self.own(input) if shared is None else shared.normalised(self, input)

    def own(self, input: Tensor) -> Tensor:
        """Normalised by the input's own statistics."""
        if not paths.fast():
            return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        if not torch.is_grad_enabled() and last(input):
            return self._last(input)
        if input.device.type != "cpu":
            weight, bias = self.weight.float(), self.bias.float()  # which a sampling has in half precision
            single = F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).to(input.dtype)
            return single.contiguous(memory_format=torch.channels_last) if last(input) else single
        if choose.turned(input):
            input = input.contiguous()
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast("cpu", enabled=False):
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)

    def _last(self, input: Tensor) -> Tensor:
        """Of a channels-last map, as one; without gradients, so the crash is far. Small maps go through the other layout."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            if not choose.turned(input):
                return F.group_norm(input, self.num_groups, weight, bias, self.eps)
            found = F.group_norm(input.contiguous(), self.num_groups, weight, bias, self.eps)
        return found.contiguous(memory_format=torch.channels_last)


class Statistics:
    """What group norms share over a picture that is seen in parts: each one's mean and variance over the whole of it.

    While `seen` is set, it tells which places of a map count (every place once over all parts), and they are summed;
    `settle` makes the sums known, and norms whose statistics are known use them instead of their input's own.
    """

    def __init__(self) -> None:
        self.seen: Callable[[Tensor], Tensor] | None = None
        self._sums: dict[GroupNorm, tuple[int, Tensor, Tensor]] = {}
        self._known: dict[GroupNorm, tuple[Tensor, Tensor]] = {}

    def normalised(self, norm: GroupNorm, input: Tensor) -> Tensor:
        """The norm's output for a part (B, C, H, W)."""
        if self.seen is not None:
            self._add(norm, self.seen(input))
        if norm not in self._known:
            return norm.own(input)
        mean, variance = self._known[norm]
        each = norm.num_channels // norm.num_groups
        scale = (variance + norm.eps).rsqrt().float().repeat_interleave(each, 1) * norm.weight.float()
        shift = norm.bias.float() - mean.float().repeat_interleave(each, 1) * scale
        return torch.addcmul(shift[..., None, None], input.float(), scale[..., None, None]).to(input.dtype)

    def settle(self) -> None:
        """Make the sums known, and begin new ones."""
        for norm, (count, total, square) in self._sums.items():
            mean = total / count
            self._known[norm] = mean, (square / count - mean.square()).clamp(min=0)
        self._sums, self.seen = {}, None

    def _add(self, norm: GroupNorm, part: Tensor) -> None:
        groups = part.detach().float()
        groups = groups.view(len(part), norm.num_groups, -1, *part.shape[-2:])
        variance, mean = (fine(v) for v in torch.var_mean(groups, (2, 3, 4), correction=0))
        places = groups[0, 0].numel()
        count, total, square = self._sums.get(norm, (0, torch.zeros_like(mean), torch.zeros_like(mean)))
        self._sums[norm] = count + places, total + places * mean, square + places * (variance + mean.square())


_shared: ContextVar[Statistics | None] = ContextVar("statistics", default=None)
_sharing = 0  # contexts that are open in all threads: compilers read a number as a constant, and no context variable


@contextmanager
def sharing(statistics: Statistics | None) -> Iterator[None]:
    """Within this context every group norm asks `statistics`; with None each uses its input's own."""
    global _sharing
    token = _shared.set(statistics)
    _sharing += 1
    try:
        yield
    finally:
        _sharing -= 1
        _shared.reset(token)
