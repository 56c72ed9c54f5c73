"""What every backbone is: `build(channels, sizes)` is the whole contract."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from sfumato.config import Choice


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


class Backbone(nn.Module, ABC):
    """(x_t (B, C, h, w), clock (B,), conditions) -> (B, C, h, w)."""

    factor: int  # sides of x_t must be multiples of it

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
