"""Masks drawn on the fly: the holes that a model of inpainting learns to fill.

As a person makes them: strokes of a thick brush, boxes, and borders, which are what outpainting asks for; and now and then
all of it, which a window sees where more is added to a picture than a model is wide.
Wide holes teach more than thin ones (Suvorov et al., 2022, «LaMa», section 2.3). A mask is a function of its draws alone.
"""

import math
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field, model_validator
from torch import Tensor

from sfumato import image
from sfumato.config import Config

TRIES = 20  # masks drawn until one's hole is as large as was asked for
Draws = np.random.Generator


class MasksConfig(Config):
    """How often each kind of hole is drawn, and how large holes are."""

    strokes: float = Field(0.5, ge=0, description="weight of strokes of a brush")
    boxes: float = Field(0.3, ge=0, description="weight of one to four boxes")
    borders: float = Field(0.2, ge=0, description="weight of borders along one to four sides")
    all: float = Field(
        0.05, ge=0, description="weight of nothing but hole, as windows have it where much is added to a picture"
    )
    least: float = Field(0.05, ge=0, le=1, description="smallest share of the picture that is a hole")
    most: float = Field(0.6, gt=0, le=1, description="largest share of the picture that is a hole")

    @model_validator(mode="after")
    def _draws(self) -> Self:
        if self.strokes + self.boxes + self.borders <= 0:
            raise ValueError("no kind of mask with an edge has a weight; give strokes, boxes or borders one above 0")
        if self.least >= self.most:
            raise ValueError(
                f"least is {self.least} and most {self.most}; the smallest hole is smaller than the largest"
            )
        return self

    @property
    def field(self) -> str:
        """The field of an example that holds the picture and its mask."""
        return "masked"

    def __call__(self, picture: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """A picture (C, H, W), uint8 or float32 in [0, 255] -> the picture, uint8 or float32 in [-1, 1], and its mask (H, W)
        float32, 1 where there is a hole."""
        return image.given(picture), self.mask(picture.shape[-2], picture.shape[-1], draws)

    def mask(self, height: int, width: int, draws: Draws) -> Tensor:
        """One mask (height, width): 1 in the hole, 0 elsewhere; all of it, or the nearest to the asked shares of some tries."""
        if self.all and draws.random() * (self.strokes + self.boxes + self.borders + self.all) < self.all:
            return torch.ones(height, width)
        weights = np.array([self.strokes, self.boxes, self.borders])
        best, distance = np.ones((height, width), np.uint8), math.inf
        for _ in range(TRIES):
            kind = (strokes, boxes, borders)[int(draws.choice(3, p=weights / weights.sum()))]
            found = kind(height, width, draws)
            share = float(found.mean())
            off = max(self.least - share, share - self.most, 0.0)
            if off < distance:
                best, distance = found, off
            if not off:
                break
        return torch.from_numpy(best).float()


def _blank(height: int, width: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("L", (width, height))
    return canvas, ImageDraw.Draw(canvas)


def _marked(canvas: Image.Image) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return (np.asarray(canvas) > 0).astype(np.uint8)


def strokes(height: int, width: int, draws: Draws) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """One to four strokes of a round brush, each a path that turns a little at every corner; (height, width) of 0 and 1."""
    canvas, pen = _blank(height, width)
    side = min(height, width)
    for _ in range(int(draws.integers(1, 5))):
        x, y = draws.uniform(0, width), draws.uniform(0, height)
        angle, brush = draws.uniform(0, 2 * math.pi), draws.uniform(side / 16, side / 5)
        for _ in range(int(draws.integers(2, 7))):
            angle += draws.normal(0, 0.9)
            length = draws.uniform(side / 10, side / 2.5)
            to = x + length * math.cos(angle), y + length * math.sin(angle)
            pen.line([(x, y), to], fill=1, width=max(round(brush), 1))
            for cx, cy in ((x, y), to):
                pen.ellipse([cx - brush / 2, cy - brush / 2, cx + brush / 2, cy + brush / 2], fill=1)
            x, y = min(max(to[0], 0), width), min(max(to[1], 0), height)
    return _marked(canvas)


def boxes(height: int, width: int, draws: Draws) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """One to four boxes; (height, width) of 0 and 1."""
    canvas, pen = _blank(height, width)
    for _ in range(int(draws.integers(1, 5))):
        wide, high = (draws.uniform(side / 8, side / 1.8) for side in (width, height))
        left, top = draws.uniform(0, width - wide), draws.uniform(0, height - high)
        pen.rectangle([round(left), round(top), round(left + wide) - 1, round(top + high) - 1], fill=1)
    return _marked(canvas)


def borders(height: int, width: int, draws: Draws) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Borders along one to four sides, as outpainting has them; (height, width) of 0 and 1."""
    mask = np.zeros((height, width), np.uint8)
    sides = draws.permutation(4)[: int(draws.integers(1, 5))]
    for side in sides.tolist():
        deep = round(draws.uniform(1 / 8, 1 / 2 if len(sides) < 3 else 1 / 4) * (height if side < 2 else width))
        part = (slice(0, deep), slice(height - deep, height), slice(0, deep), slice(width - deep, width))[side]
        mask[(part, slice(None)) if side < 2 else (slice(None), part)] = 1
    return mask
