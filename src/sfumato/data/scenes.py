"""`kind: scenes`. One to four emoji on a ground, and everything that can be known of them: words, boxes, maps, masks.

Drawn from the seed and the index alone, from the sheet that ships, so there are as many as one likes and no download.
What stands where is exact, which makes the set a test of conditions: `evaluation/detection.py` finds the emoji in any
picture again and says whether it is what was asked. Held out is by combination: of all triples (one thing, left of or
above, another) a share never occurs in training, in either order of words; `held_out` shows nothing else.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from sfumato import streams
from sfumato.data.base import Data, Part, Singles
from sfumato.data.emoji import shipped

# Plain names, and pictures that tell one another apart at 14 pixels.
NAMES = (
    "red apple", "banana", "grapes", "watermelon", "pineapple", "cherries", "strawberry", "tomato", "carrot", "avocado",
    "ear of corn", "mushroom", "bread", "pizza", "hamburger", "doughnut", "cookie", "lollipop", "birthday cake", "hot beverage",
    "cat face", "dog face", "lion", "pig face", "frog", "panda", "fox", "koala", "chicken", "penguin",
    "octopus", "lady beetle", "honeybee", "butterfly", "turtle", "tropical fish", "snail", "crab", "sunflower", "tulip",
    "cactus", "evergreen tree", "four leaf clover", "red heart", "star", "sun", "crescent moon", "fire", "soccer ball", "basketball",
    "balloon", "wrapped gift", "guitar", "trumpet", "key", "bell", "umbrella", "crown", "locomotive", "automobile",
    "rocket", "sailboat", "airplane", "house",
)  # fmt: skip
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250), "gray": (150, 150, 150), "black": (25, 25, 30), "blue": (70, 120, 200), "green": (80, 150, 90),
    "pink": (240, 190, 200), "yellow": (240, 225, 140), "purple": (130, 100, 170), "brown": (130, 95, 70),
}  # fmt: skip
TEXTURES = ("striped", "checked", "speckled")
Relation = Literal["left of", "above"]
INVERSE = {"left of": "right of", "above": "below"}
LEAST, MOST = 14 / 64, 32 / 64  # sides of an emoji, as shares of the picture's
SMALLEST = 12  # pixels a side of a picture in which every emoji is seen
OVERLAP = 0.04  # of a side, by which boxes may overlap
COUNTS = (25, 45, 20, 10)  # weights of one to four things
SHARE = 0.1  # of the triples that are held out
TELLING = 100_000  # scenes in which all words stand, thousands of times each


class Thing(NamedTuple):
    """One emoji: its place among `NAMES`, and the square that it is drawn in, in pixels."""

    kind: int
    left: int
    top: int
    side: int

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return self.left + self.side / 2, self.top + self.side / 2


class Fact(NamedTuple):
    """Which of two things is left of, or above, the other."""

    one: int
    relation: Relation
    other: int

    @property
    def held_out(self) -> bool:
        """Whether training never shows it."""
        key = f"{NAMES[self.one]} {self.relation} {NAMES[self.other]}"
        return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) < SHARE * 2**32


class Scene(NamedTuple):
    """What is drawn."""

    things: tuple[Thing, ...]
    ground: tuple[str, str, str]  # plain, graded or a texture; its colour, and a second one

    def facts(self) -> list[Fact]:
        """The relation of every pair, in order."""
        return [fact(a, b) for k, a in enumerate(self.things) for b in self.things[k + 1 :]]


def fact(a: Thing, b: Thing) -> Fact:
    """How two things stand to one another: by the axis along which they are further apart."""
    (ax, ay), (bx, by) = a.centre, b.centre
    level = abs(ax - bx) >= abs(ay - by)
    first = (ax < bx) if level else (ay < by)
    one, other = (a, b) if first else (b, a)
    return Fact(one.kind, "left of" if level else "above", other.kind)


class ScenesData(Data):
    """`count` scenes to train on and a tenth as many held out, `seed` for others."""

    count: PositiveInt = Field(20_000, description="scenes of the training part")
    seed: int = 0
    most: int = Field(4, ge=1, le=4, description="things in a scene")

    def read(self, part: str) -> "ScenesPart":
        if self.size < SMALLEST:
            raise ValueError(f"in scenes of {self.size} pixels some emoji have none; data.size is at least {SMALLEST}")
        if part != "train" and self.most < 2:
            raise ValueError(
                "held out are scenes of two things that training never shows so; data.most is 1, give 2 or more"
            )
        count = self.count if part == "train" else max(self.count // 10, 1)
        return ScenesPart(part, count, self.seed, self.size, self.most)


class ScenesPart(Part):
    """Scenes drawn when they are asked for."""

    channels = 3

    def __init__(self, part: str, count: int, seed: int, size: int, most: int) -> None:
        self.part, self.count, self.seed, self.size, self.most = part, count, seed, size, most
        self.labels: tuple[str, ...] = ()
        self.class_names = {"things": NAMES, "boxes": NAMES, "map": ("ground", *NAMES)}
        self.families = Singles(count)
        facts = repr((part, count, seed, size, most, NAMES, COLOURS, shipped()[0]["sheet_sha256"]))
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        self._drawn = lru_cache(maxsize=512)(self._draw)

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """What stands in a scene. In training no held-out fact holds; in the other part the first two things make one."""
        for attempt in range(10_000):
            rng = streams.generator(self.seed, f"scene/{self.part}", index, attempt)
            found = drawn(rng, self.size, self.most, two=self.part != "train")
            facts = found.facts()
            if self.part == "train" and not any(f.held_out for f in facts):
                return found
            if self.part != "train" and facts[0].held_out:
                return found
        raise AssertionError("no scene fits the split")

    def telling(self, field: str) -> Sequence[int]:
        return range(min(self.count, TELLING))

    def every(self, field: str) -> bool | None:
        return True if field in ("caption", "things", "boxes", "map") else super().every(field)

    def field(self, index: int, name: str) -> Any:
        if name == "caption":  # nothing is drawn for words, nor for what is there
            return captions(self.scene(index))
        if name == "things":
            return [thing.kind for thing in self.scene(index).things]
        return super().field(index, name)

    def image(self, index: int) -> Tensor:
        return self._drawn(index)[0]

    def masks(self, index: int) -> Tensor:
        """Which pixels each thing covers, (number of things, size, size) bool, things as in `scene`."""
        return self._drawn(index)[1]

    def _draw(self, index: int) -> tuple[Tensor, Tensor, Scene]:
        scene = self.scene(index)
        pixels, masks = rendered(scene, self.size, streams.generator(self.seed, "ground", index))
        return pixels, masks, scene

    def fields(self, index: int) -> dict[str, Any]:
        _, masks, scene = self._drawn(index)
        numbers = torch.zeros(self.size, self.size, dtype=torch.uint8)
        for thing, mask in zip(scene.things, masks, strict=True):
            numbers[mask] = thing.kind + 1
        boxes = [(NAMES[t.kind], *corners(m)) for t, m in zip(scene.things, masks, strict=True)]
        return {
            "caption": captions(scene),
            "things": [t.kind for t in scene.things],
            "boxes": boxes,
            "map": numbers.numpy(),
            "name": f"{self.part} {index}",
        }


def corners(mask: Tensor) -> tuple[float, float, float, float]:
    """The box (x0, y0, x1, y1) around a mask (H, W), as shares of the picture."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    high, wide = mask.shape
    return (
        int(columns[0]) / wide,
        int(rows[0]) / high,
        (int(columns[-1]) + 1) / wide,
        (int(rows[-1]) + 1) / high,
    )


def captions(scene: Scene) -> list[str]:
    """Texts that are true of a scene, its first pair told in both orders; the ground is named in every other one."""
    names = [NAMES[t.kind] for t in scene.things]
    rest = "".join(f", {named(n)}" for n in names[2:-1]) + (f" and {named(names[-1])}" if len(names) > 2 else "")
    if len(names) == 1:
        said = [named(names[0]), names[0]]
    else:
        one, relation, other = scene.facts()[0]
        a, b = named(NAMES[one]), named(NAMES[other])
        with_ = f", with{rest.removeprefix(',')}".replace("with and", "with") if rest else ""
        said = [f"{a} {relation} {b}{with_}", f"{b} {INVERSE[relation]} {a}{with_}"]
    return [*said, *(f"{text} on {ground(scene)}" for text in said)]


def named(name: str) -> str:
    """The name with its article."""
    plural = name.endswith("s") and name in ("grapes", "cherries")
    return name if plural else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def ground(scene: Scene) -> str:
    """The ground in words."""
    kind, one, other = scene.ground
    if kind == "graded":
        return f"a ground from {one} to {other}"
    return f"a {one} ground" if kind == "plain" else f"a {kind} {one} ground"


def drawn(rng: np.random.Generator, size: int, most: int, two: bool) -> Scene:
    """A scene of these draws: its things apart from one another, each wholly inside."""
    pool: list[float] = []

    def below(count: int) -> int:  # one call of NumPy for many draws: ten times as fast
        if not pool:
            pool.extend(rng.random(64).tolist())
        return int(pool.pop() * count)

    weight = below(sum(COUNTS[:most]))
    count = 2 if two else 1 + sum(weight >= sum(COUNTS[: k + 1]) for k in range(most - 1))
    kinds: list[int] = []
    while len(kinds) < count:
        kind = below(len(NAMES))
        kinds += [] if kind in kinds else [kind]
    smallest, largest = round(LEAST * size), round(MOST * size)
    things: list[Thing] = []
    while len(things) < count:
        if len(things) == 0 or below(8) == 0:  # a crowd that leaves no room begins anew
            things = []
        side = smallest + below(largest - smallest + 1)
        thing = Thing(kinds[len(things)], below(size - side + 1), below(size - side + 1), side)
        if all(apart(thing, other, OVERLAP * size) for other in things):
            things.append(thing)
    share = below(100)
    how = "plain" if share < 40 else "graded" if share < 75 else TEXTURES[below(len(TEXTURES))]
    one, step = below(len(COLOURS)), 1 + below(len(COLOURS) - 1)
    names = list(COLOURS)
    return Scene(tuple(things), (how, names[one], names[(one + step) % len(names)]))


def apart(a: Thing, b: Thing, overlap: float) -> bool:
    """Whether two squares overlap by no more than so many pixels, and neither stands half-way around the corner."""
    x = max(a.left, b.left) - min(a.left + a.side, b.left + b.side)
    y = max(a.top, b.top) - min(a.top + a.side, b.top + b.side)
    (ax, ay), (bx, by) = a.centre, b.centre
    wide, narrow = sorted((abs(ax - bx), abs(ay - by)), reverse=True)
    return max(x, y) >= -overlap and wide >= 1.25 * narrow


def rendered(scene: Scene, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(3, size, size) uint8, and which pixels each thing covers (N, size, size) bool."""
    pixels = grounded(scene.ground, size, rng)
    masks = torch.zeros(len(scene.things), size, size, dtype=torch.bool)
    for k, thing in enumerate(scene.things):
        colour, alpha = glyph(thing.kind, thing.side)
        part = (slice(thing.top, thing.top + thing.side), slice(thing.left, thing.left + thing.side))
        pixels[(slice(None), *part)] = pixels[(slice(None), *part)] * (1 - alpha) + colour
        masks[:k, part[0], part[1]] &= ~(alpha[0] > 0.5)
        masks[(k, *part)] = alpha[0] > 0.5
    return pixels.round().clamp(0, 255).to(torch.uint8), masks


def grounded(kind: tuple[str, str, str], size: int, rng: np.random.Generator) -> Tensor:
    """The ground (3, size, size) in [0, 255]: its colours vary a little from scene to scene."""
    how, one, other = kind
    a, b = (torch.tensor(COLOURS[name], dtype=torch.float32) + float(rng.uniform(-12, 12)) for name in (one, other))
    places = torch.linspace(0, 1, size)
    v, u = torch.meshgrid(places, places, indexing="ij")
    if how == "graded":
        angle = float(rng.uniform(0, 2 * math.pi))
        share: Tensor = ((u - 0.5) * math.cos(angle) + (v - 0.5) * math.sin(angle) + 0.5).clamp(0, 1)
        return a[:, None, None] * (1 - share) + b[:, None, None] * share
    plain = a[:, None, None].expand(3, size, size).clone()
    if how == "plain":
        return plain
    lighter = 22.0 if float(a.mean()) < 140 else -22.0
    if how == "speckled":
        few = max(size // 4, 1)
        marks = torch.from_numpy((rng.random((few, few)) < 0.25).astype(np.float32))
        pattern = F.interpolate(marks[None, None], (size, size), mode="nearest")[0, 0]
    else:
        width = size / float(rng.integers(4, 9))
        across = (
            ((v * size / width).floor() + (u * size / width).floor())
            if how == "checked"
            else (v * size / width).floor()
        )
        pattern = torch.remainder(across, 2)
    return plain + lighter * pattern


@lru_cache(maxsize=4096)
def glyph(kind: int, side: int) -> tuple[Tensor, Tensor]:
    """An emoji without its white ground: colour times coverage (3, side, side) in [0, 255], coverage (1, side, side)."""
    colour, alpha = _cut()[kind]
    whole = torch.cat([colour * alpha, alpha])[None]
    small = F.interpolate(whole, (side, side), mode="bilinear", antialias=True, align_corners=False)[0]
    return small[:3], small[3:].clamp(0, 1)


@lru_cache(maxsize=1)
def _cut() -> list[tuple[Tensor, Tensor]]:
    """Of each name: colour (3, S, S) in [0, 255] and coverage (1, S, S), cropped to what is there and made square."""
    _, rows, pictures = shipped()
    where = {caption: k for k, row in reversed(list(enumerate(rows))) for caption in row.captions}
    return [cut(torch.from_numpy(pictures[where[name]]).permute(2, 0, 1).float()) for name in NAMES]


def cut(picture: Tensor) -> tuple[Tensor, Tensor]:
    """A picture (3, S, S) in [0, 255] on white -> its colour and its coverage, cropped to a square around it.

    White that can be reached from the border is ground. At its edge, colours are mixtures with white: how much of each
    is told by the pixel's distance from white beside that of the most different one near it.
    """
    off = 255 - picture.amin(0)  # distance from white
    outside = torch.zeros_like(off, dtype=torch.bool)
    outside[0], outside[-1], outside[:, 0], outside[:, -1] = True, True, True, True
    outside &= off < 6
    while True:
        wider = F.max_pool2d(outside[None].float(), 3, 1, 1)[0].bool() & (off < 6)
        if bool((wider == outside).all()):
            break
        outside = wider
    edge = F.max_pool2d(outside[None].float(), 5, 1, 2)[0].bool() & ~outside
    most = F.max_pool2d(off[None], 5, 1, 2)[0]
    alpha = torch.where(outside, 0.0, torch.where(edge, (off / most.clamp(min=1)).clamp(0, 1), 1.0))
    colour = ((picture - 255 * (1 - alpha)) / alpha.clamp(min=0.05)).clamp(0, 255)
    rows, columns = (alpha > 0.1).any(1).nonzero().flatten(), (alpha > 0.1).any(0).nonzero().flatten()
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    colour, alpha = colour[(slice(None), *box)], alpha[box][None]
    high, wide = alpha.shape[-2:]
    side = max(high, wide)
    left, top = (side - wide) // 2, (side - high) // 2
    sides = (left, side - wide - left, top, side - high - top)
    return F.pad(colour, sides), F.pad(alpha, sides)
