"""What every backbone is: `build(channels, sizes)` is the whole contract."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import paths
from sfumato.config import Choice
from sfumato.lanes import rows_side_by_side
from sfumato.nn.compiled import is_compiled
from sfumato.nn.norm import last

TOKENS = 16


class Sizes(Protocol):
    """Widths of the doors that the conditions come by; 0 where one is shut."""

    @property
    def vector(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def image(self) -> int: ...


class Conditions(Protocol):
    """What a backbone reads: vector (B, V), tokens (B, N, W), mask (B, N), image (B, K, h, w), or None."""

    @property
    def vector(self) -> Tensor | None: ...
    @property
    def tokens(self) -> Tensor | None: ...
    @property
    def mask(self) -> Tensor | None: ...
    @property
    def image(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Rows:
    """Some rows of a batch's conditions."""

    vector: Tensor | None
    tokens: Tensor | None
    mask: Tensor | None
    image: Tensor | None

    @classmethod
    def of(cls, cond: Conditions, part: slice, dtype: torch.dtype) -> "Rows":
        """The rows in `part`; numbers are cast to `dtype`, that of the network's weights."""
        vector, tokens, image = (
            None if x is None else x[part].to(dtype) for x in (cond.vector, cond.tokens, cond.image)
        )
        return cls(vector, tokens, None if cond.mask is None else cond.mask[part], image)

    @classmethod
    def rounded(cls, cond: Conditions) -> "Rows":
        """All rows, with tokens (B, N, W) padded to a multiple of `TOKENS`: a compiler meets few numbers then."""
        tokens, mask = cond.tokens, cond.mask
        if tokens is not None and (missing := -tokens.shape[1] % TOKENS):
            mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
            tokens, mask = F.pad(tokens, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        return cls(cond.vector, tokens, mask, cond.image)


class Backbone(nn.Module, ABC):
    """(x_t (B, C, h, w), clock (B,), conditions) -> (B, C, h, w), in x_t's type.

    Where no gradient is wanted the CPU's lanes share the batch, and the weights may be in half precision and
    channels-last (`for_sampling`). It may be compiled (`nn/compiled.py`).
    """

    factor: int  # sides of x_t must be multiples of it

    def __call__(self, x_t: Tensor, clock: Tensor, cond: Conditions | None = None) -> Tensor:
        ready = is_compiled(self)
        if ready and cond is not None:
            cond = Rows.rounded(cond)
        if torch.is_grad_enabled() or not paths.fast():
            return self._plainly(x_t, clock, cond)
        weights = [p for p in self.parameters() if p.ndim > 1]
        weight = next((p for p in weights if p.ndim == 4), weights[0])  # a convolution's tells how maps lie
        layout = torch.channels_last if last(weight) else torch.contiguous_format

        def some(part: slice) -> Tensor:
            rows = x_t[part].to(weight.dtype).contiguous(memory_format=layout)
            given = None if cond is None else Rows.of(cond, part, weight.dtype)
            made: Tensor = super(Backbone, self).__call__(rows, clock[part], given)
            return made.to(x_t.dtype)

        if ready:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return some(slice(0, len(x_t))).clone()  # the next call of a captured graph writes to the same place
        return rows_side_by_side(some, len(x_t), x_t.device)

    def _plainly(self, x_t: Tensor, clock: Tensor, cond: Conditions | None) -> Tensor:
        """One call of the network, which may be in half precision here too."""
        dtype = next((p.dtype for p in self.parameters() if p.ndim > 1), x_t.dtype)
        if dtype in (torch.bfloat16, torch.float16):
            cond = None if cond is None else Rows.of(cond, slice(None), dtype)
            half: Tensor = super().__call__(x_t.to(dtype), clock, cond)
            return half.to(x_t.dtype)
        result: Tensor = super().__call__(x_t, clock, cond)
        return result

    @abstractmethod
    def forward(self, x_t: Tensor, clock: Tensor, cond: Conditions | None = None) -> Tensor:
        """The network's output for noisy latents at the times that the clock tells."""


def beside(x_t: Tensor, cond: Conditions | None, width: int) -> Tensor:
    """x_t (B, C, h, w) with the image condition of `width` channels laid beside it, (B, C + width, h, w).

    Raises `ValueError` where there is none, or where it lies on another grid: conditions are made for a size, and
    stretching them here would hide that they were made for another one.
    """
    if not width:
        return x_t
    if cond is None or cond.image is None:
        raise ValueError("this network needs an image condition laid beside the latent; give the bundle's null")
    if cond.image.shape[-2:] != x_t.shape[-2:]:
        have, want = ("x".join(map(str, t.shape[-2:])) for t in (cond.image, x_t))
        raise ValueError(f"the image condition is {have} and the latent {want}; make the conditions for that `size`")
    return torch.cat([x_t, cond.image.to(x_t.dtype)], 1)


class BackboneConfig(Choice):
    """The recipe of a backbone; `kind` is a file of `sfumato/backbones/`."""

    home: ClassVar[str] = "sfumato.backbones"

    def build(self, channels: int, sizes: Sizes) -> Backbone:
        """The backbone for latents of `channels`, with doors as wide as `sizes` says."""
        raise TypeError(f"{type(self).__name__} does not say how it is built")
