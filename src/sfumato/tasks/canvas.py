"""Where pictures are made: as large as asked, on latents that cover them, at once or in windows."""

import math
from dataclasses import dataclass

from torch import Tensor

from sfumato.model import LatentDiffusion
from sfumato.windows import starts

LARGEST = 64  # times the pixels that the model was trained at; attention over more would never end
WINDOWS = 4096  # of a canvas that is worked on in parts; each is a pass through the network at every step


@dataclass(frozen=True)
class Canvas:
    """`width` by `height` pixels, the latents (c, h, w) that cover them, and how many places of it windows are apart:
    None where the network sees all of it at once."""

    width: int
    height: int
    shape: tuple[int, int, int]
    stride: int | None = None

    @property
    def places(self) -> tuple[int, int]:
        """The latents' grid, (h, w)."""
        return self.shape[1], self.shape[2]

    def covered(self, factor: int) -> tuple[float, float]:
        """Which share of the latents' height and width is picture, at so many pixels a place."""
        return self.height / (factor * self.shape[1]), self.width / (factor * self.shape[2])

    def cut(self, pictures: Tensor) -> Tensor:
        """Pictures (..., H, W) of the latents, without what they have beyond the size that is asked."""
        return pictures[..., : self.height, : self.width]


def whole(model: LatentDiffusion, width: int | None = None, height: int | None = None) -> Canvas:
    """A canvas that is seen at once, by default as large as the model's pictures.

    Raises `ValueError` for pictures that would never end.
    """
    width, height = width or model.size, height or model.size
    largest = LARGEST * model.size**2
    if width * height > largest:
        raise ValueError(
            f"the model was trained at {model.size} pixels a side and makes at most {LARGEST} times as many pixels at once: "
            f"give or ask for a picture of no more than {math.isqrt(largest)}x{math.isqrt(largest)}"
        )
    return Canvas(width, height, _cover(model, width, height))


def parted(
    model: LatentDiffusion, width: int | None = None, height: int | None = None, stride: int | None = None
) -> Canvas:
    """A canvas in windows, `stride` latent places apart, by default half of one; at once where it is no larger than one
    and no stride is given.

    Raises `ValueError` for pictures of so many windows that they would never end.
    """
    width, height = width or model.size, height or model.size
    shape, side = _cover(model, width, height), model.latent_shape()[1]
    if stride is None and max(width, height) <= model.size:
        return Canvas(width, height, shape)
    stride = max(side // 2, 1) if stride is None else stride
    down, across = (len(starts(n, side, stride)) for n in shape[1:])
    if across * down > WINDOWS:
        raise ValueError(
            f"{width}x{height} pixels are {across * down:,} windows of {model.size} pixels a side, and at most {WINDOWS:,} "
            "are worked on: give or ask for a smaller picture, or of a panorama less overlap"
        )
    return Canvas(width, height, shape, stride)


def _cover(model: LatentDiffusion, width: int, height: int) -> tuple[int, int, int]:
    """The latents (c, h, w) that cover so many pixels: sides that the factor does not divide are rounded up."""
    f = model.codec.factor
    return model.latent_shape(-(-width // f) * f, -(-height // f) * f)
