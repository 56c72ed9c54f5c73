"""The codebook of a VQ first stage: nearest vectors, straight-through gradients, and care for codes that nobody chooses.

Van den Oord et al. (2017, "Neural Discrete Representation Learning", eq. 3) pull each chosen vector to what chose it and,
`beta` times as strongly, the encoder's output to its vector. By default the vectors are running averages of what chose
them (the same paper, appendix A.1), begin as the means of a k-means over the fresh encoder's outputs, and one that
was not chosen for a while is put where an encoder's output is. What a step needs of its whole batch (how often each
code was chosen, and by what) is told by `tally` part by part and taken in by `settle`, so that it does not depend
on how a batch was split.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.config import Config
from sfumato.device import at_least_single

RECENT = 0.99  # decay of the averages that usage and perplexity are told from: about the last hundred steps
USED = 0.01  # of an equal share: a code chosen less often than this counts as unused
AT_ONCE = 1 << 24  # distances held at a time


class CodebookConfig(Config):
    """How many codes, and how they learn."""

    size: PositiveInt = Field(8192, description="number of codes")
    beta: float = Field(0.25, ge=0, description="weight of the commitment: how strongly latents are pulled to codes")
    decay: float | None = Field(
        0.99,
        gt=0,
        lt=1,
        description="of the running averages that codes are; null: codes learn by gradient, as published",
    )
    legacy: bool = Field(False, description="beta on the codes' pull instead, the published models' mistake")
    kmeans: bool = Field(True, description="begin with the means of the fresh encoder's outputs")
    patience: PositiveInt | None = Field(
        50, description="steps after which a code that nobody chose is moved to an encoder's output; null: never"
    )


class Quantised(NamedTuple):
    """What a codebook makes of latents."""

    latent: Tensor  # (B, C, h, w), the chosen vectors; gradients pass straight through to the input
    codes: Tensor  # (B, h, w), integers
    penalty: Tensor  # (B,), mean over latent values


class Codebook(nn.Module):
    """`size` vectors of `channels` values."""

    hits: Tensor  # (size,), running average of how often an image's latents chose each code
    sums: Tensor  # (size, channels), likewise the sum of what chose it
    share: Tensor  # (size,), like `hits`, but moved codes bring nothing with them
    idle: Tensor  # (size,), steps since a code was chosen or moved

    def __init__(self, config: CodebookConfig, channels: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size
        self.embedding = nn.Embedding(config.size, channels)
        self.embedding.weight.data.uniform_(-1 / config.size, 1 / config.size)
        self.embedding.weight.requires_grad_(config.decay is None)
        for name, shape in {"hits": (), "sums": (channels,), "share": (), "idle": ()}.items():
            self.register_buffer(name, torch.zeros(config.size, *shape))

    def forward(self, latent: Tensor) -> Quantised:
        """(B, C, h, w) -> the nearest vectors, in float32 whatever the precision around."""
        with torch.autocast(latent.device.type, enabled=False):
            rows = at_least_single(latent).movedim(1, -1)  # (B, h, w, C)
            codes = self.nearest(rows.detach().flatten(0, 2)).reshape(rows.shape[:3])
            chosen = F.embedding(codes, self.embedding.weight).to(rows)
            commitment = (rows - chosen.detach()).square().flatten(1).mean(1)
            pull = (chosen - rows.detach()).square().flatten(1).mean(1)
            beta = self.config.beta
            if self.config.decay is not None:
                penalty = beta * commitment
            else:
                penalty = commitment + beta * pull if self.config.legacy else pull + beta * commitment
            latent = (rows + (chosen - rows).detach()).movedim(-1, 1)
        return Quantised(latent, codes, penalty)

    def nearest(self, rows: Tensor) -> Tensor:
        """The index of the nearest vector for each of (N, C)."""
        return nearest(rows, self.embedding.weight.detach().to(rows))

    @torch.no_grad()
    def tally(self, latent: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """How often each code was chosen and the sum of what chose it, as means over the images."""
        rows, flat = at_least_single(latent).movedim(1, -1).flatten(0, 2), codes.flatten()
        hits = torch.bincount(flat, minlength=self.size).to(rows.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, flat, rows)
        return {"hits": hits / len(latent), "sums": sums / len(latent)}

    @torch.no_grad()
    def settle(self, hits: Tensor, sums: Tensor) -> dict[str, Tensor]:
        """Take in a step's `tally`. Returns `usage`, the share of codes in use, and `perplexity`, up to `size`."""
        decay = self.config.decay or RECENT
        self.hits.lerp_(hits, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        self.share.lerp_(hits, 1 - RECENT)
        self.idle.add_(1).masked_fill_(hits > 0, 0)
        if self.config.decay is not None:
            alive = self.hits > 1e-12
            means = self.sums / self.hits.clamp(min=1e-12)[:, None]
            self.embedding.weight.copy_(torch.where(alive[:, None], means, self.embedding.weight))
        p = self.share / self.share.sum().clamp(min=1e-12)
        return {"usage": (p > USED / self.size).float().mean(), "perplexity": torch.special.entr(p).sum().exp()}

    def unused(self) -> Tensor:
        """Which codes have waited longer than `patience`; none where that is null."""
        return self.idle >= (self.config.patience or math.inf)

    @torch.no_grad()
    def revive(self, latents: Tensor, order: Tensor) -> int:
        """Move unused codes to rows of `latents` (N, C) in the order of `order` (N,); returns how many were moved."""
        (dead,) = torch.where(self.unused())
        places = order.to(latents.device)[: len(dead)]
        dead = dead[: len(places)]
        self._put(dead, at_least_single(latents[places]), self.hits.mean().expand(len(dead)))
        self.idle[dead] = 0
        return len(dead)

    @torch.no_grad()
    def begin(self, latents: Tensor, order: Tensor, images: int, rounds: int = 10) -> None:
        """K-means over `latents` (N, C) of `images` images, its means first at the rows that `order` (N,) names first.

        Fewer latents than codes repeat; their codes part as soon as one of them is moved.
        """
        rows = at_least_single(latents)
        means = rows[order.to(rows.device)].repeat(math.ceil(self.size / len(rows)), 1)[: self.size].clone()
        count = torch.zeros(self.size, device=rows.device)
        for _ in range(rounds):
            codes = nearest(rows, means)
            count = torch.bincount(codes, minlength=self.size).to(rows.dtype)
            sums = torch.zeros_like(means).index_add_(0, codes, rows)
            means = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], means)
        self._put(torch.arange(self.size, device=rows.device), means, count / images)

    def _put(self, codes: Tensor, vectors: Tensor, hits: Tensor) -> None:
        self.embedding.weight.data[codes] = vectors
        self.hits[codes] = hits
        self.sums[codes] = vectors * hits[:, None]


def nearest(rows: Tensor, vectors: Tensor) -> Tensor:
    """For each of `rows` (N, C) the index of the nearest of `vectors` (K, C), (N,), in their precision whatever is around."""
    with torch.autocast(rows.device.type, enabled=False):  # differences of large squares: bfloat16 would lose them
        lengths = vectors.square().sum(1)
        parts = torch.split(rows, max(AT_ONCE // len(vectors), 1))
        return torch.cat([torch.addmm(lengths, part, vectors.T, alpha=-2).argmin(1) for part in parts])
