"""The denoiser's estimate as a picture: a perceptual distance beside the loss on latents.

The mean square error of latents is least for the mean of all that is possible, and takes every channel for as visible as
the next. What the estimate of x_0 decodes to, held against the picture by a network that looks at both, asks for what is
seen (Lin and Yang, 2024, "Diffusion Model with Perceptual Loss"; Berrada et al., 2025, "Boosting Latent Diffusion with
Perceptual Objectives"). Only a crop is decoded, which keeps it affordable. Where a part of the picture is given, the crop
lies about what is to be made, and what is given is pasted over, as it is after sampling.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato import streams
from sfumato.autoencoder.codec import Codec
from sfumato.training.recipe import DecodedConfig


class Crops(NamedTuple):
    """What of a batch is decoded and compared: N crops of s pixels a side."""

    rows: tuple[int, ...]  # (N,), whose examples they are
    corners: tuple[tuple[int, int], ...]  # (N,), row and column of the upper left place of the latent
    pictures: Tensor  # (N, C, s, s) in [-1, 1], as they are
    made: Tensor  # (N, 1, s, s) in [0, 1], 1 where the denoiser makes the picture, 0 where it is given


class Decoded(nn.Module):
    """The distance of what a batch's estimates decode to from its pictures."""

    def __init__(self, config: DecodedConfig, codec: Codec, side: int) -> None:
        """`side` is that of the latents. Raises `ValueError` where the perceptual network's file is not what it should be, and
        where crops are too small for it."""
        super().__init__()
        self.every, self.places, self.factor = config.every, min(config.places, side), codec.factor
        self.weight = config.weight
        self.perceptual = config.perceptual.build()
        if self.places * self.factor < self.perceptual.smallest:
            raise ValueError(
                f"decoded.places {self.places} make crops of {self.places * self.factor} pixels, and the perceptual network "
                f"needs {self.perceptual.smallest}; give more places, or larger pictures"
            )

    def rows(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Which examples of a batch are decoded: every so many of the run, so that no split of a batch changes it."""
        return tuple(k for k, p in enumerate(positions) if p % self.every == 0)

    def crops(
        self,
        pictures: Tensor,
        rows: Sequence[int],
        unknown: Sequence[Tensor | None],
        seed: int,
        positions: Sequence[int],
    ) -> Crops:
        """Where to look in the pictures (N, C, H, W) of these rows: about a place of what is `unknown` (1, H, W), or
        anywhere. A function of the positions."""
        draws = streams.uniform((2,), seed, "decoded", [positions[k] for k in rows]).tolist()
        sides = (pictures.shape[-2], pictures.shape[-1])
        whole = pictures.new_ones(1, *sides)
        masks = [whole if (hole := unknown[k]) is None else hole.to(whole) for k in rows]
        corners = tuple(self.corner(mask, one) for mask, one in zip(masks, draws, strict=True))
        size, f = self.factor * self.places, self.factor
        cut = [(..., slice(f * y, f * y + size), slice(f * x, f * x + size)) for y, x in corners]
        seen = torch.stack([picture[place] for picture, place in zip(pictures, cut, strict=True)])
        return Crops(tuple(rows), corners, seen, torch.stack([m[place] for m, place in zip(masks, cut, strict=True)]))

    def corner(self, unknown: Tensor, draws: Sequence[float]) -> tuple[int, int]:
        """The crop's upper left place: its middle at a pixel of what is unknown, drawn uniformly, as far as the edge lets it."""
        ends = [n // self.factor - self.places for n in unknown.shape[-2:]]
        hole = (unknown[0] > 0.5).nonzero()
        if len(hole) in (0, unknown.numel()):
            return tuple(int(u * (end + 1)) for u, end in zip(draws, ends, strict=True))  # type: ignore[return-value]
        middle = hole[int(draws[0] * len(hole))].tolist()
        y, x = (min(max(m // self.factor - self.places // 2, 0), end) for m, end in zip(middle, ends, strict=True))
        return y, x

    def forward(self, codec: Codec, estimate: Tensor, crops: Crops) -> Tensor:
        """Mean distance, a scalar, over all examples of the batch as far as some are decoded; `estimate` (B, c, h, w)."""
        if not crops.rows:
            return estimate.new_zeros(())
        n = self.places
        cut = [estimate[k, :, y : y + n, x : x + n] for k, (y, x) in zip(crops.rows, crops.corners, strict=True)]
        pictures = codec.autoencoder.decode(codec.unwhitened(torch.stack(cut)))
        pasted = crops.pictures + crops.made * (pictures - crops.pictures)
        total: Tensor = self.perceptual(pasted, crops.pictures).sum()
        return total * (self.every / len(estimate))
