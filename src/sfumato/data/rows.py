"""Tables of pictures, read through Hugging Face `datasets`: Parquet, WebDataset tars, folders, saved data sets.

Whatever the format, the rows end as Arrow files that are mapped into memory, so that a table of a terabyte costs as
little memory as one of a megabyte. Nothing is decoded here: a picture is the bytes that were stored. One pass over them,
whose result is kept beside the Arrow files, gives each row's hash.
"""

import glob
import hashlib
import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfumato import files
from sfumato.data import coco

log = logging.getLogger(__name__)
FORMATS = {"parquet": "*.parquet", "webdataset": "*.tar"}
SPLIT = re.compile(r"(train|validation|valid|val|test|held_out)(?![a-z])")
HELD_OUT = ("val", "validation", "valid", "test", "held_out")
IMAGES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "bytes", "content")
CAPTIONS = ("caption", "captions", "text", "prompt", "txt", "json.caption", "json.text", "json.prompt")
LABELS = ("label", "labels", "class", "cls", "json.label", "json.class")
NONE = "none"  # as `data.label`: no column of classes, where none is called so
AT_ONCE = 64  # rows of one meal of the pass that hashes
Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Integers = np.ndarray[Any, Any]


class Sources(NamedTuple):
    """What a table is read from: files, or folders for the formats `folder` and `arrow`."""

    format: str
    train: list[Path]
    aside: list[Path]  # another split, which is held out

    @property
    def stamp(self) -> str:
        """12 hexadecimal digits that change with the name, size or time of any file."""
        inside = [sorted(p.rglob("*")) if p.is_dir() else [p] for p in (*self.train, *self.aside)]
        stats = [(str(p.resolve()), p.stat()) for several in inside for p in several if p.is_file()]
        told = [(name, found.st_size, found.st_mtime_ns) for name, found in stats]
        return hashlib.sha256(json.dumps([self.format, len(self.train), told]).encode()).hexdigest()[:12]


class Columns(NamedTuple):
    """Names of columns; `json.caption` is the field `caption` of the column `json`. None: there is none."""

    image: str
    caption: str | None
    label: str | None


def sources(path: Path, format: str, split: str | None) -> Sources:
    """What to read under `path`. Raises `ValueError` where there is nothing of the format, or no such split."""
    if not path.exists():
        raise ValueError(f"there is no {path}; give a file or a folder of your data as data.path")
    format = detected(path) if format == "auto" else format
    groups = _groups(path, format)
    if not groups:
        raise ValueError(f"{path} holds no {FORMATS[format]} file; choose another data.format, or auto")
    if split is not None:
        if split not in groups:
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(filter(None, groups)) or 'no splits'}")
        return Sources(format, groups[split], [])
    if "train" not in groups:
        return Sources(format, [p for several in groups.values() for p in several], [])
    aside = next((name for name in HELD_OUT if name in groups), None)
    unread = sorted(str(p) for name in set(groups) - {"train", aside} for p in groups[name])
    if unread:
        log.warning("%s: %d files belong to neither train nor held_out and are not read", path, len(unread))
    return Sources(format, groups["train"], groups[aside] if aside else [])


def detected(path: Path) -> str:
    """The format of what lies at `path`."""
    if path.is_file():
        found = next((f for f, pattern in FORMATS.items() if path.match(pattern)), None)
        if found is None:
            raise ValueError(f"{path} is neither a .parquet nor a .tar file; give one, or a folder, as data.path")
        return found
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "arrow"
    return next((f for f, pattern in FORMATS.items() if any(p.is_file() for p in path.rglob(pattern))), "folder")


def _groups(path: Path, format: str) -> dict[str, list[Path]]:
    """The sources of each split; those of none go by an empty name."""
    if format == "arrow":
        table = path / "dataset_dict.json"
        names = json.loads(table.read_text(encoding="utf-8"))["splits"] if table.is_file() else [""]
        return {name: [path / name] for name in names}
    if format == "folder":
        # COCO's parts have the year in their names: of several the last is read
        folders = [(coco.YEAR.fullmatch(p.name.lower()), p) for p in sorted(path.iterdir()) if p.is_dir()]
        parts = [(year[1] if year else p.name.lower(), p) for year, p in folders]
        named = {name: [p] for name, p in parts if name in ("train", *HELD_OUT)}
        return named if "train" in named else {"": [path]}
    groups: dict[str, list[Path]] = {}
    for file in [path] if path.is_file() else sorted(p for p in path.rglob(FORMATS[format]) if p.is_file()):
        words = (file.name,) if path.is_file() else file.relative_to(path).parts
        name = next((found[1] for word in words if (found := SPLIT.match(word.lower()))), "")
        groups.setdefault(name, []).append(file)
    return groups


class Table:
    """The rows of both splits, those of `train` first."""

    def __init__(self, found: Sources, cache: Path, asked: dict[str, str | None]) -> None:
        self.sources = found
        self.folder = cache / f"{found.train[0].stem}-{found.stamp}"
        parts = [_read(found.format, several, self.folder) for several in (found.train, found.aside) if several]
        _release()
        self.train = len(parts[0])
        whole = parts[0] if len(parts) == 1 else _joined(parts)
        self.columns = _columns(whole, asked)
        self.features = whole.features
        told = [c.split(".")[0] for c in (self.columns.caption, self.columns.label) if c]
        known = [c for c in dict.fromkeys((*told, "__key__", "__url__")) if c in whole.column_names]
        self._pictures = whole.select_columns([self.columns.image]).with_format("arrow")
        self._facts = whole.select_columns(known).with_format("arrow")

    def __len__(self) -> int:
        return len(self._pictures)

    def picture(self, row: int) -> bytes | Path | None:
        """The content of the picture file in a row, or where that lies; None where there is none."""
        return _content(self._pictures[row].column(0)[0].as_py())

    def facts(self, row: int) -> dict[str, Any]:
        """What a row says besides its picture: the columns of captions and classes, and the key and file of a tar's."""
        if not self._facts.column_names:  # which has no rows either
            return {}
        found = self._facts[row]
        return {name: column[0].as_py() for name, column in zip(found.column_names, found.columns, strict=True)}

    def values(self, column: str) -> list[Any]:
        """The different values of a column, without None."""
        import pyarrow as pa
        import pyarrow.compute as pc

        first, _, rest = column.partition(".")
        found = self._facts.data.column(first)
        found = pc.struct_field(found, rest) if rest else found
        try:
            unique = pc.unique(
                pc.list_flatten(found) if pa.types.is_list(found.type) or pa.types.is_large_list(found.type) else found
            )
        except pa.ArrowNotImplementedError:  # values that Arrow cannot compare, such as structures
            raise ValueError(
                f"column {column!r} holds {found.type} and classes are texts or whole numbers, or lists of them; name another "
                "as data.label, or none for no classes"
            ) from None
        return [value for value in unique.to_pylist() if value is not None]

    def name(self, row: int, facts: dict[str, Any]) -> str:
        """The picture's file inside a folder, its key in a tar, or the row's number."""
        if self.sources.format == "folder" and isinstance(file := self.picture(row), Path):
            root = self.sources.train[0].resolve().parent
            return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()
        return str(facts.get("__key__") or row)

    def place(self, row: int) -> str:
        """Where a row lies, for errors: its number, and its file as far as that is known."""
        facts = self.facts(row)
        key, url = facts.get("__key__"), facts.get("__url__")
        if url is not None:
            return f"row {row} ({key} of {url})"
        if self.sources.format != "parquet":
            return f"row {row} of {(self.sources.train if row < self.train else self.sources.aside)[0]}"
        import pyarrow.parquet as pq

        inner = row
        for file in (*self.sources.train, *self.sources.aside):
            rows = pq.read_metadata(file).num_rows
            if inner < rows:
                return f"row {row} (row {inner} of {file})"
            inner -= rows
        return f"row {row}"

    def survey(self) -> tuple[Hashes, str]:
        """A hash of each row's picture, 0 where it has none, mapped into memory; and one of all that the rows say.

        They are worked out once and kept in the table's folder.
        """
        name = hashlib.sha256(f"{self.columns!r}{self._files()}".encode()).hexdigest()[:8]
        kept, facts = self.folder / f"hashes-{name}.npy", self.folder / f"survey-{name}.json"
        if not facts.is_file():
            hashes, content = self._surveyed()
            _release()
            files.write(kept, lambda part: _save(part, hashes))
            files.write(facts, json.dumps({"content": content}))
        return np.load(kept, mmap_mode="r"), json.loads(facts.read_text(encoding="utf-8"))["content"]

    def kept(self, name: str, make: Callable[[], Integers]) -> Integers:
        """An array of whole numbers, one a row, mapped into memory: made once and kept in the table's folder by its name."""
        own = hashlib.sha256(f"{self.columns.image}{self._files()}".encode()).hexdigest()[:8]
        path = self.folder / f"{name}-{own}.npy"
        if not path.is_file():
            made = make()
            _release()
            files.write(path, lambda part: _save(part, made))
        found: Integers = np.load(path, mmap_mode="r")
        return found

    def _files(self) -> str:
        """What changes with the name, size or time of any picture file that the rows name, which the table's own files do
        not tell; empty where they hold the pictures."""
        if self.sources.format == "folder":  # whose stamp is of the pictures too
            return ""
        told = hashlib.sha256()
        for path in _named(self._pictures.data.column(0)):
            try:
                found = Path(path).stat()
            except OSError:  # which reading it tells
                continue
            told.update(json.dumps([path, found.st_size, found.st_mtime_ns]).encode())
        return told.hexdigest() if told.digest() != hashlib.sha256().digest() else ""

    def _surveyed(self) -> tuple[Hashes, str]:
        whole, hashes = hashlib.sha256(), np.empty(len(self), np.uint64)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for begin in range(0, len(self), AT_ONCE):
                rows = range(begin, min(begin + AT_ONCE, len(self)))
                cells = self._pictures[rows.start : rows.stop].column(0)
                hashes[rows.start : rows.stop] = list(pool.map(_hash, (_content(c.as_py()) for c in cells)))
                whole.update(hashes[rows.start : rows.stop].tobytes())
                facts = self._facts[rows.start : rows.stop]
                told = [facts.column(c).to_pylist() for c in facts.column_names if c != "__url__"]
                whole.update(json.dumps(told, default=str).encode())
        if empty := int((hashes == 0).sum()):
            log.warning("left out of %s: %d of %d rows, which have no picture", self.sources.train[0], empty, len(self))
        return hashes, whole.hexdigest()


def _release() -> None:
    """Give back what Arrow keeps for itself after it has read and written."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


def within(facts: dict[str, Any], column: str | None) -> Any:
    """The value of a column, or of a field in one; None where there is none."""
    first, _, rest = (column or "").partition(".")
    value = facts.get(first)
    return value.get(rest) if rest and isinstance(value, dict) else None if rest else value


def _content(value: Any) -> bytes | Path | None:
    if isinstance(value, dict):  # as `datasets` stores pictures
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    return Path(value) if isinstance(value, str) else value


def _named(column: Any) -> Iterator[str]:
    """The paths of the pictures that a column of Arrow names and does not hold."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for chunk in column.chunks:
        if pa.types.is_struct(chunk.type) and {"path", "bytes"} <= {field.name for field in chunk.type}:
            chunk = chunk.field("path").filter(pc.is_null(chunk.field("bytes")))
        if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
            yield from (path for path in chunk.to_pylist() if path is not None)


def _hash(content: bytes | Path | None) -> int:
    if content is None:
        return 0
    if not isinstance(content, bytes | Path):
        raise ValueError(
            f"the column of the pictures holds {type(content).__name__} and not picture files; name another as data.image"
        )
    if isinstance(content, Path):
        try:
            content = content.read_bytes()
        except OSError as error:
            raise ValueError(
                f"the table names the picture {content!s}, which cannot be read ({error.strerror}); write its bytes into the "
                "table, or its whole path"
            ) from None
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _save(path: Path, array: Integers) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _library() -> Any:
    """Hugging Face `datasets`, told to stay offline."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    return datasets


def _read(format: str, found: Sequence[Path], cache: Path) -> Any:
    """A `datasets.Dataset`, its Arrow files mapped into memory."""
    library = _library()
    try:
        if format == "arrow":
            return _joined([library.load_from_disk(str(p)) for p in found])
        if format == "folder":
            where = {"data_dir": glob.escape(str(found[0])), "data_files": {"train": ["**"]}}
            read = library.load_dataset("imagefolder", **where, split="train", cache_dir=str(cache))
            return _sorted(read) if len([*found[0].rglob("metadata.*")]) > 1 else read
        where = {"data_files": {"train": [glob.escape(str(p)) for p in found]}}
        return library.load_dataset(format, **where, split="train", cache_dir=str(cache))
    except (library.exceptions.DatasetsError, ValueError, FileNotFoundError, tarfile.TarError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"{found[0]}{' and others' if len(found) > 1 else ''} cannot be read as {format} ({reason}); copy it again, "
            "or choose another data.format"
        ) from None
    except OSError as error:
        raise files.full(error, cache) from error


def _sorted(read: Any) -> Any:
    """The rows by the names of their pictures: `datasets` reads several tables of a folder in no order."""
    column = next((name for name, feature in read.features.items() if type(feature).__name__ == "Image"), None)
    if column is None:
        return read
    names = [str(cell["path"]) for cell in read.select_columns([column]).with_format("arrow")[:][column].to_pylist()]
    return read.select(sorted(range(len(names)), key=names.__getitem__))


def _joined(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else _library().concatenate_datasets(list(parts))


def _columns(table: Any, asked: dict[str, str | None]) -> Columns:
    """The columns asked for, or what names and types tell. Raises `ValueError` with those that there are."""
    have = list(_names(table.features))
    for role, name in asked.items():
        if name is not None and name not in have and not (role == "label" and name == NONE):
            raise ValueError(f"the table has no column {name!r} for data.{role}; it has {', '.join(have)}")
    pictures = [name for name, feature in table.features.items() if type(feature).__name__ == "Image"]
    named = asked["image"] or next((n for n in (*pictures, *IMAGES) if n in have), None)
    if named is None:
        raise ValueError(
            f"no column of the table is known to hold pictures; name one of {', '.join(have)} as data.image"
        )
    caption = asked["caption"] or next((n for n in CAPTIONS if n in have and n != named), None)
    label = asked["label"] or next((n for n in LABELS if n in have and n != named), None)
    return Columns(named, caption, label if label in have else None)


def _names(features: Any) -> Iterator[str]:
    for name, feature in features.items():
        yield name
        if isinstance(feature, dict):
            yield from (f"{name}.{inner}" for inner in feature)
