"""The critic of pictures: PatchGAN (Isola et al., 2017), which judges overlapping patches, its losses and its turn.

It normalises by groups, not over the batch: its judgement of a picture then depends neither on the pictures beside it
nor on how a batch is split over lanes and processes.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.device import at_least_single
from sfumato.nn.conv import Conv2d
from sfumato.training.critic import PatchCriticConfig

GanLoss = Literal["hinge", "logistic", "non_saturating"]


class PatchDiscriminator(nn.Sequential):
    """(B, channels, H, W) in [-1, 1] -> (B, 1, h, w): a logit a patch, high where it looks real.

    With three layers of width 64 it has the published 2,765,633 parameters; a patch is 70 pixels wide.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        parts: list[nn.Module] = [Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        wide = width
        for layer in range(1, layers + 1):
            before, wide = wide, min(width * 2**layer, width * 8)
            stride = 2 if layer < layers else 1
            parts += [
                Conv2d(before, wide, 4, stride, 1, bias=False),
                nn.GroupNorm(next(g for g in (32, 16, 8, 4, 2, 1) if wide % g == 0), wide),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*parts, Conv2d(wide, 1, 4, 1, 1))
        self.smallest = 3 * 2**layers  # pixels a side below which no logit is left
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def fits(self, width: int, height: int) -> None:
        """Raise `ValueError` where pictures of these sides are smaller than a patch's steps."""
        if min(width, height) < self.smallest:
            raise ValueError(
                f"the critic needs pictures of {self.smallest} pixels a side; these are {width}x{height}: set "
                "objective.critic.layers lower"
            )

    def judge(self, pictures: Tensor) -> Tensor:
        """Logits (B, N) in float32. Raises `ValueError` where the pictures are smaller than a patch's steps."""
        self.fits(pictures.shape[3], pictures.shape[2])
        logits: Tensor = self(pictures)
        return at_least_single(logits).flatten(1)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """What it makes of the pictures (B, C, H, W) behind each of its rectifiers, and its logits as the last: (B, c, h, w)."""
        found, seen = [], pictures
        for layer in self:
            seen = layer(seen)
            if isinstance(layer, nn.LeakyReLU):
                found.append(seen)
        return [*found, seen]


def critic_loss(kind: GanLoss, real: Tensor, fake: Tensor) -> Tensor:
    """What the critic minimises, (B,) from logits (B, N).

    hinge: (relu(1 - D(x)) + relu(1 + D(x~))) / 2 (Lim & Ye, 2017); otherwise cross-entropy,
    (softplus(-D(x)) + softplus(D(x~))) / 2 (Goodfellow et al., 2014).
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real) + F.relu(1 + fake)).mean(1)
    return 0.5 * (F.softplus(-real) + F.softplus(fake)).mean(1)


def coder_loss(kind: GanLoss, fake: Tensor) -> Tensor:
    """What the coder minimises, (B,): -D(x~), or for `non_saturating` softplus(-D(x~)) (Goodfellow et al., 2014)."""
    return F.softplus(-fake).mean(1) if kind == "non_saturating" else -fake.mean(1)


def gradient_penalty(critic: PatchDiscriminator, real: Tensor) -> Tensor:
    """R1 (Mescheder et al., 2018, eq. 9), (B,): half the squared gradient of the mean logit at real pictures."""
    real = real.detach().requires_grad_()
    with torch.autocast(real.device.type, enabled=False):
        (slope,) = torch.autograd.grad(critic.judge(at_least_single(real)).mean(1).sum(), real, create_graph=True)
    return 0.5 * slope.square().flatten(1).sum(1)


Kept = dict[tuple[int, ...], tuple[Tensor, Tensor]]  # by places in the run: pictures, and what was made in their place


class Judged(Protocol):
    """A batch whose pictures are judged."""

    @property
    def positions(self) -> tuple[int, ...]:
        """(B,), places in the run."""
        ...


class Critic(nn.Module):
    """The critic's turn: tell pictures from what the turn before has just made in their place."""

    def __init__(self, critic: PatchDiscriminator, config: PatchCriticConfig, kept: Kept) -> None:
        """`kept` is filled by the turn before."""
        super().__init__()
        self.critic, self.config, self.kept = critic, config, kept

    def forward(self, batch: Judged) -> dict[str, Tensor]:
        """Mean losses over the batch."""
        pictures, made = self.kept.pop(batch.positions)
        real, fake = self.critic.judge(pictures), self.critic.judge(made)
        loss = critic_loss(self.config.loss, real, fake).mean()
        found = {"logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}
        if self.config.r1:
            penalty = gradient_penalty(self.critic, pictures).mean()
            found["r1"] = penalty.detach()
            loss = loss + self.config.r1 * penalty
        return {"loss": loss} | found
