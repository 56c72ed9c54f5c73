"""The latent boundary: pixels -> stored moments -> whitened latents -> pixels.

A denoiser wants latents of mean 0 and standard deviation 1 in every channel. The published models scale by one magic
number (0.18215 for Stable Diffusion) estimated from one batch; here each channel's shift and scale are measured over
the whole training set, travel with the autoencoder's weights, and are part of its fingerprint, so that a denoiser
cannot be joined to latents it was not trained on.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sfumato import files
from sfumato.autoencoder import tiling
from sfumato.autoencoder.base import Autoencoder, Encoded, FirstStage
from sfumato.config import trusting
from sfumato.device import fine
from sfumato.lanes import rows_side_by_side
from sfumato.nn import draws

WEIGHTS = "weights.safetensors"
AT_ONCE = 2**19  # pixels of the pictures that go through whole and together, where nothing is learned from them


class Codec(nn.Module):
    """An autoencoder with the shift and scale of its latents: whitened = (latent - shift) / scale, channel by channel."""

    shift: Tensor  # (channels,)
    scale: Tensor  # (channels,)

    def __init__(self, config: FirstStage, autoencoder: Autoencoder | None = None) -> None:
        super().__init__()
        self.config = config.settled()
        self.autoencoder = autoencoder or self.config.build()
        self.register_buffer("shift", torch.zeros(self.channels))
        self.register_buffer("scale", torch.ones(self.channels))

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return self.autoencoder.factor

    @property
    def channels(self) -> int:
        """Channels of the latent."""
        return self.autoencoder.channels

    @property
    def image_channels(self) -> int:
        """Channels of the pictures."""
        return self.autoencoder.image_channels

    def moments(self, images: Tensor, tile: int | None = None, share: int = 1, pad: bool = False) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> what the latent cache keeps, (B, M, h, w); `tile` and `share` as for `decode`.

        `pad` reflects pictures at their right and lower edge until the factor divides their sides; without it other
        sides raise `ValueError`.
        Large pictures go few at a time where no gradients are wanted, as in `decode`: the result is the same. A training's
        autocast rests: what a denoiser is shown beside latents of the cache is as exact as these.
        """
        images = tiling.padded(images, self.factor) if pad else images
        given = images.dtype
        images = images.to(next(self.autoencoder.parameters(), images).dtype)
        if tile is None and images.shape[2] * images.shape[3] > tiling.LARGE:
            tile = tiling.SIDE
        with torch.autocast(images.device.type, enabled=False):
            if tile:
                return tiling.moments(self.autoencoder, images, tile, share).to(given)
            return self._parted(self._encoded, images, images.shape[2] * images.shape[3]).to(given)

    def _encoded(self, images: Tensor) -> Tensor:
        encoded: Encoded = self.autoencoder.encode(images)
        return encoded.latent if encoded.moments is None else encoded.moments

    def _parted(self, work: Callable[[Tensor], Tensor], x: Tensor, pixels: int) -> Tensor:
        """`work(x)` of x (B, ...), whose pictures have so many pixels each: few at a time where they are large.

        All together where gradients are wanted, whose activations are kept however they are worked out.
        """
        learned = x.requires_grad or any(p.requires_grad for p in self.autoencoder.parameters())
        if len(x) <= (rows := together(pixels)) or (learned and torch.is_grad_enabled()):
            return work(x)
        return torch.cat([work(part) for part in torch.split(x, rows)])

    def whiten(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored moments -> whitened latents (B, channels, h, w), drawn with `noise`, else the posterior's mode."""
        latent = self.autoencoder.sample(moments, noise)
        return (latent - self.shift[:, None, None]) / self.scale[:, None, None]

    def unwhitened(self, latents: Tensor) -> Tensor:
        """Whitened latents -> the autoencoder's own, of the same shape."""
        return latents * self.scale[:, None, None] + self.shift[:, None, None]

    def encode(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        tile: int | None = None,
        share: int = 1,
        pad: bool = False,
    ) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> whitened latents (B, channels, h, w); the rest is as for `moments`."""
        return self.whiten(self.moments(images, tile, share, pad), noise)

    def decode(
        self, latents: Tensor, tile: int | None = None, share: int = 1, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Whitened latents (B, channels, h, w) -> pictures (B, C, H, W), clamped to [-1, 1].

        `tile` decodes picture by picture in tiles of so many pixels a side, None only above a million pixels, 0 never;
        `share` says what they know of one another, 0 nothing, more being nearer to the whole (`sfumato.autoencoder.tiling`);
        `size` (height, width) cuts
        off what `pad` had added. A decode in half precision can overflow: pictures that are not finite are decoded again
        in float32. Raises `FloatingPointError` where they are not finite even then.
        """
        pixels = latents.shape[2] * latents.shape[3] * self.factor**2
        if tile is None and pixels > tiling.LARGE:
            tile = tiling.SIDE

        def lanes(raw: Tensor) -> Tensor:
            return rows_side_by_side(lambda part: self.autoencoder.decode(raw[part]), len(raw), raw.device)

        def work(raw: Tensor) -> Tensor:
            return tiling.decode(self.autoencoder, raw, tile, share) if tile else self._parted(lanes, raw, pixels)

        dtype = next(self.autoencoder.parameters(), latents).dtype
        raw = self.unwhitened(latents)
        pictures = work(raw.to(dtype))
        half = torch.is_autocast_enabled(latents.device.type) or dtype != torch.float32
        if half and (broken := ~pictures.flatten(1).isfinite().all(1)).any():
            with torch.autocast(latents.device.type, enabled=False):
                self.autoencoder.float()
                try:
                    pictures = pictures.float().index_put((broken,), work(raw[broken].float()))
                finally:
                    self.autoencoder.to(dtype)
        if not pictures.isfinite().all():
            raise FloatingPointError(
                "the decoded pictures are not finite, in float32 too: the latents or the weights are broken "
                f"({int((~latents.isfinite()).sum())} of {latents.numel()} latent values are not finite)"
            )
        return tiling.cropped(pictures, size).float().clamp(-1, 1)

    @torch.no_grad()
    def tally(self, moments: Tensor) -> Tensor:
        """What `measure` needs of some moments: number, sum and sum of squares of each channel, (3, C) float64, on the CPU."""
        mean = fine(self.autoencoder.sample(moments))
        spread = fine(self.autoencoder.sample(moments, torch.ones_like(mean, dtype=moments.dtype))) - mean
        count = torch.full((self.channels,), float(mean.numel() // self.channels), dtype=torch.float64)
        sums = (x.sum((0, 2, 3)).cpu().double() for x in (mean, mean.square() + spread.square()))
        return torch.stack([count, *sums])

    @torch.no_grad()
    def measure(self, tallies: Iterable[Tensor]) -> None:
        """Set shift and scale from the `tally` of all of the training set's moments, posterior variance included."""
        whole = torch.zeros(3, self.channels, dtype=torch.float64)
        for tally in tallies:
            whole += tally
        if not whole[0].all():
            raise ValueError("there are no latents to measure; the training part of the data set is empty")
        shift = whole[1] / whole[0]
        variance = whole[2] / whole[0] - shift.square()
        self.shift.copy_(shift)
        self.scale.copy_(variance.clamp(min=1e-12).sqrt())

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the recipe, the weights, the shift and the scale."""
        told = self.config.model_dump()
        if told.get("decodes") is not None:  # where it lies, which was in it once; `teacher` says which it is
            del told["decodes"]
        return self._fingerprint(told)

    def known(self, found: str) -> bool:
        """Whether this is a fingerprint of the codec, of this form or of the one before."""
        return found == self.fingerprint() or found == self._fingerprint(self.config.model_dump())

    def _fingerprint(self, told: dict[str, Any]) -> str:
        single = {name: t.float() if t.is_floating_point() else t for name, t in self.state_dict().items()}
        return files.fingerprint(single, repr(sorted(told.items())))  # as `load` has them, whatever these are in

    def save(self, folder: Path, half: bool = False) -> None:
        """Write the autoencoder's model folder; with `half`, what half precision holds exactly is written in it."""
        files.save_tensors(folder / WEIGHTS, self.state_dict(), half)
        latents = {"shift": self.shift.tolist(), "scale": self.scale.tolist()}
        fields = {
            "stage": "autoencoder",
            "autoencoder": self.config.model_dump(mode="json"),
            "latents": latents,
        }
        files.seal(folder, {**fields, "fingerprint": self.fingerprint()})

    @classmethod
    def load(cls, folder: Path, trust: bool = False) -> Self:
        """Open an autoencoder's model folder. Raises `ValueError` where a file is missing, damaged or foreign."""
        fields = files.opened(folder, "autoencoder")
        with trusting(trust), draws.skipped():
            codec = cls(FirstStage.model_validate(fields["autoencoder"]))
        try:
            codec.load_state_dict(files.load_tensors(folder / WEIGHTS))
        except RuntimeError as error:
            raise ValueError(f"{folder / WEIGHTS} does not fit its model.yaml: {str(error).splitlines()[-1]}") from None
        if not codec.known(fields["fingerprint"]):
            raise ValueError(f"{folder} was changed after it was written: its fingerprint is not the one in model.yaml")
        return codec.eval()


def together(pixels: int) -> int:
    """How many pictures of so many pixels go through whole at once, at least one."""
    return max(AT_ONCE // max(pixels, 1), 1)
