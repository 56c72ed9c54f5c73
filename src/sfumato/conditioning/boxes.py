"""`kind: boxes`. A layout: any number of classes with their corners, as tokens (Rombach et al., 2022, section 4.3.1).

A token is made of the class's learned vector and the Fourier features of the four corners (Tancik et al., 2020), so
that positions are as fine as they are given; a transformer without positions may let the boxes of a picture see one
another. Their order says nothing. Corners are shares of the picture, (0, 0) its upper left.

With a `planner` it also learns to draw layouts from words, so that a request that only says words has boxes too: «left
of» is heard by who places boxes, and hardly by who denoises (`docs/experiments.md`, 2026-11-28).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Draws, Latents, Setting, Sizes, index
from sfumato.conditioning.planner import PlannerConfig
from sfumato.conditioning.text import TOKENIZER
from sfumato.nn.attention import TransformerBlock
from sfumato.windows import Window

FORM = "a box is {label, box: [x0, y0, x1, y1]} or (label, x0, y0, x1, y1)"


class BoxesConfig(ConditionerConfig):
    """`labels` are the classes' names; left empty, those of the training data."""

    field: str = "boxes"
    width: PositiveInt = 256
    labels: tuple[str, ...] = ()
    most: PositiveInt = Field(32, description="boxes that a picture may have; more are refused")
    bands: PositiveInt = Field(8, description="octaves of the corners' Fourier features")
    layers: int = Field(1, ge=0, description="transformer blocks in which boxes see one another")
    heads: PositiveInt = 4
    planner: PlannerConfig | None = Field(None, description="draws boxes from words where only words are said")

    @property
    def beside(self) -> str:
        return self.planner.field if self.planner else ""

    def heard(self, values: Sequence[Any]) -> dict[str, str]:
        return self.planner.text.learn(values, ())[1] if self.planner else {}

    def check_heard(self, values: Sequence[Any], files: Mapping[str, str]) -> None:
        if self.planner:
            self.planner.text.check(values, files)

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["BoxesConfig", dict[str, str]]:
        said = _labels(values)
        names = self.labels or tuple(labels) or tuple(sorted(one for one in said if isinstance(one, str)))
        if not names:
            raise ValueError(f"the data have no {self.field!r} with named classes: give boxes, or name `labels`")
        for one in said:  # training would stop when it is first shown
            index(one, names, "class")
        counts = [len(value) for value in values if value is not None]
        if (most := max(counts, default=0)) > self.most:
            many = sum(count > self.most for count in counts)
            raise ValueError(
                f"{many} of {len(counts)} pictures have too many {self.field}, one has {most} and this conditioner reads "
                f"{self.most}; give it `most: {most}`, or leave some out"
            )
        return self.model_copy(update={"labels": names}), {}

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "Boxes":
        if self.planner and TOKENIZER not in files:
            raise ValueError(f"the planner of boxes needs its {TOKENIZER}; the model folder has none")
        return Boxes(self, files.get(TOKENIZER, ""))


class Box(NamedTuple):
    """A class and its corners in [0, 1], x to the right, y down."""

    label: Any
    x0: float
    y0: float
    x1: float
    y1: float


def box(value: Any) -> Box:
    """A box of its two forms. Raises `ValueError` for another form, and for corners outside the picture or reversed."""
    if isinstance(value, Mapping):
        if set(value) != {"label", "box"} or not isinstance(value["box"], Sequence) or len(value["box"]) != 4:
            raise ValueError(f"{FORM}; got {value!r}")
        value = (value["label"], *value["box"])
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 5:
        raise ValueError(f"{FORM}; got {value!r}")
    try:
        corners = [float(v) for v in value[1:]]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{FORM}, corners as numbers; got {value!r}") from None
    x0, y0, x1, y1 = corners
    if not all(0 <= c <= 1 for c in corners):  # false for NaN too
        raise ValueError(
            f"the box {corners} of {value[0]!r} lies outside the picture; corners are shares of it, from 0 to 1"
        )
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"the box {corners} of {value[0]!r} is reversed or empty; give the upper left corner, then the lower right"
        )
    return Box(value[0], x0, y0, x1, y1)


def cropped(value: Sequence[Any], part: tuple[float, float, float, float], least: float = 0.0) -> list[Box]:
    """The boxes in a part (x0, y0, x1, y1) of the picture, in the part's own coordinates.

    Boxes are cut at its edges; those of which no more than the share `least` of their area is left are gone. A part whose
    x1 is above 1 goes on at the picture's left edge, as windows of a panorama that is joined do.
    """
    left, top, right, bottom = part
    wide, high, kept = right - left, bottom - top, []
    whole = [box(v) for v in value]
    beyond = [b._replace(x0=b.x0 + 1, x1=b.x1 + 1) for b in whole] if right > 1 else []
    for one in [*whole, *beyond]:
        x0, x1, y0, y1 = max(one.x0, left), min(one.x1, right), max(one.y0, top), min(one.y1, bottom)
        inside = max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
        if inside > least * (one.x1 - one.x0) * (one.y1 - one.y0):
            ends = [(x0 - left) / wide, (y0 - top) / high, (x1 - left) / wide, (y1 - top) / high]
            kept.append(Box(one.label, *(min(max(e, 0.0), 1.0) for e in ends)))
    return kept


def mirrored(value: Sequence[Any]) -> list[Box]:
    """The boxes of the mirrored picture."""
    return [Box(b.label, 1 - b.x1, b.y0, 1 - b.x0, b.y1) for b in map(box, value)]


def scaled(value: Sequence[Any], high: float, wide: float) -> list[Box]:
    """The boxes on a canvas of which the picture is the upper left part, these shares of it."""
    return [Box(b.label, wide * b.x0, high * b.y0, wide * b.x1, high * b.y1) for b in map(box, value)]


def waves(corners: Tensor, bands: int) -> Tensor:
    """Corners (..., 4) in [0, 1] -> (..., 8 bands): sines and cosines of pi 2^k c."""
    angles = corners[..., None] * (math.pi * 2.0 ** torch.arange(bands, device=corners.device))
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


class Boxes(Conditioner):
    """Lists of boxes -> tokens (B, N, width) with their mask (B, N), N the most of them in this batch."""

    role = "boxes"
    local = True

    def __init__(self, config: BoxesConfig, tokenizer: str = "") -> None:
        super().__init__()
        self.field, self.dropout, self.labels = config.field, config.dropout, config.labels
        self.most, self.bands = config.most, config.bands
        self.sizes = Sizes(tokens=config.width)
        self.embedding = nn.Embedding(len(config.labels), config.width)
        self.corners = nn.Linear(8 * config.bands, config.width)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(config.width, config.width))
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.nothing = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        self.beside = config.beside
        self.planner = config.planner.build(config.labels, tokenizer) if config.planner else None

    def lesson(self, values: Sequence[Any], beside: Sequence[Any], draws: Draws) -> Tensor:
        assert self.planner is not None
        layouts = [[(number, b[1:]) for number, b in self.read(value)] for value in values]
        return self.planner.lesson(beside, layouts, draws)

    def imagined(self, beside: Sequence[Any], draws: Draws) -> list[list[Box]]:
        assert self.planner is not None
        layouts = self.planner.drawn(beside, draws, self.most)
        return [[Box(self.labels[number], *corners) for number, corners in layout] for layout in layouts]

    def mirrored(self, value: Any) -> Any:
        return mirrored(value)

    def read(self, value: Any, window: tuple[float, float, float, float] | None = None) -> list[tuple[int, Box]]:
        """Class numbers and boxes of one value, of the part `window` of the picture. Raises `ValueError`."""
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            raise ValueError(f"{self.field} is a list of boxes; got {value!r}, and {FORM}")
        if len(value) > self.most:
            raise ValueError(f"{len(value)} {self.field}, this model reads {self.most}; leave some out")
        found = [(index(b.label, self.labels, "class"), b) for b in map(box, value)]
        if window is None:
            return found
        return [(number, part) for number, b in found for part in cropped([b], window)]

    def forward(self, values: Sequence[Any], setting: Setting | None = None) -> Conditions:
        part = None if setting is None or setting.window is None else _part(setting.window, setting.size)
        rows = [self.read(v, part) for v in values]
        longest, device = max(max(map(len, rows)), 1), self.nothing.device
        numbers, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest).bool()
        corners = torch.zeros(len(rows), longest, 4)
        for k, row in enumerate(rows):
            for place, (number, b) in enumerate(row):
                numbers[k, place], corners[k, place], mask[k, place] = number, torch.tensor(b[1:]), True
        empty = ~mask.any(1).to(device)  # a window in which there is nothing
        mask[:, 0] |= ~mask.any(1)
        mask = mask.to(device)
        tokens = self._tokens(numbers.to(device), corners.to(device), mask)
        return Conditions(tokens=torch.where(empty[:, None, None], self.nothing.to(tokens.dtype), tokens), mask=mask)

    def _tokens(self, numbers: Tensor, corners: Tensor, mask: Tensor) -> Tensor:
        x = self.mix(self.embedding(numbers) + self.corners(waves(corners, self.bands).to(self.nothing)))
        for block in self.blocks:
            x = block(x, own=mask)
        result: Tensor = self.norm(x)
        return result

    def null(self, count: int, setting: Setting | None = None) -> Conditions:
        tokens = self.nothing.expand(count, -1, -1)
        return Conditions(tokens=tokens, mask=torch.ones(count, 1, dtype=torch.bool, device=tokens.device))


def _part(window: Window, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A window of the canvas as shares of it."""
    high, wide = size
    return (
        window.left / wide,
        window.top / high,
        (window.left + window.width) / wide,
        (window.top + window.height) / high,
    )


def _labels(values: Sequence[Any]) -> list[Any]:
    """The different classes that boxes name, by name or number, in the order of the data."""
    return list(dict.fromkeys(one.label for value in values if value is not None for one in map(box, value)))
