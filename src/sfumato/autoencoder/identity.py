"""`kind: identity`. No compression, f = 1: diffusion on pixels, the paper's LDM-1."""

import torch
from pydantic import PositiveInt
from torch import Tensor

from sfumato.autoencoder.base import Autoencoder, Encoded, FirstStage


class IdentityConfig(FirstStage):
    """Pixels are their own latents."""

    image_channels: PositiveInt = 3

    def build(self) -> "Identity":
        return Identity(self.image_channels)


class Identity(Autoencoder):
    """(B, C, H, W) <-> (B, C, H, W), untouched."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor, self.channels, self.image_channels = 1, channels, channels

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        self.check(images)
        return Encoded(images, torch.zeros(len(images), device=images.device), images, None)

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        return moments

    def decode(self, latent: Tensor) -> Tensor:
        return latent
