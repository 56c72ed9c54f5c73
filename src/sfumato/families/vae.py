"""`kind: vae`. The variational autoencoder as a generator (Kingma & Welling, 2014): sampled from its prior.

The first stage's coder down to a 4 x 4 map, trained on the evidence bound itself, where the divergence has weight 1
against the likelihood of 8-bit values under logistic distributions whose mean and scale the decoder says at every value
(Kingma et al., 2016; Salimans et al., 2017): it chooses the balance, not we. What is not worth its bits is left out of
the latent, so pictures cover the data and blur.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.coder import CoderConfig, Decoder
from sfumato.autoencoder.kl import KLAutoencoder, KLConfig
from sfumato.families.base import Drawn, Family, FamilyConfig, Shape, classes
from sfumato.lanes import rows_side_by_side
from sfumato.streams import Stream

START = 4
LEVEL = 2 / 255  # from one of 8 bits to the next in [-1, 1]
LEAST = -7.0  # of the log-scale: 97 % of a logistic so narrow is one value


class VaeConfig(FamilyConfig):
    """Sizes; the latent is a map of 4 x 4 places."""

    width: PositiveInt = Field(64, description="channels of the first level; doubled each halving up to 4 times")
    channels: PositiveInt = Field(16, description="of the latent: 16 make 256 numbers")

    def build(self, shape: Shape, labels: tuple[str, ...], codec: Codec | None) -> "Vae":
        return Vae(self, shape, labels)


class Bound(nn.Module):
    """The evidence bound in nats over the number of values."""

    def __init__(self, coder: KLAutoencoder, named: nn.Embedding | None) -> None:
        super().__init__()
        self.coder, self.named = coder, named

    def forward(self, batch: Drawn) -> dict[str, Tensor]:
        """Means over the batch; `bits` per dimension is the loss over log 2."""
        noise = batch.normal(self.latent(batch.images), "posterior")
        distortion, rate = self.nats(batch.images, batch.labels, noise)
        total = distortion + rate
        return {
            "loss": total.mean(), "distortion": distortion.detach().mean(), "rate_nats": rate.detach().mean(),
            "bits": total.detach().mean() / math.log(2),
        }  # fmt: skip

    def latent(self, images: Tensor) -> tuple[int, int, int]:
        """The shape of a latent."""
        return self.coder.channels, images.shape[-2] // self.coder.factor, images.shape[-1] // self.coder.factor

    def nats(self, images: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(x|z) and the divergence, (B,) each, over the number of values."""
        encoded = self.coder.encode(images, noise)
        return logistic(images, *self.decoded(encoded.latent, labels)).flatten(1).mean(1), encoded.penalty

    def decoded(self, latent: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The likelihood's mean and the logarithm of its scale, of every value."""
        if self.named is not None:
            latent = latent + self.named(labels).reshape(len(latent), -1, 1, 1)
        mean, scale = self.coder.decode(latent).chunk(2, 1)
        return mean, (scale - 2.0).clamp(LEAST, 2.0)  # a new decoder says about a seventh


def logistic(images: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """-log p in nats of each 8-bit value in [-1, 1] under a logistic of this mean and log-scale, whose tails belong to black
    and white (Salimans et al., 2017, eq. 2): log(s(u) - s(l)) = log s(u) + log s(-l) + log(1 - exp(l - u))."""
    sharp = (-scale).exp()
    upper, lower = ((images - mean + side * LEVEL / 2) * sharp for side in (1, -1))
    black, white = images < -1 + LEVEL / 2, images > 1 - LEVEL / 2
    none = torch.zeros((), dtype=upper.dtype, device=upper.device)
    below, above = torch.where(white, none, F.logsigmoid(upper)), torch.where(black, none, F.logsigmoid(-lower))
    between = torch.where(black | white, none, (-torch.expm1(-LEVEL * sharp)).log())
    return -(below + above + between)


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
        whole = KLAutoencoder(KLConfig(coder=coder, bottleneck=False))
        whole.decoder = Decoder(coder.model_copy(update={"image_channels": 2 * shape.channels}))  # means and scales
        self.bound = Bound(whole, classes(labels, config.channels))
        self.turns = {"vae": self.bound}

    def learned(self, turn: str) -> Sequence[nn.Module]:
        return [self.bound]

    @torch.no_grad()
    def sample(self, noise: Stream, labels: Tensor, guidance: float = 1.0) -> Tensor:
        """The likelihood's mean at a draw of the prior: its own noise would only be seen as noise."""
        z = noise.normal((self.config.channels, START, START), 0).to(labels.device, next(self.parameters()).dtype)
        made = rows_side_by_side(lambda part: self.bound.decoded(z[part], labels[part])[0], len(z), z.device)
        return made.clamp(-1, 1)

    @torch.no_grad()
    def bits(self, images: Tensor, labels: Tensor) -> Tensor:
        draws = Drawn(images, labels, tuple(range(len(images))), 0)
        distortion, rate = self.bound.nats(images, labels, draws.normal(self.bound.latent(images), "posterior"))
        return (distortion + rate) / math.log(2)
