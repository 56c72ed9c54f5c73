"""The first stage's objective: reconstruct, and keep the latent near a standard normal.

One turn so far, `coder`. The critic's turn (PatchGAN) and the perceptual term join here: `Coder.forward` adds their
losses to its sum, and `turns` gets a second entry.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato import image, streams
from sfumato.autoencoder.codec import Codec
from sfumato.data import loader
from sfumato.data.base import Part
from sfumato.training.objective import Objective
from sfumato.training.recipe import AutoencoderRecipe, ReconstructionConfig


class Pictures(NamedTuple):
    """A batch of the coder's turn."""

    images: Tensor  # (B, C, H, W) in [-1, 1]
    noise: Tensor  # (B, channels, h, w), for the posterior


class Coder(nn.Module):
    """Encode, draw from the posterior, decode, compare."""

    def __init__(self, codec: Codec, weights: ReconstructionConfig) -> None:
        super().__init__()
        self.codec, self.weights = codec, weights

    def forward(self, batch: Pictures) -> dict[str, Tensor]:
        """Mean losses over the batch; `loss` is their weighted sum."""
        encoded = self.codec.autoencoder.encode(batch.images, batch.noise)
        error = self.codec.autoencoder.decode(encoded.latent) - batch.images
        l1, l2, kl = error.abs().mean(), error.square().mean(), encoded.penalty.mean()
        w = self.weights
        return {"loss": w.l1 * l1 + w.l2 * l2 + w.kl * kl, "l1": l1, "l2": l2, "kl": kl}


class Reconstruction(Objective):
    """Trains a codec's autoencoder on one part of a data set."""

    def __init__(
        self, codec: Codec, recipe: AutoencoderRecipe, train: Part, held_out: Part, device: torch.device
    ) -> None:
        self.codec, self.recipe, self.train, self.held_out, self.device = (
            codec,
            recipe,
            train,
            held_out,
            device,
        )
        self.turns: Mapping[str, nn.Module] = {"coder": Coder(codec, recipe.objective)}
        side = recipe.data.size // codec.factor
        self.shape = (codec.channels, side, side)
        codec.autoencoder.check(torch.empty(1, train.channels, train.size, train.size))

    def learned(self, turn: str) -> Sequence[nn.Module]:
        return [self.codec.autoencoder]

    def batch(self, positions: Sequence[int]) -> Pictures:
        t = self.recipe.training
        rows = loader.batch(self.train, t.seed, positions, flip=t.flip)
        noise = streams.normal(self.shape, t.seed, "posterior", positions)
        return Pictures(rows.images.to(self.device), noise.to(self.device))

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Held-out originals above their reconstructions."""
        step = max(len(self.held_out) // 16, 1)
        originals = stack(self.held_out, range(0, min(16 * step, len(self.held_out)), step)).to(self.device)
        rebuilt = self.codec.autoencoder.decode(self.codec.autoencoder.encode(originals).latent)
        return image.sheet(torch.cat([originals, rebuilt.clamp(-1, 1)]), columns=len(originals))

    @torch.no_grad()
    def publish(self, folder: Path) -> None:
        """Measure shift and scale over the whole training part, then write the autoencoder's folder."""
        self.codec.measure(self._moments())
        self.codec.save(folder)

    def _moments(self) -> Iterable[Tensor]:
        for begin in range(0, len(self.train), 128):
            rows = stack(self.train, range(begin, min(begin + 128, len(self.train))))
            yield self.codec.moments(rows.to(self.device))


def stack(part: Part, indices: Iterable[int]) -> Tensor:
    """The pictures at these indices as (B, C, H, W) float32 in [-1, 1]."""
    return torch.stack([part.image(k) for k in indices]).float() / 127.5 - 1.0
