"""`kind: tiny`. A small autoencoder of plain residual blocks: previews, and the published TAESD family.

No norm and no attention, so that tiles are exact; width 64 throughout, 1.2 M parameters a side. It has the form of TAESD
(Bohan, 2023), whose weights load after `sfumato convert taesd`; trained from scratch it is the smallest first stage
here. Inside, pictures are in [0, 1] and latents pass `3 tanh(z / 3)` on their way into the decoder.
"""

import math

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sfumato.autoencoder.base import Autoencoder, Encoded, FirstStage


class TinyConfig(FirstStage):
    """Sizes; the defaults are TAESD's, `channels: 16` is TAESD3."""

    channels: PositiveInt = 4
    image_channels: PositiveInt = 3
    factor: PositiveInt = Field(8, description="pixels a latent's side stands for; a power of two")
    width: PositiveInt = 64
    blocks: PositiveInt = Field(3, description="residual blocks a level")

    def build(self) -> "Tiny":
        if self.factor & (self.factor - 1) or self.factor < 2:
            raise ValueError(f"factor must be a power of two from 2 on; got {self.factor}")
        return Tiny(self)


class Block(nn.Module):
    """(B, C, H, W) -> the same shape: three convolutions around which the input goes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Squash(nn.Module):
    """Latents into (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class Tiny(Autoencoder):
    """(B, image_channels, H, W) in [-1, 1] <-> (B, channels, H/factor, W/factor), without a posterior."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.factor, self.channels, self.image_channels = config.factor, config.channels, config.image_channels
        levels, wide, blocks = int(math.log2(config.factor)), config.width, config.blocks
        down: list[nn.Module] = [nn.Conv2d(config.image_channels, wide, 3, padding=1), Block(wide)]
        up: list[nn.Module] = [Squash(), nn.Conv2d(config.channels, wide, 3, padding=1), nn.ReLU()]
        for _ in range(levels):
            down += [nn.Conv2d(wide, wide, 3, padding=1, stride=2, bias=False), *(Block(wide) for _ in range(blocks))]
            up += [*(Block(wide) for _ in range(blocks)), nn.Upsample(scale_factor=2)]
            up.append(nn.Conv2d(wide, wide, 3, padding=1, bias=False))
        self.encoder = nn.Sequential(*down, nn.Conv2d(wide, config.channels, 3, padding=1))
        self.decoder = nn.Sequential(*up, Block(wide), nn.Conv2d(wide, config.image_channels, 3, padding=1))

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """The latent; the penalty, the mean square of latents beyond 3, keeps them where the decoder can tell them."""
        self.check(images)
        latent: Tensor = self.encoder((images + 1) / 2).float()
        outside = (latent.abs() - 3).clamp(min=0).square().flatten(1).mean(1)
        return Encoded(latent, outside, latent, None)

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latent as it is: there is no posterior to draw from."""
        return moments

    def decode(self, latent: Tensor) -> Tensor:
        result: Tensor = self.decoder(latent)
        return result.float() * 2 - 1
