"""`kind: gan`. Our decoder as generator and a residual critic (Goodfellow et al., 2014), with R1.

The generator is the first stage's decoder behind a linear layer that makes its 4 x 4 map of noise and class; the critic
halves a picture down to one logit, a class's logit by projection (Miyato & Koyama, 2018). Both minimise
non-saturating cross-entropies, the critic with half the squared gradient at real pictures (Mescheder et al., 2018): the
recipe of the small StyleGANs without their styles. The critic sees every picture shifted and otherwise bright, real and
made alike (DiffAugment, Zhao et al., 2020), so that it cannot learn a small set by heart, and how much fours of them,
of one class where a batch has enough of it, differ, which hangs on how a batch is split into parts. Pictures come from the generator's average.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.coder import CoderConfig, Decoder
from sfumato.device import at_least_single
from sfumato.families.base import Drawn, Family, FamilyConfig, Shape, classes
from sfumato.lanes import rows_side_by_side
from sfumato.streams import Stream

START = 4  # places a side of the generator's first map
LEAK, TOGETHER = 0.2, 4  # of the critic: its rectifier, and the pictures that it sees beside one another
SHIFT = 8  # pictures are shifted by at most this part of their side


class GanConfig(FamilyConfig):
    """Sizes of both networks, and their own training."""

    width: PositiveInt = Field(
        32, description="channels of the generator at full resolution; each halving doubles them up to 8 times"
    )
    critic: PositiveInt = Field(
        32, description="channels of the critic at 32 pixels a side; each halving doubles them up to 4 times"
    )
    latent: PositiveInt = 128
    r1: float = Field(2.0, ge=0, description="weight of half the squared gradient at real pictures")
    rate: PositiveFloat = Field(2e-4, description="peak learning rate of the generator (AdamW)")
    lead: PositiveFloat = Field(4.0, description="the critic's rate over the generator's (Heusel et al., 2017)")
    augment: bool = Field(True, description="the critic sees pictures shifted and otherwise bright")
    every: PositiveInt = Field(8, description="of so many fours of pictures one is penalised, in every part of a batch")

    def build(self, shape: Shape, labels: tuple[str, ...], codec: Codec | None) -> "Gan":
        return Gan(self, shape, labels)

    def coder(self, shape: Shape) -> CoderConfig:
        """The first stage whose decoder the generator is."""
        factor = shape.size // START
        if shape.size % START or factor & (factor - 1):
            near = START << max(round(math.log2(shape.size / START)), 0)
            raise ValueError(
                f"a gan makes pictures of {START} times a power of two pixels; got {shape.size}, try {near}"
            )
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


class Conv(nn.Conv2d):
    """A convolution that keeps the size of what leaves a leaky rectifier (He et al., 2015)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, padding=1)
        nn.init.kaiming_normal_(self.weight, LEAK)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Halving(nn.Module):
    """(B, C, S, S) -> (B, out, S / 2, S / 2): two convolutions beside a straight way."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.one, self.two = Conv(channels, channels), Conv(channels, out)
        self.straight = nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(leaky(self.two(leaky(self.one(x)))), 2)
        result: Tensor = (h + self.straight(F.avg_pool2d(x, 2))) / math.sqrt(2)
        return result


class Judge(nn.Module):
    """(B, C, S, S) and classes (B,) -> (B,) logits, high where a picture looks real.

    Residual and without norms, as StyleGAN2's (Karras et al., 2020): the first stage's encoder lost to the generator at once,
    with its group norms and without them (`docs/experiments.md`).
    """

    def __init__(self, config: GanConfig, shape: Shape, labels: tuple[str, ...]) -> None:
        super().__init__()
        sides = [shape.size >> k for k in range(int(math.log2(shape.size // START)) + 1)]
        widths = [max(4 * config.critic * min(8, side) // side // 8, 2) * 8 for side in sides]
        self.stem = Conv(shape.channels, widths[0])
        self.halvings = nn.Sequential(*(Halving(*pair) for pair in pairwise(widths)))
        width = widths[-1]
        self.last, self.out, self.logit = (
            Conv(width + 1, width),
            nn.Linear(width * START**2, width),
            nn.Linear(width, 1),
        )
        nn.init.kaiming_normal_(self.out.weight, LEAK)
        self.named = classes(labels, width)

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        h = self.halvings(leaky(self.stem(pictures)))
        h = leaky(self.last(torch.cat([h, deviation(h, labels)], 1)))
        h = leaky(self.out(h.flatten(1)))
        logit: Tensor = self.logit(h)[:, 0]
        if self.named is not None:
            logit = logit + (h * self.named(labels)).sum(1) / math.sqrt(h.shape[1])
        return at_least_single(logit)


def leaky(x: Tensor) -> Tensor:
    """The critic's rectifier."""
    return F.leaky_relu(x, LEAK)


def deviation(x: Tensor, labels: Tensor) -> Tensor:
    """(B, C, S, S), classes (B,) -> (B, 1, S, S): how much four pictures differ (Karras et al., 2018), so that a critic sees when
    all look alike. Fours stand beside one another after sorting by class, since pictures of several classes always differ.
    Other than whole fours count as alone."""
    order = labels.argsort(stable=True)
    count = TOGETHER if len(x) % TOGETHER == 0 else 1
    groups = at_least_single(x)[order].reshape(-1, count, *x.shape[1:])
    each: Tensor = (groups.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3)).repeat_interleave(count)
    return each[order.argsort()].to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])


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
        if self.config.r1:  # of some whole fours, as the critic sees them; every part of a batch has its own
            rows = self._some(batch)
            penalty = self._slope(images[rows], batch.labels[rows])
            found["r1"] = penalty.detach()
            loss = loss + self.config.r1 * penalty
        return {"loss": loss} | found

    def _some(self, batch: Drawn) -> list[int]:
        """Every so many fours, begun at a random one: fours lie in the order of their classes, and all are to have turns."""
        order, every = batch.labels.argsort(stable=True).tolist(), self.config.every
        fours = -(-len(order) // TOGETHER)
        first = int(float(batch.uniform((), "r1")[0]) * min(every, fours))
        return [k for place, k in enumerate(order) if place // TOGETHER % every == first]

    def _slope(self, real: Tensor, labels: Tensor) -> Tensor:
        real = real.detach().requires_grad_()
        with torch.autocast(real.device.type, enabled=False):
            (slope,) = torch.autograd.grad(self.judge(real, labels).sum(), real, create_graph=True)
        return 0.5 * slope.square().flatten(1).sum(1).mean()


class Gan(Family):
    """A generator and a critic; one evaluation a picture."""

    scored = False

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
        rate = self.config.rate * (self.config.lead if turn == "critic" else 1.0)
        return {"optimizer": "adamw", "rate": rate, "betas": (0.0, 0.99), "weight_decay": 0.0}

    @torch.no_grad()
    def sample(self, noise: Stream, labels: Tensor, guidance: float = 1.0) -> Tensor:
        z = noise.normal((self.config.latent,), 0).to(labels.device, next(self.parameters()).dtype)
        return rows_side_by_side(lambda part: self.generator(z[part], labels[part]), len(z), z.device)
