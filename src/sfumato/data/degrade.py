"""Small pictures made from large ones: what a model of super-resolution learns to undo.

`bicubic` is what papers measure with: an antialiased resize and nothing else. A camera and the web do more, in an order
that nobody knows: `blind` blurs, resizes, adds noise and compresses, in random order and strength, as in BSR (Zhang et
al., 2021, «Designing a practical degradation model», section 3), and ends at the asked size. A small picture is a
function of the large one and its draws.
"""

import io
import math
from typing import Literal, Self

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from sfumato.config import Config

Draws = np.random.Generator
Mode = Literal["bilinear", "bicubic", "area"]
MODES: tuple[Mode, ...] = ("bilinear", "bicubic", "area")


class DegradeConfig(Config):
    """How the small picture is made; `factor` times smaller on each side."""

    how: Literal["bicubic", "blind"] = "bicubic"
    factor: int = Field(4, ge=2, le=16)
    blur: float = Field(1.0, ge=0, description="blind: largest standard deviation of the blur, over the factor")
    noise: float = Field(25.0, ge=0, description="blind: largest standard deviation of the noise, of 255")
    jpeg: tuple[int, int] = Field((30, 95), description="blind: range of JPEG qualities")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        low, high = self.jpeg
        if not 0 <= low <= high <= 100:
            raise ValueError(f"jpeg is a range of qualities, the lowest first, from 0 to 100; got {low} to {high}")
        return self

    @property
    def field(self) -> str:
        """The field of an example that holds the small picture."""
        return "lowres"

    def __call__(self, picture: Tensor, draws: Draws) -> Tensor:
        """A picture (C, H, W), uint8 or float in [0, 255] -> (C, H / factor, W / factor) uint8.

        Raises `ValueError` where the factor does not divide its sides.
        """
        high, wide = picture.shape[-2:]
        if high % self.factor or wide % self.factor:
            raise ValueError(f"degrade.factor {self.factor} does not divide {wide}x{high}; choose another size")
        size = high // self.factor, wide // self.factor
        whole = picture.float() / 127.5 - 1.0
        with torch.autocast("cpu", enabled=False):  # a preview asks while networks run in half precision
            small = shrunk(whole[None], size)[0] if self.how == "bicubic" else self._blind(whole, size, draws)
        return ((small + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def _blind(self, x: Tensor, size: tuple[int, int], draws: Draws) -> Tensor:
        """Blur, resize, noise and JPEG in random order, then the asked size and, half the time, JPEG once more."""
        between = float(draws.uniform(1.0, self.factor))
        steps = [
            lambda x: blurred(x, draws, self.blur * self.factor),
            lambda x: _resized(x, [max(round(n / between), s) for n, s in zip(x.shape[-2:], size, strict=True)], draws),
            lambda x: noisy(x, draws, self.noise / 127.5),
            lambda x: compressed(x, int(draws.integers(self.jpeg[0], self.jpeg[1] + 1))),
        ]
        for k in draws.permutation(len(steps)).tolist():
            x = steps[k](x)
        x = _resized(x, size, draws)
        return compressed(x, int(draws.integers(self.jpeg[0], self.jpeg[1] + 1))) if draws.random() < 0.5 else x


def shrunk(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), bicubic and antialiased, in the range of its input."""
    low, high = float(pictures.min()), float(pictures.max())
    return F.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False).clamp(low, high)


def _resized(x: Tensor, size: "tuple[int, int] | list[int]", draws: Draws) -> Tensor:
    mode = MODES[int(draws.integers(len(MODES)))]
    high, wide = size
    if mode == "area":
        return F.interpolate(x[None], (high, wide), mode="area")[0]
    return F.interpolate(x[None], (high, wide), mode=mode, antialias=True, align_corners=False)[0]


def blurred(x: Tensor, draws: Draws, most: float) -> Tensor:
    """x (C, H, W) through a Gaussian of two widths up to `most` pixels, turned by a random angle."""
    if most <= 0:
        return x
    wide, high, angle = draws.uniform(0.1, most), draws.uniform(0.1, most), draws.uniform(0, math.pi)
    reach = min(max(math.ceil(2.5 * max(wide, high)), 1), min(x.shape[-2:]) - 1)
    places = torch.arange(-reach, reach + 1, dtype=torch.float32)
    v, u = torch.meshgrid(places, places, indexing="ij")
    a, b = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)
    kernel = torch.exp(-0.5 * ((a / wide) ** 2 + (b / high) ** 2))
    kernel = (kernel / kernel.sum())[None, None]
    padded = F.pad(x[:, None], (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(padded, kernel)[:, 0]


def noisy(x: Tensor, draws: Draws, most: float) -> Tensor:
    """x (C, H, W) with Gaussian noise up to `most`: of each channel its own, or the same in all, as of a gray film."""
    gray = draws.random() < 0.4
    shape = (1 if gray else x.shape[0], *x.shape[1:])
    eps = torch.from_numpy(draws.standard_normal(shape, dtype=np.float32))
    return (x + draws.uniform(0, most) * eps).clamp(-1, 1)


def compressed(x: Tensor, quality: int) -> Tensor:
    """x (C, H, W) in [-1, 1] through JPEG; pictures of other than 1 or 3 channels stay as they are."""
    if x.shape[0] not in (1, 3):
        return x
    array = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    kept = io.BytesIO()
    Image.fromarray(array[:, :, 0] if x.shape[0] == 1 else array).save(kept, "JPEG", quality=quality)
    with Image.open(kept) as opened:
        back = np.array(opened)
    return torch.from_numpy(back.reshape(*array.shape)).permute(2, 0, 1).float() / 127.5 - 1.0
