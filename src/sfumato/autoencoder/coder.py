"""The convolutional encoder and decoder shared by the KL and VQ first stages, for any power-of-two factor.

The shape of Rombach et al. (2022): residual levels joined by down- and upsampling, self-attention in the middle. Three
options are ours. A `stem` moves blocks of pixels into channels first, so that no wide convolution runs at full
resolution: at 64 pixels this is eight times less work. A decoder that ended in the opposite shuffle would draw a faint
grid of blocks, because no weight sees two blocks' finished pixels; so `refine` channels pass through a few thin
full-resolution convolutions after the shuffle. Without `groups` the norms look at a place and not at the whole map, so
that a place's latents do not change with the size of the picture around it.
"""

import math
from collections.abc import Iterator
from typing import Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.autoencoder.tiling import Contracting, Expanding
from sfumato.config import Config
from sfumato.nn.attention import MapAttention
from sfumato.nn.conv import Conv2d, Down, Downsample, ResBlock, Up, Upsample, smooth_, zeroed
from sfumato.nn.norm import norm
from sfumato.nn.recompute import levels


class CoderConfig(Config):
    """Sizes of the encoder and the decoder. Attention is listed by downsampling factor, like the U-Net's."""

    factor: PositiveInt = Field(8, description="pixels a latent's side stands for; a power of two")
    channels: PositiveInt = Field(4, description="channels of the latent")
    image_channels: PositiveInt = 3
    stem: PositiveInt = Field(
        1, description="side of the pixel blocks moved into channels before the first convolution"
    )
    width: PositiveInt = 128
    multipliers: tuple[PositiveInt, ...] = Field((), description="width of each level over `width`; () doubles up to 4")
    blocks: PositiveInt = Field(2, description="residual blocks a level in the encoder")
    decoder_blocks: PositiveInt | None = Field(
        None, description="residual blocks a level in the decoder; None: one more"
    )
    middle_blocks: int = Field(2, ge=0, description="residual blocks at the lowest resolution")
    attention: tuple[PositiveInt, ...] = ()
    middle_attention: bool = True
    refine: int = Field(0, ge=0, description="channels of the full-resolution convolutions that end the decoder")
    down: Down = "asymmetric"
    up: Up = "nearest"
    groups: PositiveInt | None = Field(
        32, description="of the group norms, as published; null: each place is normalised by itself, alike at any size"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("factor", "stem"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"{name} must be a power of two; got {value}")
        if self.factor % self.stem:
            raise ValueError(f"stem {self.stem} is larger than factor {self.factor}; choose a stem that divides it")
        if self.multipliers and len(self.multipliers) != self.levels:
            raise ValueError(
                f"factor {self.factor} with stem {self.stem} has {self.levels} levels; got {len(self.multipliers)} multipliers"
            )
        return self

    def attended(self) -> None:
        """Raise `ValueError` where `attention` names a factor that is no level's, and would do nothing.

        Asked before a training alone: older model folders that hold such a one are opened as they are.
        """
        factors = [self.stem * 2**level for level in range(self.levels)]
        if strange := sorted(set(self.attention) - set(factors)):
            raise ValueError(f"attention {strange} is at no level; the levels' downsampling factors are {factors}")

    @property
    def levels(self) -> int:
        """Resolutions after the stem, the lowest included."""
        return int(math.log2(self.factor // self.stem)) + 1

    @property
    def widths(self) -> list[int]:
        """Channels of each level, highest resolution first."""
        return [self.width * m for m in self.multipliers or tuple(min(2**i, 4) for i in range(self.levels))]

    def attends(self, level: int) -> bool:
        """Whether the blocks of this level have self-attention."""
        return self.stem * 2**level in self.attention

    def block(self, channels: int, out: int) -> ResBlock:
        """A residual block without an embedding, with the autoencoders' eps."""
        return ResBlock(channels, out, groups=self.groups, eps=1e-6)

    def attend(self, channels: int) -> MapAttention:
        """One-head self-attention with the autoencoders' eps."""
        return MapAttention(channels, groups=self.groups, eps=1e-6)

    def middle(self, width: int) -> nn.Sequential:
        """The blocks at the lowest resolution, attention after the first."""
        layers: list[nn.Module] = [self.block(width, width) for _ in range(self.middle_blocks)]
        if self.middle_attention:
            layers.insert(1, self.attend(width))
        return nn.Sequential(*layers)


def _finish(config: CoderConfig, width: int, out: int) -> list[nn.Module]:
    return [norm(width, config.groups, eps=1e-6), nn.SiLU(), Conv2d(width, out, 3, padding=1)]


class Encoder(Contracting):
    """(B, image_channels, H, W) -> (B, out, H/factor, W/factor)."""

    def __init__(self, config: CoderConfig, out: int) -> None:
        widths, width = config.widths, config.widths[0]
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.stem)] if config.stem > 1 else []
        layers.append(Conv2d(config.image_channels * config.stem**2, width, 3, padding=1))
        fine = len(layers)
        for level, wide in enumerate(widths):
            for _ in range(config.blocks):
                layers.append(config.block(width, wide))
                width = wide
                if config.attends(level):
                    layers.append(config.attend(width))
            if level < config.levels - 1:
                layers.append(Downsample(width, width, config.down))
                fine = len(layers)
        coarse = [*layers[fine:], config.middle(width), *_finish(config, width, out)]
        super().__init__(config.factor, layers[:fine], coarse)
        self.stem = config.stem

    def levelled(self) -> Iterator[tuple[int, nn.Module]]:
        """Each block with the downsampling factor of its level."""
        yield from levels(self.children(), self.stem)


class Decoder(Expanding):
    """(B, channels, h, w) -> (B, image_channels, h * factor, w * factor)."""

    def __init__(self, config: CoderConfig) -> None:
        widths, width = config.widths, config.widths[-1]
        layers: list[nn.Module] = [Conv2d(config.channels, width, 3, padding=1), config.middle(width)]
        coarse = 0
        for level in reversed(range(config.levels)):
            for _ in range(config.decoder_blocks or config.blocks + 1):
                layers.append(config.block(width, widths[level]))
                width = widths[level]
                if config.attends(level):
                    layers.append(config.attend(width))
            coarse = coarse or len(layers)
            if level:
                layers.append(Upsample(width, width, config.up))
        super().__init__(config.factor, layers[:coarse], [*layers[coarse:], *self._head(config, width)])

    def levelled(self) -> Iterator[tuple[int, nn.Module]]:
        """Each block with the downsampling factor of its level."""
        yield from levels(self.children(), self.factor)

    @staticmethod
    def _head(config: CoderConfig, width: int) -> list[nn.Module]:
        channels, stem = config.image_channels, config.stem
        if not config.refine:
            head = _finish(config, width, channels * stem**2)
            return [*head, nn.PixelShuffle(stem)] if stem > 1 else head
        head = _finish(config, width, config.refine * stem**2)
        assert isinstance(head[-1], nn.Conv2d)
        smooth_(head[-1], stem)
        return [*head, nn.PixelShuffle(stem), Refine(config.refine, channels)]


class Refine(nn.Module):
    """(B, C, H, W) -> (B, out, H, W): thin full-resolution convolutions that see across the blocks of the shuffle."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zeroed(Conv2d(channels, channels, 3, padding=1))
        self.out = Conv2d(channels, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.conv2(F.silu(self.conv1(F.silu(x))))
        result: Tensor = self.out(h)
        return result
