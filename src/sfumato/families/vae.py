"""`kind: vae`. The variational autoencoder as a generator (Kingma & Welling, 2014): sampled from its prior.

The first stage's coder down to a 4 x 4 map, trained on the evidence bound itself, where the divergence has weight 1
against a Gaussian likelihood whose one variance is learned (Rybkin et al., 2021): it chooses the balance, not we. What
is not worth its bits is left out of the latent, so pictures cover the data and blur.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.coder import CoderConfig
from sfumato.autoencoder.kl import KLAutoencoder, KLConfig
from sfumato.families.base import Drawn, Family, FamilyConfig, Shape, classes
from sfumato.lanes import rows_side_by_side
from sfumato.streams import Stream

START = 4
LEVEL = 2 / 255  # the width of one of 8 bits in [-1, 1]


class VaeConfig(FamilyConfig):
    """Sizes; the latent is a map of 4 x 4 places."""

    width: PositiveInt = Field(64, description="channels of the first level; doubled each halving up to 4 times")
    channels: PositiveInt = Field(16, description="of the latent: 16 make 256 numbers")

    def build(self, shape: Shape, labels: tuple[str, ...], codec: Codec | None) -> "Vae":
        return Vae(self, shape, labels)


class Bound(nn.Module):
    """The evidence bound in nats over the number of values, with uniform noise in place of the 8 bits' steps."""

    def __init__(self, coder: KLAutoencoder, named: nn.Embedding | None) -> None:
        super().__init__()
        self.coder, self.named = coder, named
        self.log_variance = nn.Parameter(torch.tensor(-2.0))

    def forward(self, batch: Drawn) -> dict[str, Tensor]:
        """Means over the batch; `bits` per dimension is the loss over log 2, and 7 more for the width of a level."""
        noise = batch.normal(self.latent(batch.images), "posterior")
        nats = self.nats(batch.images, batch.labels, noise, batch.uniform(batch.images.shape[1:], "dequantise"))
        total = nats[0] + nats[1]
        return {
            "loss": total.mean(), "distortion": nats[0].detach().mean(), "rate_nats": nats[1].detach().mean(),
            "bits": bits(total.detach()).mean(),
        }  # fmt: skip

    def latent(self, images: Tensor) -> tuple[int, int, int]:
        """The shape of a latent."""
        return self.coder.channels, images.shape[-2] // self.coder.factor, images.shape[-1] // self.coder.factor

    def nats(self, images: Tensor, labels: Tensor, noise: Tensor, dither: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(x|z) and the divergence, (B,) each, over the number of values."""
        x = images + LEVEL * (dither - 0.5)
        encoded = self.coder.encode(x, noise)
        mean = self.decoded(encoded.latent, labels)
        spread = self.log_variance.clamp(-12, 4)
        error = (x - mean).square().flatten(1).mean(1)
        return 0.5 * (error * (-spread).exp() + spread + math.log(2 * math.pi)), encoded.penalty

    def decoded(self, latent: Tensor, labels: Tensor) -> Tensor:
        """The likelihood's mean."""
        if self.named is not None:
            latent = latent + self.named(labels).reshape(len(latent), -1, 1, 1)
        return self.coder.decode(latent)


def bits(nats: Tensor) -> Tensor:
    """Bits per dimension of 8-bit pictures, of a density of values in [-1, 1] in nats."""
    return nats / math.log(2) - math.log2(LEVEL)


class Vae(Family):
    """One evaluation a picture."""

    def __init__(self, config: VaeConfig, shape: Shape, labels: tuple[str, ...]) -> None:
        super().__init__()
        factor = shape.size // START
        if shape.size % START or factor & (factor - 1):
            raise ValueError(f"a vae makes pictures of {START} times a power of two pixels; got {shape.size}")
        self.config, self.shape, self.labels = config, shape, labels
        stem = min(2, factor)
        levels = int(math.log2(factor // stem)) + 1
        coder = CoderConfig(
            factor=factor, channels=config.channels, image_channels=shape.channels, stem=stem, width=config.width,
            multipliers=tuple(min(2**k, 4) for k in range(levels)), blocks=1, decoder_blocks=1, middle_blocks=1,
            middle_attention=False, refine=16, down="unshuffle", up="nearest", groups=8,
        )  # fmt: skip
        self.bound = Bound(KLAutoencoder(KLConfig(coder=coder, bottleneck=False)), classes(labels, config.channels))
        self.turns = {"vae": self.bound}

    def learned(self, turn: str) -> Sequence[nn.Module]:
        return [self.bound]

    @torch.no_grad()
    def sample(self, noise: Stream, labels: Tensor, guidance: float = 1.0) -> Tensor:
        """The likelihood's mean at a draw of the prior: its own noise would only be seen as noise."""
        z = noise.normal((self.config.channels, START, START), 0).to(labels.device)
        made = rows_side_by_side(lambda part: self.bound.decoded(z[part], labels[part]), len(z), z.device)
        return made.clamp(-1, 1)

    @torch.no_grad()
    def bits(self, images: Tensor, labels: Tensor) -> Tensor:
        draws = Drawn(images, labels, tuple(range(len(images))), 0)
        noise = draws.normal(self.bound.latent(images), "posterior")
        nats = self.bound.nats(images, labels, noise, draws.uniform(images.shape[1:], "dequantise"))
        return bits(nats[0] + nats[1])
