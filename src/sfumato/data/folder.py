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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, PositiveInt
from torch import Tensor

from sfumato import image
from sfumato.data.base import Data, Part

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
    group: str | None = None  # its class


class FolderData(Data):
    """Pictures under `path`, their largest centred square at `size` pixels.

    Folders named `train` and `val` (or `validation`, `test`, `held_out`: the first there is) make the parts; without
    them a share `held_out` of the pictures, chosen by the hash of their content, is held out, and at least one.
    """

    path: Path
    channels: PositiveInt = Field(3, description="1 gray, 3 colour over white, 4 with transparency; others from .npy")
    held_out: float = Field(0.05, ge=0, lt=1)

    def read(self, part: str) -> "FolderPart":
        if not self.path.is_dir():
            raise ValueError(f"there is no folder {self.path}; give the folder of your pictures as data.path")
        root = unwrapped(self.path)
        entries = listed(root)
        digests = _surveyed(root, tuple(entries), tuple(_stamp(entry.file) for entry in entries), self.channels)
        kept = [entry for entry in entries if entry.name in digests]
        out = self._out(root, kept, digests)
        chosen = [entry for entry in kept if (entry.name in out) == (part == "held_out")]
        if not chosen:
            raise ValueError(
                f"no picture of {self.path} is left for the part {part!r}: {len(kept)} can be read, {len(out)} are held "
                f"out and data.held_out is {self.held_out}; add pictures, or choose another share"
            )
        return FolderPart(chosen, labels(entries), digests, self.size, self.channels)

    def _out(self, root: Path, entries: Sequence[Entry], digests: dict[str, str]) -> set[str]:
        """Names of the pictures that are held out. Equal files are on one side, and others move none across."""
        if aside(root):
            return {entry.name for entry in entries if not entry.name.startswith("train/")}
        if self.held_out == 0:
            return set()
        lowest = min(digests[entry.name] for entry in entries)
        share = {e.name for e in entries if int(digests[e.name][:16], 16) < self.held_out * 2**64}
        return share or {entry.name for entry in entries if digests[entry.name] == lowest}


class FolderPart(Part):
    """Pictures decoded on demand; each family is one picture."""

    def __init__(
        self, entries: list[Entry], labels: tuple[str, ...], digests: dict[str, str], size: int, channels: int = 3
    ) -> None:
        self.entries, self.labels = entries, labels
        self.channels, self.size = channels, size
        self.families = [[k] for k in range(len(entries))]
        told = [(e.name, digests[e.name], e.captions, e.group) for e in entries]
        self.fingerprint = hashlib.sha256(
            json.dumps([size, labels, told, *([channels] if channels != 3 else [])]).encode()
        ).hexdigest()

    def __len__(self) -> int:
        return len(self.entries)

    def image(self, index: int) -> Tensor:
        return image.squared(image.pixels(self.stored(index), self.channels, least=2 * self.size), self.size)

    def stored(self, index: int) -> Path:
        return self.entries[index].file

    def fields(self, index: int) -> dict[str, Any]:
        entry = self.entries[index]
        found: dict[str, Any] = {"name": entry.name}
        if entry.captions:
            found["caption"] = list(entry.captions)
        if entry.group is not None:
            found |= {"label": self.labels.index(entry.group), "group": entry.group}
        return found


def listed(root: Path) -> list[Entry]:
    """The pictures under `root` with their captions and classes, sorted by name.

    Raises `ValueError` where there is none, or where a table is not what it should be.
    """
    roots = [root / "train", *aside(root)] if (root / "train").is_dir() and _table(root) is None else [root]
    entries = [entry for folder in roots for entry in _listed(folder, root)]
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
    names = {entry.group for entry in entries if entry.group is not None}
    return tuple(sorted(names, key=lambda name: (int(name) if name.isdecimal() else -1, name)))


def _table(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def _listed(folder: Path, root: Path) -> list[Entry]:
    source = _table(folder)
    if source is not None:
        return [_row(source, number, row, root) for number, row in enumerate(table(source), 1)]
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
    group, file = row.get("label"), source.parent / name
    inner = file.relative_to(root).as_posix() if file.is_relative_to(root) else name
    return Entry(file, inner, tuple(captions), None if group in (None, "") else str(group))


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
) -> dict[str, str]:
    """Name -> hash of the content, of the pictures that can be decoded to their end; warns of the others once.

    The parts of a data set are opened one after the other: while no file changes (`stamps`), they share one survey.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(partial(_tried, channels=channels), entries))
    faults = [text for good, text in found if not good]
    if len(faults) == len(entries):
        raise ValueError(f"none of the {len(entries)} pictures in {root} can be read; the first fault: {faults[0]}")
    if faults:
        log.warning("left out of %s: %d of %d pictures; the first: %s", root, len(faults), len(entries), faults[0])
    return {entry.name: text for entry, (good, text) in zip(entries, found, strict=True) if good}


def _tried(entry: Entry, channels: int) -> tuple[bool, str]:
    """True and the content's hash, or False and the fault."""
    try:
        image.pixels(entry.file, channels, least=64)
        return True, hashlib.blake2b(entry.file.read_bytes(), digest_size=16).hexdigest()
    except (ValueError, OSError) as error:
        return False, str(error)
