"""Which pictures a folder holds, in which parts, and what its names, tables and neighbours say of each.

The layouts are those of Hugging Face's `imagefolder` (class folders, `metadata.jsonl`, `train` and `val`), a `NAME.txt`
beside each picture, folders `maps` and `pairs` beside `images`, and COCO as it is distributed. Nothing is decoded here.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.data import beside, coco
from sfumato.data.coco import Told
from sfumato.data.entry import COMPANIONS, Entry, gathered, of_row, table, within
from sfumato.data.once import warn
from sfumato.data.rows import HELD_OUT

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".npy",
}  # fmt: skip
UNREAD = {".heic", ".heif"}  # pictures that Pillow does not read by itself: they are named, and none of a folder's
PROSE = {"", ".md", ".txt", ".rst", ".html", ".pdf"}  # of a README or a licence beside a folder
TABLES = ("metadata.jsonl", "metadata.csv")
OURS = ("recipe.yaml", "model.yaml")  # which a run's folder and a model's hold


class Parts(NamedTuple):
    """Folders of a data set."""

    train: Path
    aside: Path | None  # held out; where None, a share of the other is


def listed(root: Path) -> list[Entry]:
    """The pictures under `root` with their captions and classes, sorted by name.

    Raises `ValueError` where there is none, or where a table is not what it should be.
    """
    several = {folder: _listed(folder, root) for folder in folders(root)}
    unread = [path for path in walked(root) if path.suffix.lower() in UNREAD]
    if unread:
        told = f"{len(unread)} pictures are of a format that is not read; convert them; the first: {unread[0].name}"
        warn(__name__, f"{root}: {told}")
    entries = _annotated(several, root)
    if not entries:
        raise ValueError(
            f"there are no pictures in {root}; it may hold {', '.join(sorted(SUFFIXES))} files or class folders"
        )
    return sorted(entries, key=lambda entry: entry.name)


def folders(root: Path) -> list[Path]:
    """Where the pictures are: the parts, or the folder itself where it has none, or one table of all of it."""
    parts = parted(root)
    if parts is None or _table(root) is not None:
        return [root]
    return [folder for folder in parts if folder is not None]


def unwrapped(path: Path) -> Path:
    """The folder itself, or the only folder in it, beside a README or none, where that has parts or a table: archives often
    add one."""
    only, prose = None, False
    with os.scandir(path) as inner:
        for one in inner:
            if one.name.startswith(".") or one.name == "__MACOSX":
                continue
            if one.is_dir() and only is None:
                only = path / one.name
            elif one.is_dir() or Path(one.name).suffix.lower() not in PROSE:
                return path
            else:
                prose = True
    if only is None or (prose and parted(path)):
        return path
    return only if parted(only) or _table(only) else path


def parted(root: Path) -> Parts | None:
    """The parts of a folder, None where it has none.

    `train` and the first there is of `val`, `validation`, ..., or what COCO calls them, `train2017` and `val2017`, of the
    last year that is there; in the folder itself, or in its `images`.
    """
    for folder in (root, root / "images"):
        found = {
            p.name.lower(): p
            for p in (folder.iterdir() if folder.is_dir() else ())
            if _names_part(p.name) and p.is_dir()
        }
        aside = next((found[name] for name in HELD_OUT if name in found), None)
        if "train" in found and (aside or (folder == root and not _beside_train(found["train"]))):
            if unread := sorted(p.name for p in found.values() if p not in (found["train"], aside)):
                warn(__name__, f"{folder}: {', '.join(unread)} are neither trained on nor held out, and are not read")
            return Parts(found["train"], aside)
        years = sorted(name for name in found if coco.YEAR.fullmatch(name))  # all of train before all of val
        train, val = ([found[name] for name in years if name.startswith(part)] for part in ("train", "val"))
        if train:
            same = found.get(train[-1].name.lower().replace("train", "val"))
            return Parts(train[-1], same or (val[-1] if val else None))
        if val:
            return Parts(val[-1], None)
    return None


def _beside_train(train: Path) -> bool:
    """Whether pictures lie in `train` itself and in other folders beside it, so that it is the name of a class."""
    if not any(p.suffix.lower() in SUFFIXES for p in train.iterdir()):
        return False
    others = (p for p in train.parent.iterdir() if p.is_dir() and p.name not in (train.name, *COMPANIONS.values()))
    return any(next(pictures(p), None) is not None for p in others if not p.name.startswith(".") and not _ours(p))


def _names_part(name: str) -> bool:
    name = name.lower()
    return name == "train" or name in HELD_OUT or coco.YEAR.fullmatch(name) is not None


def aside(root: Path) -> list[Path]:
    """The folder that is held out; empty where there is none."""
    parts = parted(root)
    return [parts.aside] if parts is not None and parts.aside is not None else []


def labels(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The names of the classes, numbers in the order of numbers: those of all parts, so that an index means one class."""
    groups = [(e.group,) if isinstance(e.group, str) else e.group or () for e in entries]
    names = {name for group in groups for name in group}
    return tuple(sorted(names, key=lambda name: (int(name) if name.isdecimal() else -1, name)))


def categories(root: Path, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Names of the classes of boxes: COCO's categories in their order, else those that boxes name, sorted."""
    named = [name for path, _ in coco.files(root, folders(root)) for name in coco.told(path)[1]]
    if named:
        return tuple(dict.fromkeys(named))
    return tuple(sorted({spot[0] for e in entries for spot in e.boxes or () if isinstance(spot[0], str)}))


def _table(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def _annotated(several: dict[Path, list[Entry]], root: Path) -> list[Entry]:
    """All entries, with the boxes and captions that files of COCO's form say of them."""
    entries = [entry for one in several.values() for entry in one]
    found: dict[Path, Told] = {}
    for path, of in coco.files(root, list(several)):
        folder, those = (root, entries) if of is None else (of, several[of])
        inner = [within(entry.file, folder) or entry.name for entry in those]
        known, doubtful = coco.matched(coco.told(path)[0], inner)
        if doubtful:
            warn(
                __name__,
                f"{path}: annotations of {len(doubtful)} pictures are not read, for several pictures or annotations are "
                f"called so; the first: {doubtful[0]}",
            )
        for entry, name in zip(those, inner, strict=True):
            found[entry.file] = found.get(entry.file, Told()) | known.get(name, Told())
    return [_with(entry, found[entry.file]) if entry.file in found else entry for entry in entries]


def _with(entry: Entry, told: Told) -> Entry:
    name = entry.group.lower() if isinstance(entry.group, str) else entry.group
    group = None if name in ("images", "train", "val") else entry.group
    boxes = entry.boxes if told.boxes is None else told.boxes
    return entry._replace(boxes=boxes, captions=entry.captions + told.captions, group=group, sides=told.sides)


def _listed(folder: Path, root: Path) -> list[Entry]:
    images, companions = _companions(folder, root)
    source = _table(folder)
    if source is not None:
        said = table(source)
        rows = _worded(gathered([of_row(source, number, row, root) for number, row in enumerate(said, 1)]), source)
        _unnamed(source, said, rows, companions)
        return _accompanied(rows, images, companions, all_of_them=False)
    if images != folder:
        return _accompanied(_listed(images, root), images, companions, all_of_them=True)
    shown = list(_shown(list(walked(folder)), folder))
    inside = [(path, path.relative_to(folder)) for path in shown if path.suffix.lower() in SUFFIXES]
    loose = [name for _, name in inside if len(name.parts) == 1]
    if companions := _beside_loose(folder, inside, companions):
        inside = [(path, name) for path, name in inside if not {*companions.values()}.intersection(path.parents)]
    grouped = not loose
    if 0 < 10 * len(loose) <= len(inside):
        told = f"{len(loose)} of {len(inside)} pictures lie beside its folders, such as {min(loose)}"
        warn(__name__, f"{folder}: {told}, so that folders are no classes; move them")
    entries = [
        Entry(
            path,
            path.relative_to(root).as_posix(),
            _beside(path.with_suffix(".txt")),
            name.parent.as_posix() if grouped else None,
        )
        for path, name in inside
    ]
    return _accompanied(_told(entries, shown, root), images, companions, all_of_them=True)


def _worded(rows: list[Entry], source: Path) -> list[Entry]:
    """The rows, those without words with the lines of the text file beside their picture."""
    found = [row if row.captions else row._replace(captions=_beside(row.file.with_suffix(".txt"))) for row in rows]
    if taken := sum(a.captions != b.captions for a, b in zip(rows, found, strict=True)):
        warn(__name__, f"{source} has no words for {taken:,} pictures that have a text file, and that is read")
    return found


def _unnamed(source: Path, said: Sequence[Any], rows: Sequence[Entry], companions: dict[str, Path]) -> None:
    """Warn of the pictures beside a table, and below, that it does not name, in any column."""
    named, folder = {path for row in rows for path in (row.file, row.map, row.pair) if path is not None}, source.parent
    if left := [path for path in pictures(folder) if path not in named]:  # by another road, or in columns of others
        others = {folder / value for row in said for value in row.values() if isinstance(value, str)}
        known, beside = {os.path.realpath(path) for path in named | others}, {*companions.values()}
        left = [p for p in left if os.path.realpath(p) not in known and not beside.intersection(p.parents)]
    if left:
        told = f"{len(left):,}, such as {min(left).relative_to(folder).as_posix()}"
        warn(__name__, f"{source} leaves out pictures of its folder that it does not name: {told}")


def _told(entries: list[Entry], shown: Sequence[Path], root: Path) -> list[Entry]:
    """The entries with what the tables among the files that are `shown` say of them; what these leave unsaid stays. Rows of
    other pictures are entries of their own."""
    sources = {source for path in shown if path.name in TABLES and (source := _table(path.parent))}
    said: dict[Path, list[Entry]] = {}
    for source in sorted(sources):
        rows = table(source)
        if rows and not any(isinstance(row, dict) and row.get("file_name") for row in rows):
            warn(__name__, f"{source} names no pictures by `file_name` and is not read")
            continue
        for number, row in enumerate(rows, 1):
            told = of_row(source, number, row, root)
            said.setdefault(told.file, []).append(told)
    found = []
    for entry in entries:
        for row in gathered(said.pop(entry.file, [entry])):
            more = {name: value for name, value in row._asdict().items() if value not in (None, ())}
            found.append(entry._replace(**more))
    return [*found, *(row for several in said.values() for row in several)]


def pictures(folder: Path, suffixes: Collection[str] = SUFFIXES) -> Iterator[Path]:
    """The picture files under a folder, in no order, but hidden ones and those of runs and models that lie in it."""
    for path in _shown(list(walked(folder)), folder):
        if path.suffix.lower() in suffixes:
            yield path


def _shown(there: Sequence[Path], folder: Path) -> Iterator[Path]:
    """The files that are neither hidden nor in a run or a model."""
    ours = {path.parent for path in there if path.name in OURS and path.parent != folder and _ours(path.parent)}
    for path in there:
        if any(p.startswith(".") for p in path.relative_to(folder).parts):
            continue
        if not ours or not ours.intersection(path.parents):
            yield path


def walked(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files under a folder, those of linked folders too, but of one that leads back to where it lies."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        inside = list(os.scandir(folder))
    except PermissionError:  # as `lost+found` of a disk
        warn(__name__, f"{folder} may not be read and is left out")
        return
    for one in inside:
        if one.is_dir(follow_symlinks=False) or (one.is_symlink() and os.path.isdir(one.path)):
            yield from walked(folder / one.name, (*above, real))
        else:
            yield folder / one.name


def _ours(folder: Path) -> bool:
    """Whether a folder is that of a run or of a model."""
    several = (folder / name for name in OURS)
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in several if path.is_file())
    return any(re.search(r"^stage: ", text, re.MULTILINE) for text in texts)


def _companions(folder: Path, root: Path) -> tuple[Path, dict[str, Path]]:
    """Where the pictures of a folder are, and what stands beside them, by field: `maps` beside `images`, or `maps/train2017`
    where the folder is `images/train2017`."""
    found = {field: folder / name for field, name in COMPANIONS.items() if (folder / name).is_dir()}
    if found and (folder / "images").is_dir():
        return folder / "images", found
    if folder != root and folder.parent.name == "images":
        where = {field: folder.parent.parent / name / folder.name for field, name in COMPANIONS.items()}
        return folder, {field: path for field, path in where.items() if path.is_dir()}
    return folder, {}


def _beside_loose(folder: Path, inside: Sequence[tuple[Path, Path]], companions: dict[str, Path]) -> dict[str, Path]:
    """The folders beside pictures, `companions` where these are known; `maps` and `pairs` beside pictures that lie in no
    folder are such, too, where all that they hold has the names of those."""
    loose = {name.stem for _, name in inside if len(name.parts) == 1}
    found = {}
    for field, called in COMPANIONS.items():
        stems = {name.stem for _, name in inside if name.parts[0] == called and len(name.parts) == 2}
        if stems and stems <= loose:
            found[field] = folder / called
    return companions or found


def _accompanied(entries: list[Entry], images: Path, companions: dict[str, Path], all_of_them: bool) -> list[Entry]:
    """The entries with the files of their names in the folders beside `images`; those that a table named stay.

    Raises `ValueError` where there is none and `all_of_them` need one.
    """
    for field, folder in companions.items():
        there = {path.relative_to(folder).with_suffix(""): path for path in sorted(pictures(folder), reverse=True)}
        for k, entry in enumerate(entries):
            if getattr(entry, field) is not None or not entry.file.is_relative_to(images):
                continue
            found = there.get(entry.file.relative_to(images).with_suffix(""))
            if found is None and all_of_them:
                raise ValueError(f"{folder} has no {field} for {entry.name}; every picture in {images.name} needs one")
            more: dict[str, Any] = {field: found}
            entries[k] = entry._replace(**more)
    return entries


def _beside(path: Path) -> tuple[str, ...]:
    """The lines of a text file, each a caption, its ending in capitals too; () where there is no file. Raises `ValueError` for
    one that is no text."""
    there = next((p for p in (path, path.with_suffix(path.suffix.upper())) if p.is_file()), None)
    return tuple(line.strip() for line in beside.text(there).split("\n") if line.strip()) if there else ()
