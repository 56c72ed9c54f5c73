"""`kind: folder`. Any folder of pictures: class folders, a `metadata.jsonl`, or a `NAME.txt` beside each picture.

The layouts are those of Hugging Face's `imagefolder`, so a folder made for one serves the other. They are read here and
not by its loader, which knows no texts beside pictures, makes a part of its own of every file called `test_...` and
fails on a line with several captions. Every file is decoded once on opening: what cannot be read is left out, counted
and named, and the content's hash decides what is held out. Later, pictures are decoded when they are asked for, so
memory stays flat. Gray PNG and TIFF of 16 bits keep them, and so do `.npy` arrays of any channels; colour files of 16
bits are read in 8 (by Pillow): store those as arrays.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from sfumato import image
from sfumato.data import beside, shelf, twins
from sfumato.data.base import Data, Part
from sfumato.data.beside import NO_CLASSES, Classes
from sfumato.data.buckets import BucketsConfig
from sfumato.data.entry import Entry
from sfumato.data.frame import Frame, centred, drawn
from sfumato.data.layout import categories, folders, labels, listed, parted, unwrapped
from sfumato.data.once import warn
from sfumato.data.survey import Seen, surveyed
from sfumato.shape import Shape, shaped

MANY = 10_000  # pictures from which on their groups are kept: comparing fewer with one another takes half a second


class FolderData(Data):
    """Pictures under `path`, their largest centred square at `size` pixels.

    Folders named `train` and `val` (or `validation`, `valid`, `test`, `held_out`: the first there is; `train2017` and
    `val2017` of COCO) make the parts; without them a share `held_out` of the pictures, chosen by the hash of their
    content, is held out, and at least one.
    """

    path: Path
    channels: PositiveInt = Field(3, description="1 gray, 3 colour over white, 4 with transparency; others from .npy")
    held_out: float = Field(0.05, ge=0, lt=1)
    crops: PositiveInt = Field(
        1, description="squares of a picture that are shown in turn: the centred one, then others"
    )
    closest: float = Field(
        0.5, gt=0, le=1, description="smallest side of such a square, over the picture's shorter one"
    )
    buckets: BucketsConfig | None = Field(
        None, description="whole pictures in nearly their own shape, each batch of one, in place of squares"
    )
    cache: Path = Field(
        Path("runs/data"), description="folder where what was seen of a large folder of pictures is kept"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "FolderData":
        if self.buckets is not None and self.crops > 1:
            raise ValueError(
                "buckets show whole pictures and crops squares of them: choose one, crops=1 or buckets=null"
            )
        factor = 1 if self.degrade is None else self.degrade.factor
        for high, wide in () if self.buckets is None else self.buckets.shapes(self.size):
            if high % factor or wide % factor:
                raise ValueError(
                    f"degrade.factor {factor} does not divide {wide}x{high}: give a buckets.step that is a multiple of it"
                )
        return self

    def squares(self) -> "FolderData":
        return self if self.buckets is None else self.model_copy(update={"buckets": None})

    def read(self, part: str) -> "FolderPart":
        if not self.path.is_dir():
            raise ValueError(f"there is no folder {self.path}; give the folder of your pictures as data.path")
        root = unwrapped(self.path)
        entries, known = listed(root), beside.classes(root, *folders(root))
        looked = surveyed(root, entries, self.channels, known, self.cache)
        kept = _within(root, [(entry, one) for entry, one in zip(entries, looked, strict=True) if one is not None])
        out = self._out(root, kept)
        chosen = [(entry, one) for entry, one in kept if (entry.name in out) == (part == "held_out")]
        if not chosen:
            raise ValueError(
                f"no picture of {self.path} is left for the part {part!r}: {len(kept)} can be read, {len(out)} are held "
                f"out and data.held_out is {self.held_out}; add pictures, or choose another share"
            )
        crops = self.crops if part == "train" else 1
        names = categories(root, entries)
        shapes = None if self.buckets is None else self._shapes(self.buckets, kept)
        found = FolderPart(
            chosen, labels(entries), self.size, self.channels, crops, self.closest, known, names,
            None if shapes is None else [shapes[entry.name] for entry, _ in chosen],
        )  # fmt: skip
        if part == "train":
            looks = tuple(one.looks for _, one in kept)
            found.compared = partial(_alike, [entry.name for entry, _ in kept], looks, out, self.cache)
        return found

    def _shapes(self, buckets: BucketsConfig, kept: Sequence[tuple[Entry, Seen]]) -> dict[str, Shape]:
        """The shape of each picture of both parts, by name. Raises `ValueError` where pairs would not fit."""
        if small := next((entry.name for entry, one in kept if one.ratio > 1), None):
            raise ValueError(
                f"the pair of {small} is smaller than it, and such pairs are shown as squares: leave data.buckets out"
            )
        assigned = buckets.assigned(self.size, [one.sides for _, one in kept])
        return {entry.name: shape for (entry, _), shape in zip(kept, assigned, strict=True)}

    def _out(self, root: Path, kept: Sequence[tuple[Entry, Seen]]) -> set[str]:
        """Names of the pictures that are held out. Those that look the same are on one side, and others move none across."""
        parts = parted(root)
        if parts is not None and parts.aside is not None:
            aside = f"{parts.aside.relative_to(root).as_posix()}/"
            return {entry.name for entry, _ in kept if entry.name.startswith(aside)}
        if self.held_out == 0:
            return set()
        digests, numbers = [one.digest for _, one in kept], _grouped(tuple(one.looks for _, one in kept), self.cache)
        twins.crowded(root, numbers)
        first = dict(zip((entry.name for entry, _ in kept), twins.deciding(digests, numbers), strict=True))
        if len(set(first.values())) == 1:  # all look alike: then by their files
            first = dict(zip(first, digests, strict=True))
        lowest = min(first.values())
        share = {name for name, digest in first.items() if int(digest[:16], 16) < self.held_out * 2**64}
        return share or {name for name, digest in first.items() if digest == lowest}


def _within(root: Path, kept: list[tuple[Entry, Seen]]) -> list[tuple[Entry, Seen]]:
    """The pictures of the parts, where there are two: a table beside them may name others, which are told and left out."""
    parts = parted(root)
    if parts is None or parts.aside is None:
        return kept
    of = tuple(f"{folder.relative_to(root).as_posix()}/" for folder in (parts.train, parts.aside))
    if gone := [entry.name for entry, _ in kept if not entry.name.startswith(of)]:
        warn(
            __name__,
            f"{root}: {len(gone)} pictures of its table are neither in {of[0]} nor in {of[1]}, and are not read; the first: "
            f"{gone[0]}",
        )
    return [pair for pair in kept if pair[0].name.startswith(of)]


class FolderPart(Part):
    """Pictures decoded on demand; each family is one picture and the squares of it that are shown.

    The fields `label` and `group` are lists for a picture of several classes.
    """

    def __init__(
        self,
        looked: Sequence[tuple[Entry, Seen]],
        labels: tuple[str, ...],
        size: int,
        channels: int = 3,
        crops: int = 1,
        closest: float = 0.5,
        known: Classes = NO_CLASSES,
        categories: tuple[str, ...] = (),
        shapes: Sequence[Shape] | None = None,
    ) -> None:
        self.entries, self.seen = [entry for entry, _ in looked], [one for _, one in looked]
        self.labels, self.known = labels, known
        self.channels, self.size, self.crops, self.closest = channels, size, crops, closest
        self.shapes = shapes
        self.class_names = {field: names for field, names in (("map", known.names), ("boxes", categories)) if names}
        self.palettes = {"map": known.palette} if known.palette else {}
        self.compared: Callable[[], str] = str
        self.families = [range(k * crops, (k + 1) * crops) for k in range(len(looked))]
        told = [(e.name, one.digest, e.captions, e.group) for e, one in looked]
        more: list[Any] = [channels] if channels != 3 else []
        more += [[crops, closest, *(["sharp"] if closest < 0.5 else [])]] if crops > 1 else []
        more += [[one.beside, e.boxes] for e, one in looked if e.map or e.pair or e.boxes]
        ratios = [one.ratio for one in self.seen]
        more += [ratios] if set(ratios) != {1} else []
        more += [["shapes", shapes]] if shapes is not None else []
        more += [[self.class_names, self.palettes]] if self.class_names or self.palettes else []
        self.fingerprint = hashlib.sha256(json.dumps([size, labels, told, *more]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.entries) * self.crops

    def alike(self) -> str:
        return self.compared()

    def shape(self, index: int) -> Shape:
        """(height, width) of a picture as it is shown."""
        return (self.size, self.size) if self.shapes is None else self.shapes[index // self.crops]

    def frame(self, index: int) -> Frame:
        """What is shown of a picture, of its map, its boxes and its pair."""
        place, number = divmod(index, self.crops)
        sides = self.seen[place].sides
        if number:
            shown = drawn(*sides, self.entries[place].name, number, self.closest)
        else:
            shown = centred(*sides, self.shape(index))
        return shown.stepped(*sides, self.seen[place].ratio)

    def _told(self, index: int) -> tuple[float, float, float, float]:
        """The frame as the conditioner `frame` reads it."""
        width, height = self.seen[index // self.crops].sides
        shown, shorter = self.frame(index), min(width, height)
        x = (shown.left + shown.width / 2 - 0.5) * width / shorter
        y = (shown.top + shown.height / 2 - 0.5) * height / shorter
        return (x, y, min(shown.width * width / shorter, 1.0), 0.0)

    def image(self, index: int) -> Tensor:
        return self._shown(index, self.stored(index), self.shape(index))

    def _shown(self, index: int, path: Path, shape: Shape) -> Tensor:
        frame, (width, height) = self.frame(index), self.seen[index // self.crops].sides
        # small parts of a large JPEG want more of it
        scale = max(shape[0] / (frame.height * height), shape[1] / (frame.width * width))
        least = max(2 * min(shape), math.ceil(scale * min(width, height)))
        whole = image.pixels(path, self.channels, least=least)
        if index % self.crops or self.seen[index // self.crops].ratio > 1:
            whole = frame.cut(whole)
        return shaped(whole, shape)

    def _pair(self, index: int, path: Path) -> Tensor:
        """The pair, at the picture's scale: one that is r times smaller is shown r times smaller."""
        ratio, shape = self.seen[index // self.crops].ratio, self.shape(index)
        small = (shape[0] // ratio, shape[1] // ratio) if self.size % ratio == 0 else shape
        return image.given(self._shown(index, path, small))

    def irregular(self, field: str) -> str:
        ratios = Counter(one.ratio for one, entry in zip(self.seen, self.entries, strict=True) if entry.pair)
        if field != "pair" or not ratios or set(ratios) == {1}:
            return ""
        (usual, _), *others = ratios.most_common()
        if others:
            odd = next(e.name for e, one in zip(self.entries, self.seen, strict=True) if e.pair and one.ratio != usual)
            return (
                f"the pair of {odd} is not {usual} times smaller than the picture, as most pairs are; mend or remove it"
            )
        fits = self.size // usual * usual
        if fits != self.size:
            return f"pairs are {usual} times smaller than their pictures, which {self.size} pixels are not divided by; choose data.size={fits}"
        return ""

    def stored(self, index: int) -> Path:
        return self.entries[index // self.crops].file

    def besides(self, index: int) -> Mapping[str, Path]:
        entry = self.entries[index // self.crops]
        return {name: path for name, path in (("map", entry.map), ("pair", entry.pair)) if path is not None}

    def fields(self, index: int) -> dict[str, Any]:
        return self.few(index, ("pair", "map"))

    def few(self, index: int, read: Collection[str]) -> dict[str, Any]:
        found = self._said(index)
        for name in (n for n in ("pair", "map") if n in read):
            if (value := self.field(index, name)) is not None:
                found[name] = value
        return found

    def field(self, index: int, name: str) -> Any:
        entry = self.entries[index // self.crops]
        if name == "pair":
            return None if entry.pair is None else self._pair(index, entry.pair)
        if name == "map":
            return (
                None
                if entry.map is None
                else beside.numbers(entry.map, self.frame(index), self.shape(index), self.known)
            )
        return self._said(index).get(name)

    def _said(self, index: int) -> dict[str, Any]:
        """What is known without opening a file."""
        entry = self.entries[index // self.crops]
        found: dict[str, Any] = {"name": entry.name}
        if index % self.crops:
            found["frame"] = self._told(index)
        if entry.captions:
            found["caption"] = list(entry.captions)
        if isinstance(entry.group, str):
            found |= {"label": self.labels.index(entry.group), "group": entry.group}
        elif entry.group is not None:
            found |= {"label": [self.labels.index(name) for name in entry.group], "group": list(entry.group)}
        if entry.boxes is not None:
            found["boxes"] = self.frame(index).spots(entry.boxes)
        return found

    def telling(self, field: str) -> Sequence[int]:
        return range(0, len(self), 1 if field == "boxes" else self.crops)

    def every(self, field: str) -> bool | None:
        if field not in ("map", "pair"):
            return super().every(field)
        return all((entry.map if field == "map" else entry.pair) is not None for entry in self.entries)

    def numbers(self, field: str) -> dict[int, str]:
        if field != "map":
            return {}
        shown = [
            (seen.numbers[self.crops == 1 and self.shapes is None], entry)
            for seen, entry in zip(self.seen, self.entries, strict=True)
        ]
        return {number: str(entry.map) for several, entry in reversed(shown) for number in several}


def _alike(names: Sequence[str], looks: tuple[twins.Looks, ...], out: set[str], cache: Path) -> str:
    return twins.alike(names, _grouped(looks, cache), out)


@lru_cache(maxsize=4)
def _grouped(looks: tuple[twins.Looks, ...], cache: Path) -> list[int]:
    if len(looks) < MANY:
        return twins.groups(looks)
    path = cache / f"groups-{hashlib.sha256(repr(looks).encode()).hexdigest()[:32]}.json"
    before = shelf.read(path)
    if isinstance(before, list) and len(before) == len(looks):
        return before
    found = twins.groups(looks)
    shelf.write(path, found)
    return found
