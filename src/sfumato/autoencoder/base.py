"""What every first stage is: `z = E(x)`, `x~ = D(z)`, with a factor between their sides."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self

from torch import Tensor, nn

from sfumato.config import Choice


class Encoded(NamedTuple):
    """What `encode` gives: the latent for the decoder, the regularisation penalty, and what a cache can keep."""

    latent: Tensor  # (B, channels, h, w)
    penalty: Tensor  # (B,), KL in nats over image values, or the codebook's mean over latent values
    moments: Tensor | None  # (B, M, h, w), from which `sample` draws latents; None where the latent itself is kept
    codes: Tensor | None  # (B, h, w) integer codebook indices of VQ


class Autoencoder(nn.Module, ABC):
    """(B, image_channels, H, W) in [-1, 1] <-> (B, channels, H/factor, W/factor)."""

    factor: int
    channels: int
    image_channels: int
    whitened: bool = False  # its latents have mean 0 and deviation 1 already, so there is nothing to measure

    @abstractmethod
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """The latent of `images`; `noise` (B, channels, h, w) draws from the posterior, None takes its mode."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, image_channels, h * factor, w * factor), near [-1, 1] but not clamped."""

    def rebuild(self, images: Tensor, noise: Tensor | None = None) -> tuple[Encoded, Tensor]:
        """Encode and decode: what `encode` gives, and the reconstruction."""
        encoded = self.encode(images, noise)
        return encoded, self.decode(encoded.latent)

    @abstractmethod
    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """A latent from stored moments (B, M, h, w); the mode where `noise` is None."""

    def borrowed(self) -> Sequence[nn.Module]:
        """Modules that are not ours and that pictures go through on their way to a latent."""
        return ()

    def check(self, images: Tensor) -> None:
        """Raise `ValueError` where the images do not fit: their channels, or sides that the factor does not divide."""
        channels, height, width = images.shape[1:]
        if channels != self.image_channels:
            raise ValueError(f"the autoencoder takes {self.image_channels}-channel images; these have {channels}")
        if height % self.factor or width % self.factor:
            down = [max(n // self.factor, 1) * self.factor for n in (width, height)]
            raise ValueError(
                f"sizes must be multiples of the autoencoder's factor {self.factor}; got {width}x{height}, "
                f"try {down[0]}x{down[1]}"
            )


class FirstStage(Choice):
    """The recipe of an autoencoder; `kind` is a file of `sfumato/autoencoder/`."""

    home: ClassVar[str] = "sfumato.autoencoder"

    def settled(self) -> Self:
        """What a model folder keeps: the recipe with what it reads from elsewhere written into it."""
        return self

    def build(self) -> Autoencoder:
        """The autoencoder with fresh weights."""
        raise TypeError(f"{type(self).__name__} does not say how it is built")
