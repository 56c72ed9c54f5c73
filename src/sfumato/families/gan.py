"""`kind: gan`. Our decoder as generator, our encoder as critic (Goodfellow et al., 2014), with R1.

The generator is the first stage's decoder behind a linear layer that makes its 4 x 4 map of noise and class; the critic
is the first stage's encoder with one logit, a class's logit by projection (Miyato & Koyama, 2018). Both minimise
non-saturating cross-entropies, the critic with half the squared gradient at real pictures (Mescheder et al., 2018): the
recipe of the small StyleGANs without their styles. The critic sees every picture shifted and otherwise bright, real and
made alike (DiffAugment, Zhao et al., 2020), so that it cannot learn a small set by heart. Pictures come from the
generator's average.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.coder import CoderConfig, Decoder, Encoder
from sfumato.device import at_least_single
from sfumato.families.base import Drawn, Family, FamilyConfig, Shape, classes
from sfumato.lanes import rows_side_by_side
from sfumato.streams import Stream

START = 4  # places a side of the generator's first map
SHIFT = 8  # pictures are shifted by at most this part of their side


class GanConfig(FamilyConfig):
    """Sizes of both networks, and the critic's own training."""

    width: PositiveInt = Field(32, description="channels at full resolution; each halving doubles them up to 8 times")
    latent: PositiveInt = 128
    r1: float = Field(2.0, ge=0, description="weight of half the squared gradient at real pictures")
    rate: PositiveFloat = Field(5e-4, description="peak learning rate of both turns (AdamW)")
    augment: bool = Field(True, description="the critic sees pictures shifted and otherwise bright")
    every: PositiveInt = Field(4, description="critic's steps a penalty; it then counts that many times")

    def build(self, shape: Shape, labels: tuple[str, ...], codec: Codec | None) -> "Gan":
        return Gan(self, shape, labels)

    def coder(self, shape: Shape) -> CoderConfig:
        """The first stage that both networks are halves of."""
        factor = shape.size // START
        if shape.size % START or factor & (factor - 1):
            raise ValueError(f"a gan makes pictures of {START} times a power of two pixels; got {shape.size}")
        stem = min(2, factor)
        levels = int(math.log2(factor // stem)) + 1
        return CoderConfig(
            factor=factor, channels=8 * self.width, image_channels=shape.channels, stem=stem, width=2 * self.width,
            multipliers=tuple(min(2**k, 4) for k in range(levels)), blocks=1, decoder_blocks=1, middle_blocks=1,
            middle_attention=False, refine=16, down="unshuffle", up="nearest", groups=8,
        )  # fmt: skip


class Generator(nn.Module):
    """(B, latent) and classes (B,) -> (B, C, S, S)."""

    def __init__(self, config: GanConfig, shape: Shape, labels: tuple[str, ...]) -> None:
        super().__init__()
        coder = config.coder(shape)
        self.channels, self.named = coder.channels, classes(labels, config.latent)
        self.into = nn.Sequential(
            nn.Linear(config.latent, 2 * config.latent), nn.SiLU(), nn.Linear(2 * config.latent, coder.channels * START**2)
        )  # fmt: skip
        self.decoder = Decoder(coder)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        if self.named is not None:
            z = (z + self.named(labels)) / math.sqrt(2)
        result: Tensor = self.decoder(self.into(z).reshape(len(z), self.channels, START, START))
        return at_least_single(result).tanh()


class Judge(nn.Module):
    """(B, C, S, S) and classes (B,) -> (B,) logits, high where a picture looks real."""

    def __init__(self, config: GanConfig, shape: Shape, labels: tuple[str, ...]) -> None:
        super().__init__()
        coder = config.coder(shape)
        width = 4 * config.width
        self.encoder = Encoder(coder, width)
        self.out = nn.Linear(width * START**2, width)
        self.logit, self.named = nn.Linear(width, 1), classes(labels, width)

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        h = F.silu(self.out(self.encoder(pictures).flatten(1)))
        logit: Tensor = self.logit(h)[:, 0]
        if self.named is not None:
            logit = logit + (h * self.named(labels)).sum(1) / math.sqrt(h.shape[1])
        return at_least_single(logit)


def shown(pictures: Tensor, batch: Drawn, purpose: str) -> Tensor:
    """Pictures (B, C, S, S) shifted by up to an eighth, with zeros where nothing was, and brighter or darker by up to a half;
    drawn for each place of the batch, and differentiable."""
    most = pictures.shape[-1] // SHIFT
    draws = batch.uniform((3,), f"shown/{purpose}")
    wide, side = F.pad(pictures, (most,) * 4), pictures.shape[-1]
    rows = []
    for picture, (down, right, light) in zip(wide, draws.tolist(), strict=True):
        y, x = int(down * (2 * most + 1)), int(right * (2 * most + 1))
        rows.append(picture[:, y : y + side, x : x + side] + (light - 0.5))
    return torch.stack(rows)


class Fooling(nn.Module):
    """The generator's turn: softplus(-D(G(z)))."""

    def __init__(self, generator: Generator, judge: Judge, config: GanConfig) -> None:
        super().__init__()
        self.generator, self._judge, self.config = generator, [judge], config

    def forward(self, batch: Drawn) -> dict[str, Tensor]:
        made = self.generator(batch.normal((self.config.latent,), "generator"), batch.labels)
        made = shown(made, batch, "fooling") if self.config.augment else made
        return {"loss": F.softplus(-self._judge[0](made, batch.labels)).mean()}


class Judging(nn.Module):
    """The critic's turn: softplus(-D(x)) + softplus(D(G(z))), and now and then R1."""

    def __init__(self, generator: Generator, judge: Judge, config: GanConfig) -> None:
        super().__init__()
        self.judge, self._generator, self.config = judge, [generator], config

    def forward(self, batch: Drawn) -> dict[str, Tensor]:
        with torch.no_grad():
            made = self._generator[0](batch.normal((self.config.latent,), "critic"), batch.labels)
        images = batch.images
        if self.config.augment:
            images, made = shown(images, batch, "real"), shown(made, batch, "made")
        real, fake = self.judge(images, batch.labels), self.judge(made, batch.labels)
        loss = (F.softplus(-real) + F.softplus(fake)).mean()
        found = {"logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}
        # which rows are penalised is told by their places, so that parts of a batch agree however it is split
        rows = [k for k, p in enumerate(batch.positions) if p % self.config.every == 0]
        if self.config.r1 and rows:
            share = self.config.every * len(rows) / len(batch.positions)
            penalty = share * self._slope(images[rows], batch.labels[rows])
            found["r1"] = penalty.detach()
            loss = loss + self.config.r1 * penalty
        return {"loss": loss} | found

    def _slope(self, real: Tensor, labels: Tensor) -> Tensor:
        real = real.detach().requires_grad_()
        with torch.autocast(real.device.type, enabled=False):
            (slope,) = torch.autograd.grad(self.judge(real, labels).sum(), real, create_graph=True)
        return 0.5 * slope.square().flatten(1).sum(1).mean()


class Gan(Family):
    """A generator and a critic; one evaluation a picture."""

    def __init__(self, config: GanConfig, shape: Shape, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.shape, self.labels = config, shape, labels
        self.generator, self.judge = Generator(config, shape, labels), Judge(config, shape, labels)
        self.turns = {
            "generator": Fooling(self.generator, self.judge, config),
            "critic": Judging(self.generator, self.judge, config),
        }

    def learned(self, turn: str) -> Sequence[nn.Module]:
        return [self.generator if turn == "generator" else self.judge]

    def tuned(self, turn: str) -> Mapping[str, Any]:
        return {"optimizer": "adamw", "rate": self.config.rate, "betas": (0.0, 0.99), "weight_decay": 0.0}

    @torch.no_grad()
    def sample(self, noise: Stream, labels: Tensor, guidance: float = 1.0) -> Tensor:
        z = noise.normal((self.config.latent,), 0).to(labels.device)
        return rows_side_by_side(lambda part: self.generator(z[part], labels[part]), len(z), z.device)
