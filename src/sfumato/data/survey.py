"""One look at every file of a folder before anything is trained on: what cannot be read is found here, not in mid-run.

Every picture is decoded to its end, and so are its map and its pair. Files are looked at by as many threads as there are
processors, JPEGs at a small fraction of their size, and once in a process: while no file changes, the parts share it.
What is seen of a large folder is kept in a file, so that the next program looks only at files whose size or time changed.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from threading import Semaphore
from typing import Any, NamedTuple

import numpy as np

from sfumato import image
from sfumato.data import beside, shelf, twins
from sfumato.data.beside import Classes, Numbers
from sfumato.data.entry import Entry
from sfumato.data.frame import centred

log = logging.getLogger(__name__)
SMALL = 64  # pixels a side that suffice to see what a picture looks like
PIXELS = 16_000_000  # of a picture of which few are decoded at once, for one takes hundreds of megabytes
LARGE = Semaphore(2)
KEPT = 1_000  # pictures from which on what was seen is kept: of fewer it is seen again in seconds
Stamp = tuple[tuple[int, int], ...]  # size and time of an entry's files


class Seen(NamedTuple):
    """What one look tells of a picture."""

    digest: str  # of the file's content
    looks: twins.Looks
    sides: tuple[int, int]  # (width, height) as a person sees it
    ratio: int = 1  # how many times larger than its pair it is, where that is a whole number
    numbers: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # in its map: in all of it, in the centred square
    beside: tuple[str, ...] = ()  # of the content of its map and of its pair, where it has them


def surveyed(
    root: Path, entries: Sequence[Entry], channels: int, known: Classes, cache: Path
) -> tuple[Seen | None, ...]:
    """What is seen of each entry whose picture can be decoded to its end, None of the others, of which it warns once.

    `cache` is the folder where it is kept. Raises `ValueError` where none can be, and for a map that does not fit
    `classes.json` or holds other than class numbers.
    """
    stamps = tuple(tuple(_stamp(path) for path in (e.file, e.map, e.pair) if path is not None) for e in entries)
    return _surveyed(root, tuple(entries), stamps, channels, known, cache.absolute())


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4)
def _surveyed(
    root: Path, entries: tuple[Entry, ...], stamps: tuple[Stamp, ...], channels: int, known: Classes, cache: Path
) -> tuple[Seen | None, ...]:
    told = hashlib.sha256(repr((root.resolve(), channels, known)).encode()).hexdigest()[:16]
    path = cache / f"folder-{told}.json" if len(entries) >= KEPT else None
    marks = [_mark(entry, stamp) for entry, stamp in zip(entries, stamps, strict=True)]
    before = {} if path is None else _before(path)
    found: list[Seen | str | None] = [
        before[e.name][1] if e.name in before and before[e.name][0] == mark else None
        for e, mark in zip(entries, marks, strict=True)
    ]
    new = [k for k, one in enumerate(found) if one is None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = pool.map(partial(_tried, channels=channels, known=known), [entries[k] for k in new])
        for k, one in zip(new, looked, strict=True):
            found[k] = one
    if path is not None and new:
        shelf.write(
            path, {e.name: [m, s] for e, m, s in zip(entries, marks, found, strict=True) if isinstance(s, Seen)}
        )
    faults = [text for text in found if isinstance(text, str)]
    if len(faults) == len(entries):
        raise ValueError(f"none of the {len(entries)} pictures in {root} can be read; the first fault: {faults[0]}")
    if faults:
        log.warning("left out of %s: %d of %d pictures; the first: %s", root, len(faults), len(entries), faults[0])
    return tuple(seen if isinstance(seen, Seen) else None for seen in found)


def _mark(entry: Entry, stamp: Stamp) -> list[Any]:
    """Which files an entry is of, and their state, as JSON has it: where it is the same, so is what is seen."""
    paths = [str(path) for path in (entry.file, entry.map, entry.pair) if path is not None]
    return [*([path, *one] for path, one in zip(paths, stamp, strict=True)), list(entry.sides or ())]


def _before(path: Path) -> dict[str, tuple[Any, Seen]]:
    """By name, the mark of a picture and what was seen of it."""
    found = {}
    try:
        for name, (mark, (digest, looks, sides, ratio, (whole, middle), others)) in (shelf.read(path) or {}).items():
            numbers = tuple(whole), tuple(middle)  # JSON has lists alone
            found[name] = mark, Seen(digest, tuple(looks), tuple(sides), ratio, numbers, tuple(others))
    except (AttributeError, TypeError, ValueError):
        return {}
    return found


def _tried(entry: Entry, channels: int, known: Classes) -> Seen | str:
    """What is seen of a picture, or the fault for which it is left out. Raises for maps that were made wrong, not damaged."""
    try:
        sides = image.sides(entry.file)
        # JPEGs are decoded at a fraction
        large = sides[0] * sides[1] > PIXELS and entry.file.suffix.lower() not in (".jpg", ".jpeg")
        with LARGE if large else nullcontext():
            looks = twins.signature(image.pixels(entry.file, channels, least=SMALL))
            faults = [
                beside.misfit(path, f"its picture {entry.file}", sides) for path in (entry.map, entry.pair) if path
            ]
            faults += [beside.misfit(entry.file, "its COCO annotation", entry.sides)] if entry.sides else []
            if fault := next(filter(None, faults), None):
                return fault
            digest = _digest(entry.file)
            others = tuple(_digest(path) for path in (entry.map, entry.pair) if path is not None)
            ratio = 1
            if entry.pair is not None:
                image.pixels(entry.pair, channels, least=SMALL)
                ratio = _ratio(sides, image.sides(entry.pair))
            shown = None if entry.map is None else beside.opened(entry.map)
    except (ValueError, OSError) as error:
        return str(error)
    if shown is None or entry.map is None:
        return Seen(digest, looks, sides, ratio, beside=others)
    numbers = beside.whole(shown, entry.map, known)
    middle = centred(numbers.shape[1], numbers.shape[0]).cut(numbers)
    return Seen(digest, looks, sides, ratio, (_different(numbers), _different(middle)), others)


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _ratio(sides: tuple[int, int], smaller: tuple[int, int]) -> int:
    """How many times larger a picture is than its pair, 1 where that is not the same whole number on both sides."""
    (wide, rest), (high, left) = (divmod(a, b) for a, b in zip(sides, smaller, strict=True))
    return wide if rest == left == 0 and wide == high else 1


def _different(numbers: Numbers) -> tuple[int, ...]:
    there = np.zeros(256, bool)
    there[numbers] = True
    return tuple(np.flatnonzero(there).tolist())
