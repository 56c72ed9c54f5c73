"""`kind: tiny`. A small autoencoder of plain residual blocks: previews, and the published TAESD family.

No norm and no attention, so that tiles are exact; width 64 throughout, 1.2 M parameters a side. It has the form of TAESD
(Bohan, 2023), whose weights load after `sfumato convert taesd`; trained from scratch it is the smallest first stage
here. Inside, pictures are in [0, 1] and latents pass `3 tanh(z / 3)` on their way into the decoder.

With `decodes`, the model folder of another first stage, the decoder learns that one's latents: pictures go through its
encoder, which stays frozen and outside of our weights, so that a preview decoder is a few megabytes. Its latents are
whitened there, and are those that a denoiser on that first stage gives.
"""

import math
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sfumato.autoencoder.base import Autoencoder, Encoded, FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.tiling import Contracting, Expanding
from sfumato.device import at_least_single
from sfumato.nn.conv import Conv2d

SIDES: tuple[str, ...] = ("factor", "channels", "image_channels")


class TinyConfig(FirstStage):
    """Sizes; the defaults are TAESD's, `channels: 16` is TAESD3."""

    channels: PositiveInt = 4
    image_channels: PositiveInt = 3
    factor: PositiveInt = Field(8, description="pixels a latent's side stands for; a power of two")
    width: PositiveInt = 64
    blocks: PositiveInt = Field(3, description="residual blocks a level")
    decodes: Path | None = Field(None, description="model folder of the first stage whose latents are decoded")
    teacher: str = Field("", description="its fingerprint; filled in")

    def settled(self) -> Self:
        """With the sides and the fingerprint of `decodes` filled in. Raises `ValueError` where they contradict it."""
        if self.decodes is None or self.teacher:
            return self
        codec = Codec.load(self.decodes)
        found = {name: getattr(codec, name) for name in SIDES}
        for name in SIDES:
            if name in self.model_fields_set and getattr(self, name) != found[name]:
                raise ValueError(f"{name} is {found[name]} in {self.decodes}; got {getattr(self, name)}: leave it out")
        return self.model_copy(update={**found, "teacher": codec.fingerprint()})

    def build(self) -> "Tiny":
        if self.decodes is not None and not self.teacher:
            return self.settled().build()
        if self.factor & (self.factor - 1) or self.factor < 2:
            raise ValueError(f"factor must be a power of two from 2 on; got {self.factor}")
        return Tiny(self)


class Block(nn.Module):
    """(B, C, H, W) -> the same shape: three convolutions around which the input goes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Squash(nn.Module):
    """Latents into (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class Tiny(Autoencoder):
    """(B, image_channels, H, W) in [-1, 1] <-> (B, channels, H/factor, W/factor), without a posterior.

    The latent is what the encoder gives; with `decodes`, what the other first stage gives, whitened.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config, self.whitened = config, config.decodes is not None
        self._teacher: tuple[Codec, ...] = ()  # in a tuple: no part of our weights
        self.factor, self.channels, self.image_channels = config.factor, config.channels, config.image_channels
        levels, wide, blocks = int(math.log2(config.factor)), config.width, config.blocks
        down: list[nn.Module] = [Conv2d(config.image_channels, wide, 3, padding=1), Block(wide)]
        up: list[nn.Module] = [Squash(), Conv2d(config.channels, wide, 3, padding=1), nn.ReLU()]
        for _ in range(levels):
            down += [Conv2d(wide, wide, 3, padding=1, stride=2, bias=False), *(Block(wide) for _ in range(blocks))]
            up += [*(Block(wide) for _ in range(blocks)), nn.Upsample(scale_factor=2)]
            up.append(Conv2d(wide, wide, 3, padding=1, bias=False))
        last = [Conv2d(wide, config.channels, 3, padding=1)]
        self.encoder = nn.Identity() if self.whitened else Contracting(config.factor, down, last)
        up += [Block(wide), Conv2d(wide, config.image_channels, 3, padding=1)]
        self.decoder = Expanding(config.factor, up[:3], up[3:])

    def teacher(self, device: torch.device) -> Codec:
        """The first stage whose latents are decoded. Raises `ValueError` where its folder holds another one."""
        assert self.config.decodes is not None
        if not self._teacher:
            codec = Codec.load(self.config.decodes).requires_grad_(False)
            if not codec.known(self.config.teacher):
                raise ValueError(
                    f"this decoder was trained for autoencoder {self.config.teacher}, and {self.config.decodes} holds "
                    f"{codec.fingerprint()}; put the folder back, or train a decoder for this one"
                )
            self._teacher = (codec.to(device),)
        return self._teacher[0]

    def borrowed(self) -> list[nn.Module]:
        return [self.teacher(next(self.parameters()).device)] if self.whitened else []

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """The latent; the penalty, the mean square of latents beyond 3, keeps them where the decoder can tell them."""
        self.check(images)
        if self.whitened:
            with torch.no_grad():
                teacher = self.teacher(images.device)
                moments = teacher.moments(images.to(teacher.shift), tile=0).to(images)
                return Encoded(
                    self.sample(moments, noise), torch.zeros(len(images), device=images.device), moments, None
                )
        latent = at_least_single(self.encoder((images + 1) / 2))
        outside = (latent.abs() - 3).clamp(min=0).square().flatten(1).mean(1)
        return Encoded(latent, outside, latent, None)

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latent as it is: there is no posterior to draw from, but where the other first stage has one."""
        return self.teacher(moments.device).whiten(moments, noise) if self.whitened else moments

    def decode(self, latent: Tensor) -> Tensor:
        result: Tensor = self.decoder(latent)
        return at_least_single(result) * 2 - 1
