"""`kind: table`. Data at scale: Parquet files, WebDataset tars, a folder, or a data set saved by `datasets`.

The rows are read through Hugging Face `datasets` into Arrow files that are mapped into memory; a picture is decoded when
it is asked for. So neither opening nor training takes memory that grows with the table (a byte or so a picture).
"""

import bisect
import hashlib
import json
import os
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from sfumato import image
from sfumato.data import shelf, twins
from sfumato.data.base import Data, Part, Singles
from sfumato.data.rows import Hashes, Table, sources, within
from sfumato.image import Stored
from sfumato.shape import squared

COMPARED = 20_000  # rows of the largest table whose pictures are decoded on first opening, to see which look alike
SMALL = 64  # pixels a side that suffice for that
NOTHING = (0, 0, 0, 0, 0)  # how a picture looks that is nobody's twin
Rows = np.ndarray[Any, np.dtype[np.int64]]


class TableData(Data):
    """Rows of pictures at `path`, their largest centred square at `size` pixels.

    Splits `train` and `val` (or `validation`, `valid`, `test`, `held_out`: the first there is), as folders, as the
    beginning of files' names or in a saved data set, make the parts. Without them, or where `split` names one, a share
    `held_out` of the rows is held out, chosen by the hash of their pictures, and at least one; pictures that look alike
    are on one side, in tables of at most 20,000 rows.
    """

    path: Path = Field(description="a Parquet or tar file, or a folder of them, of pictures, or by `save_to_disk`")
    format: Literal["auto", "parquet", "webdataset", "folder", "arrow"] = "auto"
    image: str | None = Field(None, description="the column of the pictures; by default what types and names tell")
    caption: str | None = Field(None, description="the column of the texts; `json.caption` is a field of a column")
    label: str | None = Field(None, description="the column of the classes")
    split: str | None = Field(None, description="read only this split")
    channels: PositiveInt = Field(3, description="1 gray, 3 colour over white, 4 with transparency; others from arrays")
    held_out: float = Field(0.05, ge=0, lt=1)
    skip: tuple[NonNegativeInt, ...] = Field((), description="numbers of rows to leave out, such as damaged ones")
    cache: Path = Field(Path("runs/data"), description="folder of the Arrow files that the data is read into, once")

    def read(self, part: str) -> "TablePart":
        found = sources(self.path, self.format, self.split)
        asked = (("image", self.image), ("caption", self.caption), ("label", self.label))
        table = _table(found.stamp, self.path, self.format, self.split, self.cache.absolute(), asked)
        hashes, content = table.survey()
        alike = self._alike(table)
        held = self._held(table, hashes, alike)
        if max(self.skip, default=0) >= len(table):
            raise ValueError(f"data.skip names row {max(self.skip)} and {self.path} has {len(table)} rows, from 0")
        gone = np.union1d(np.flatnonzero(hashes == 0), np.array(self.skip, np.int64))
        if part == "held_out":
            rows: Sequence[int] = Picked(np.setdiff1d(held, gone))
        else:
            rows = Rest(len(table), np.union1d(held, gone))
        if not len(rows):
            raise ValueError(
                f"no picture of {self.path} is left for the part {part!r}: it has {len(table)} rows, {len(held)} are held "
                f"out, {len(gone)} are left out and data.held_out is {self.held_out}; add rows, or choose another share"
            )
        told = [content, part, len(table), len(held), self.held_out, gone.tolist(), *table.columns]
        if not np.array_equal(held, self._held(table, hashes, None)):  # where their bytes alone do not say which
            told.append(hashlib.sha256(held.astype(np.int64).tobytes()).hexdigest())
        shown = TablePart(table, rows, self.size, self.channels, json.dumps(told))
        if part == "train" and alike is not None:
            shown.compared = partial(_told, alike, frozenset(held.tolist()))
        return shown

    def _alike(self, table: Table) -> Rows | None:
        """For each row the number of its group of pictures that look alike; None where they are not compared: in large
        tables, whose pictures are decoded when they are shown and not before, and where no share is held out."""
        if len(table) > COMPARED or table.sources.aside or self.held_out == 0:
            return None
        return table.kept(f"alike-{shelf.VERSION}-{self.channels}", partial(_grouped, table, self.channels))

    def _held(self, table: Table, hashes: Hashes, alike: Rows | None) -> Rows:
        """Rows that are held out, sorted. Those that look the same are on one side, and others move none across."""
        if table.sources.aside:
            return np.arange(table.train, len(table))
        if self.held_out == 0:
            return np.arange(0)
        if alike is not None:
            twins.crowded(self.path, alike.tolist())
        if alike is not None and len(set(alike[hashes > 0].tolist())) > 1:  # where all look alike, by their bytes
            decided = twins.deciding([f"{h:016x}" for h in hashes.tolist()], alike.tolist())
            hashes = np.where(hashes == 0, 0, np.array([int(d[:16], 16) for d in decided], np.uint64))
        there = hashes[:] > 0
        share = np.flatnonzero(there & (hashes < np.uint64(self.held_out * 2**64)))
        return share if len(share) else np.flatnonzero(there & (hashes == hashes[there].min(initial=2**64 - 1)))


def _grouped(table: Table, channels: int) -> Rows:
    """The groups of the rows whose pictures look alike; one that cannot be decoded is its own."""

    def looks(row: int) -> twins.Looks:
        found = table.picture(row)
        try:
            source = Stored(found, "") if isinstance(found, bytes) else found
            return NOTHING if source is None else twins.signature(image.pixels(source, channels, least=SMALL))
        except ValueError:  # it is told when it is shown
            return NOTHING

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return np.array(twins.groups(list(pool.map(looks, range(len(table))))), np.int64)


def _told(alike: Rows, out: Set[int]) -> str:
    names = [f"row {row}" for row in range(len(alike))]
    return twins.alike(names, alike.tolist(), {f"row {row}" for row in out})


@lru_cache(maxsize=4)
def _table(
    stamp: str, path: Path, format: str, split: str | None, cache: Path, asked: tuple[tuple[str, str | None], ...]
) -> Table:
    """The parts of a data set are opened one after the other: while no file changes (`stamp`), they share one table."""
    return Table(sources(path, format, split), cache, dict(asked))


class TablePart(Part):
    """Pictures decoded on demand; each family is one picture."""

    def __init__(self, table: Table, rows: Sequence[int], size: int, channels: int, told: str) -> None:
        self.table, self.rows = table, rows
        self.compared: Callable[[], str] = str
        self.size, self.channels = size, channels
        self.names = _classes(table)
        self.labels = tuple(self.names.values())
        self.places = {value: k for k, value in enumerate(self.names)}
        self.families = Singles(len(rows))
        self.fingerprint = hashlib.sha256(json.dumps([told, size, channels, self.labels]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def alike(self) -> str:
        return self.compared()

    def stored(self, index: int) -> Stored | Path:
        row = self.rows[index]
        found = self.table.picture(row)
        assert found is not None  # such rows are left out
        return found if isinstance(found, Path) else Stored(found, f"row {row}")

    def image(self, index: int) -> Tensor:
        source = self.stored(index)
        try:
            return squared(image.pixels(source, self.channels, least=2 * self.size), self.size)
        except ValueError as error:
            row = self.rows[index]
            told = str(error).replace(str(source), self.table.place(row), 1) if isinstance(source, Stored) else error
            raise ValueError(f"{told}; or leave it out by adding {row} to data.skip") from None

    def fields(self, index: int) -> dict[str, Any]:
        row, columns = self.rows[index], self.table.columns
        facts = self.table.facts(row)
        found: dict[str, Any] = {"name": self.table.name(row, facts)}
        said = within(facts, columns.caption)
        captions = [said] if isinstance(said, str) else said or []
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            raise ValueError(
                f"{self.table.place(row)}: a caption is a text or a list of texts and {columns.caption!r} holds {said!r}; "
                "name another column as data.caption"
            )
        if any(captions):
            found["caption"] = [text for text in captions if text]
        value = within(facts, columns.label)
        if isinstance(value, list):
            known = [one for one in dict.fromkeys(value) if one in self.places]
            found |= (
                {"label": [self.places[v] for v in known], "group": [self.names[v] for v in known]} if known else {}
            )
        elif value in self.places:
            found |= {"label": self.places[value], "group": self.names[value]}
        return found


def _classes(table: Table) -> dict[Any, str]:
    """Value -> name of the classes, in order: those that the column's type names, or the values that there are."""
    column = table.columns.label
    if column is None:
        return {}
    kind = table.features.get(column)
    named = getattr(getattr(kind, "feature", kind), "names", None)  # of a list, what it is of
    if named is not None:
        return dict(enumerate(named))
    values = table.values(column)
    if not all(isinstance(value, str | int) for value in values):
        raise ValueError(f"classes are texts or whole numbers and {column!r} holds others; name another as data.label")
    return {value: str(value) for value in sorted(values, key=_numbered)}


def _numbered(value: str | int) -> tuple[int, str]:
    """Numbers in the order of numbers, before other names."""
    return (int(value), "") if str(value).isdecimal() else (2**63, str(value))


class Picked(Sequence[int]):
    """Some rows of a table."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> Any:
        return [int(k) for k in self.rows[place]] if isinstance(place, slice) else int(self.rows[place])


class Rest(Sequence[int]):
    """The rows of a table but some, sorted: only these take memory."""

    def __init__(self, count: int, without: Rows) -> None:
        self.total = count - len(without)
        self.before = without - np.arange(len(without))  # rows that stay, before each one left out

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> Any:
        found = range(self.total)[place]
        if isinstance(found, range):
            return [self[k] for k in found]
        return found + bisect.bisect_right(self.before, found)
