"""The denoiser's estimate as a picture: how alike it looks, and how real, beside the loss on latents.

The mean square error of latents is least for the mean of all that is possible, and takes every channel for as visible as
the next. What the estimate of x_0 decodes to, held against the picture by a network that looks at both, asks for what is
seen (Lin and Yang, 2024, "Diffusion Model with Perceptual Loss"; Berrada et al., 2025, "Boosting Latent Diffusion with
Perceptual Objectives"). A critic that learns beside the denoiser needs no such network: it asks that what is made looks like
a picture, and its own maps, of what is made and of the picture, tell how alike they are (Larsen et al., 2016, "Autoencoding
beyond pixels using a learned similarity metric"; Wang et al., 2018, "High-Resolution Image Synthesis and Semantic
Manipulation with Conditional GANs", eq. 4). Only a crop is decoded, which keeps it affordable. Where a part of the picture is
given, the crop lies about what is to be made, and what is given is pasted over, as it is after sampling.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato import streams
from sfumato.autoencoder.codec import Codec
from sfumato.device import at_least_single
from sfumato.training.discriminator import Kept, PatchDiscriminator, coder_loss
from sfumato.training.recipe import DecodedConfig


class Crops(NamedTuple):
    """What of a batch is decoded and compared: N crops of s pixels a side."""

    rows: tuple[int, ...]  # (N,), whose examples they are
    corners: tuple[tuple[int, int], ...]  # (N,), row and column of the upper left place of the latent
    pictures: Tensor  # (N, C, s, s) in [-1, 1], as they are
    made: Tensor  # (N, 1, s, s) in [0, 1], 1 where the denoiser makes the picture, 0 where it is given
    begun: bool = False  # whether the critic learns in this step
    heed: Tensor | None = None  # (N,) in [0, 1]: how much is listened to the critic; None: not at all


class Decoded(nn.Module):
    """The distance of what a batch's estimates decode to from its pictures, and what a critic says of it."""

    def __init__(self, config: DecodedConfig, codec: Codec, side: int) -> None:
        """`side` is that of the latents. Raises `ValueError` where the perceptual network's file is not what it should be, and
        where crops are too small for it."""
        super().__init__()
        self.every, self.places, self.factor = config.every, min(config.places, side), codec.factor
        self.weight, self.config, pixels = config.weight, config.critic, self.places * self.factor
        self.perceptual = None if config.perceptual is None else config.perceptual.build()
        self.critic, self.kept = self._critic(codec.image_channels), Kept()
        for name, judge in (("perceptual network", self.perceptual), ("critic", self.critic)):
            if judge is not None and pixels < judge.smallest:
                raise ValueError(
                    f"decoded.places {self.places} make crops of {pixels} pixels, and the {name} needs {judge.smallest}; give "
                    "more places, or larger pictures"
                )

    def _critic(self, channels: int) -> PatchDiscriminator | None:
        c = self.config
        return None if c is None else PatchDiscriminator(channels, c.width, c.layers)

    @property
    def weights(self) -> dict[str, float]:
        """Of the losses that it tells."""
        c = self.config
        return {"perceptual": self.weight} | ({} if c is None else {"adversarial": c.weight, "matching": c.matching})

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

    def forward(self, codec: Codec, estimate: Tensor, crops: Crops, positions: Sequence[int]) -> dict[str, Tensor]:
        """Means over all examples of the batch as far as some are decoded, by name; `estimate` (B, c, h, w)."""
        found = dict[str, Tensor]()
        made = self.pasted(codec, estimate, crops)
        if self.perceptual is not None:
            total = self.perceptual(made, crops.pictures).sum() if crops.rows else estimate.new_zeros(())
            found["perceptual"] = total * (self.every / len(estimate))
        if crops.begun:
            self.kept[tuple(positions)] = (crops.pictures, made.detach())
        if self.critic is not None and crops.heed is not None:
            found |= self.judged(self.critic, made, crops, crops.heed)
        return found

    def pasted(self, codec: Codec, estimate: Tensor, crops: Crops) -> Tensor:
        """The crops of the decoded estimate, what is given pasted over: (N, C, s, s)."""
        if not crops.rows:
            return crops.pictures
        n = self.places
        cut = [estimate[k, :, y : y + n, x : x + n] for k, (y, x) in zip(crops.rows, crops.corners, strict=True)]
        pictures = codec.autoencoder.decode(codec.unwhitened(torch.stack(cut)))
        return crops.pictures + crops.made * (pictures - crops.pictures)

    def judged(self, critic: PatchDiscriminator, made: Tensor, crops: Crops, heed: Tensor) -> dict[str, Tensor]:
        """How unreal the critic finds what is made, and how far it is from the pictures in the critic's own maps."""
        assert self.config is not None
        with torch.no_grad():
            *wanted, _ = critic.maps(crops.pictures)
        *found, logits = critic.maps(made)
        opinion = coder_loss(self.config.loss, at_least_single(logits).flatten(1))
        apart = [
            (at_least_single(a) - at_least_single(b)).abs().flatten(1).mean(1)
            for a, b in zip(found, wanted, strict=True)
        ]
        return {"adversarial": (heed * opinion).mean(), "matching": (heed * torch.stack(apart).mean(0)).mean()}
