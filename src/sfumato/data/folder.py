"""`kind: folder`. Any folder of pictures: class folders, a `metadata.jsonl`, or a `NAME.txt` beside each picture.

The layouts are those of Hugging Face's `imagefolder`, so a folder made for one serves the other. They are read here and
not by its loader, which knows no texts beside pictures, makes a part of its own of every file called `test_...` and
fails on a line with several captions. Every file is decoded once on opening: what cannot be read is left out, counted
and named, and the content's hash decides what is held out. Later, pictures are decoded when they are asked for, so
memory stays flat. Gray PNG and TIFF of 16 bits keep them, and so do `.npy` arrays of any channels; colour files of 16
bits are read in 8 (by Pillow): store those as arrays.
"""

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, PositiveInt
from torch import Tensor

from sfumato import image
from sfumato.data import beside, twins
from sfumato.data.base import Data, Part
from sfumato.data.beside import NO_CLASSES, Classes
from sfumato.data.frame import Frame, Spot, centred, drawn

log = logging.getLogger(__name__)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".npy"}
HELD_OUT_FOLDERS = ("val", "validation", "test", "held_out")
TABLES = ("metadata.jsonl", "metadata.csv")
CAPTIONS = ("caption", "captions", "text", "prompt")


class Entry(NamedTuple):
    """One picture of a folder."""

    file: Path
    name: str  # its path inside the folder
    captions: tuple[str, ...] = ()
    group: str | tuple[str, ...] | None = None  # its class, or several
    map: Path | None = None
    pair: Path | None = None
    boxes: tuple[Spot, ...] | None = None
    sides: tuple[float, float] | None = None  # of the picture that the boxes are of, where these are in pixels


class Seen(NamedTuple):
    """What one decoding tells of a picture."""

    digest: str  # of the file's content
    looks: tuple[int, int]  # `twins.signature`


class FolderData(Data):
    """Pictures under `path`, their largest centred square at `size` pixels.

    Folders named `train` and `val` (or `validation`, `test`, `held_out`: the first there is) make the parts; without
    them a share `held_out` of the pictures, chosen by the hash of their content, is held out, and at least one.
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

    def read(self, part: str) -> "FolderPart":
        if not self.path.is_dir():
            raise ValueError(f"there is no folder {self.path}; give the folder of your pictures as data.path")
        root = unwrapped(self.path)
        entries = listed(root)
        stamps = tuple(_stamp(path) for e in entries for path in (e.file, e.map, e.pair) if path is not None)
        seen = _surveyed(root, tuple(entries), stamps, self.channels)
        kept = [entry for entry in entries if entry.name in seen]
        out = self._out(root, kept, seen)
        chosen = [entry for entry in kept if (entry.name in out) == (part == "held_out")]
        if not chosen:
            raise ValueError(
                f"no picture of {self.path} is left for the part {part!r}: {len(kept)} can be read, {len(out)} are held "
                f"out and data.held_out is {self.held_out}; add pictures, or choose another share"
            )
        digests = {name: one.digest for name, one in seen.items()}
        known = beside.classes(root, root / "train")
        names = _categories(root, entries)
        crops = self.crops if part == "train" else 1
        said = labels(entries)
        found = FolderPart(chosen, said, digests, self.size, self.channels, crops, self.closest, known, names)
        if part == "train":
            looks = tuple(seen[e.name].looks for e in kept)
            found.alike = partial(_alike, [e.name for e in kept], looks, out)
        return found

    def _out(self, root: Path, entries: Sequence[Entry], seen: dict[str, Seen]) -> set[str]:
        """Names of the pictures that are held out. Those that look the same are on one side, and others move none across."""
        if aside(root):
            return {entry.name for entry in entries if not entry.name.startswith("train/")}
        if self.held_out == 0:
            return set()
        digests, numbers = [seen[e.name].digest for e in entries], _grouped(tuple(seen[e.name].looks for e in entries))
        first = dict(zip((e.name for e in entries), twins.deciding(digests, numbers), strict=True))
        if len(set(first.values())) == 1:  # all look alike: then by their files
            first = dict(zip(first, digests, strict=True))
        lowest = min(first.values())
        share = {name for name, digest in first.items() if int(digest[:16], 16) < self.held_out * 2**64}
        return share or {name for name, digest in first.items() if digest == lowest}


class FolderPart(Part):
    """Pictures decoded on demand; each family is one picture and the squares of it that are shown.

    The fields `label` and `group` are lists for a picture of several classes.
    """

    def __init__(
        self,
        entries: list[Entry],
        labels: tuple[str, ...],
        digests: dict[str, str],
        size: int,
        channels: int = 3,
        crops: int = 1,
        closest: float = 0.5,
        known: Classes = NO_CLASSES,
        categories: tuple[str, ...] = (),
    ) -> None:
        self.entries, self.labels, self.known = entries, labels, known
        self.channels, self.size, self.crops, self.closest = channels, size, crops, closest
        self.class_names = {field: names for field, names in (("map", known.names), ("boxes", categories)) if names}
        self.palettes = {"map": known.palette} if known.palette else {}
        self.alike: Callable[[], str] = str  # says which pictures of the folder look alike
        self.families = [range(k * crops, (k + 1) * crops) for k in range(len(entries))]
        told = [(e.name, digests[e.name], e.captions, e.group) for e in entries]
        more: list[Any] = [channels] if channels != 3 else []
        more += [[crops, closest]] if crops > 1 else []
        more += [[str(e.map), str(e.pair), e.boxes] for e in entries if e.map or e.pair or e.boxes]
        self.fingerprint = hashlib.sha256(json.dumps([size, labels, told, *more]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.entries) * self.crops

    def frame(self, index: int, width: int, height: int) -> Frame:
        """The square that is shown of a picture of these sides."""
        entry, number = divmod(index, self.crops)
        if number == 0:
            return centred(width, height)
        return drawn(width, height, self.entries[entry].name, number, self.closest)

    def _told(self, index: int) -> tuple[float, float, float, float]:
        """The frame as the conditioner `frame` reads it."""
        width, height = image.sides(self.stored(index))
        shown, shorter = self.frame(index, width, height), min(width, height)
        x = (shown.left + shown.width / 2 - 0.5) * width / shorter
        y = (shown.top + shown.height / 2 - 0.5) * height / shorter
        return (x, y, shown.width * width / shorter, 0.0)

    def image(self, index: int) -> Tensor:
        return self._shown(index, self.stored(index))

    def _shown(self, index: int, path: Path) -> Tensor:
        whole = image.pixels(path, self.channels, least=2 * self.size)
        if index % self.crops:
            whole = self.frame(index, whole.shape[1], whole.shape[0]).cut(whole)
        return image.squared(whole, self.size)

    def stored(self, index: int) -> Path:
        return self.entries[index // self.crops].file

    def fields(self, index: int) -> dict[str, Any]:
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
        if entry.pair is not None:
            found["pair"] = self._shown(index, entry.pair)
        if entry.map is not None or entry.boxes is not None:
            frame = self.frame(index, *image.sides(entry.file))
            if entry.map is not None:
                found["map"] = beside.numbers(entry.map, frame, self.size, self.known)
            if entry.boxes is not None:
                found["boxes"] = frame.spots(entry.boxes)
        return found


def listed(root: Path) -> list[Entry]:
    """The pictures under `root` with their captions and classes, sorted by name.

    Raises `ValueError` where there is none, or where a table is not what it should be.
    """
    roots = [root / "train", *aside(root)] if (root / "train").is_dir() and _table(root) is None else [root]
    entries = [entry for folder in roots for entry in _annotated(folder, _listed(folder, root))]
    if not entries:
        raise ValueError(
            f"there are no pictures in {root}; it may hold {', '.join(sorted(SUFFIXES))} files or class folders"
        )
    return sorted(entries, key=lambda entry: entry.name)


def unwrapped(path: Path) -> Path:
    """The folder itself, or the only folder in it where that has a `train` or a table: archives often add one."""
    inner = [p for p in path.iterdir() if not p.name.startswith(".")]
    if len(inner) == 1 and inner[0].is_dir() and ((inner[0] / "train").is_dir() or _table(inner[0])):
        return inner[0]
    return path


def aside(root: Path) -> list[Path]:
    """The folder beside `train` that is held out; empty where there is none."""
    if not (root / "train").is_dir():
        return []
    return [root / name for name in HELD_OUT_FOLDERS if (root / name).is_dir()][:1]


def labels(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The names of the classes, numbers in the order of numbers: those of all parts, so that an index means one class."""
    groups = [(e.group,) if isinstance(e.group, str) else e.group or () for e in entries]
    names = {name for group in groups for name in group}
    return tuple(sorted(names, key=lambda name: (int(name) if name.isdecimal() else -1, name)))


def _table(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def _categories(root: Path, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Names of the classes of boxes: COCO's categories in their order, else those that boxes name, sorted."""
    named = [name for folder in (root, root / "train", *aside(root)) for name in beside.coco(folder)[1]]
    if named:
        return tuple(dict.fromkeys(named))
    return tuple(sorted({spot[0] for e in entries for spot in e.boxes or () if isinstance(spot[0], str)}))


def _annotated(folder: Path, entries: list[Entry]) -> list[Entry]:
    """The entries with the boxes and captions that files of COCO's form say of them."""
    told, _ = beside.coco(folder)
    if not told:
        return entries
    inner = [e.file.relative_to(folder).as_posix() if e.file.is_relative_to(folder) else e.name for e in entries]
    known, doubtful = beside.matched(told, inner)
    if doubtful:
        _warn(
            f"{folder}: annotations of {len(doubtful)} pictures are not read, for several pictures or annotations are "
            f"called so; the first: {doubtful[0]}"
        )
    found = []
    for entry, path in zip(entries, inner, strict=True):
        if (value := known.get(path)) is not None:
            group = None if entry.group in ("images", "train", "val") else entry.group
            captions = entry.captions + value.captions
            entry = entry._replace(boxes=value.boxes, captions=captions, group=group, sides=value.sides)
        found.append(entry)
    return found


@lru_cache(maxsize=64)
def _warn(text: str) -> None:
    """Say it once, though the parts are opened one after the other."""
    log.warning(text)


def _listed(folder: Path, root: Path) -> list[Entry]:
    source = _table(folder)
    if source is not None:
        return [_row(source, number, row, root) for number, row in enumerate(table(source), 1)]
    if (folder / "images").is_dir() and (folder / "maps").is_dir():
        return [_mapped(entry, folder) for entry in _listed(folder / "images", root)]
    inside = [(path, path.relative_to(folder)) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    files = [(path, name) for path, name in inside if not any(part.startswith(".") for part in name.parts)]
    grouped = all(len(name.parts) > 1 for _, name in files)
    return [
        Entry(
            path,
            path.relative_to(root).as_posix(),
            _beside(path.with_suffix(".txt")),
            name.parent.as_posix() if grouped else None,
        )
        for path, name in files
    ]


def _mapped(entry: Entry, folder: Path) -> Entry:
    """The entry with the file of its name in the folder `maps`. Raises `ValueError` where there is none."""
    inner = entry.file.relative_to(folder / "images").with_suffix("")
    found = next((p for p in sorted((folder / "maps" / inner.parent).glob(f"{inner.name}.*"))), None)
    if found is None:
        raise ValueError(f"{folder / 'maps'} has no map for {entry.name}; every picture in images needs one")
    return entry._replace(map=found)


def _beside(path: Path) -> tuple[str, ...]:
    """The lines of a text file, each a caption; () where there is no file."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines() if path.is_file() else []
    return tuple(line.strip() for line in lines if line.strip())


def _row(source: Path, number: int, row: Any, root: Path) -> Entry:
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"{source}, line {number}: every line needs a `file_name`")
    said = next((row[key] for key in CAPTIONS if row.get(key)), ())
    captions = (said,) if isinstance(said, str) else said
    if not isinstance(captions, list | tuple) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{source}, line {number}: a caption is a text or a list of texts; got {said!r}")
    file, group = source.parent / name, _group(row.get("label"), f"{source}, line {number}")
    inner = file.relative_to(root).as_posix() if file.is_relative_to(root) else name
    more: dict[str, Any] = {field: source.parent / row[field] for field in ("map", "pair") if row.get(field)}
    for path in more.values():
        if not path.is_file():
            raise ValueError(f"{source}, line {number}: there is no file {path}")
    if isinstance(row.get("boxes"), list):
        more["boxes"] = beside.spots(row["boxes"], f"{source}, line {number}")
    return Entry(file, inner, tuple(captions), group, **more)


def _group(said: Any, where: str) -> str | tuple[str, ...] | None:
    """The class that a row names, several where it lists them, or None. Raises `ValueError` for another thing."""
    several = said if isinstance(said, list) else [said]
    if any(isinstance(one, list | dict) for one in several):
        raise ValueError(f"{where}: a label is a name or a number, or a list of them; got {said!r}")
    names = tuple(dict.fromkeys(str(one) for one in several if one not in (None, "")))
    return names if len(names) > 1 else names[0] if names else None


def table(path: Path) -> list[Any]:
    """The rows of a JSON-lines or CSV file. Raises `ValueError` where it is neither."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} is not JSON lines or CSV ({error}); one object a line, with `file_name` and `text`"
        ) from None


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4)
def _surveyed(
    root: Path, entries: tuple[Entry, ...], stamps: tuple[tuple[int, int], ...], channels: int
) -> dict[str, Seen]:
    """What is seen of the pictures that can be decoded to their end, by name; warns of the others once.

    The parts of a data set are opened one after the other: while no file changes (`stamps`), they share one survey.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(partial(_tried, channels=channels), entries))
    faults = [text for text in found if isinstance(text, str)]
    if len(faults) == len(entries):
        raise ValueError(f"none of the {len(entries)} pictures in {root} can be read; the first fault: {faults[0]}")
    if faults:
        log.warning("left out of %s: %d of %d pictures; the first: %s", root, len(faults), len(entries), faults[0])
    return {entry.name: seen for entry, seen in zip(entries, found, strict=True) if isinstance(seen, Seen)}


def _tried(entry: Entry, channels: int) -> Seen | str:
    """What is seen of a picture, or the fault."""
    try:
        looks = twins.signature(image.pixels(entry.file, channels, least=64))
        sides = image.sides(entry.file)
        faults = [beside.misfit(path, f"its picture {entry.file}", sides) for path in (entry.map, entry.pair) if path]
        faults += [beside.misfit(entry.file, "its COCO annotation", entry.sides)] if entry.sides else []
        if fault := next(filter(None, faults), None):
            return fault
        return Seen(hashlib.blake2b(entry.file.read_bytes(), digest_size=16).hexdigest(), looks)
    except (ValueError, OSError) as error:
        return str(error)


def _alike(names: Sequence[str], looks: tuple[tuple[int, int], ...], out: set[str]) -> str:
    return twins.alike(names, _grouped(looks), out)


@lru_cache(maxsize=4)
def _grouped(looks: tuple[tuple[int, int], ...]) -> list[int]:
    return twins.groups(looks)
