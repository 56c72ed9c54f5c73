"""What every backbone is: `build(channels, sizes)` is the whole contract."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

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


class BackboneConfig(Choice):
    """The recipe of a backbone; `kind` is a file of `sfumato/backbones/`."""

    home: ClassVar[str] = "sfumato.backbones"

    def build(self, channels: int, sizes: Sizes) -> Backbone:
        """The backbone for latents of `channels`, with doors as wide as `sizes` says."""
        raise TypeError(f"{type(self).__name__} does not say how it is built")
