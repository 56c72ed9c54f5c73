"""Annotation files of COCO's form: boxes and captions of pictures, in one file or in several, by file name.

They lie in the folder of the pictures or in its `annotations`, or in the `annotations` beside folders of parts, as COCO is
distributed: `train2017`, `val2017` and `annotations/instances_train2017.json`, `annotations/captions_val2017.json`.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sfumato.data.frame import Spot

log = logging.getLogger(__name__)
BEYOND = 1.0  # pixels by which boxes are cut without a word: annotators round
PATTERNS = ("annotations.json", "_annotations.coco.json", "instances*.json", "captions*.json")
YEAR = re.compile(r"(train|val)\d{4}")  # as COCO calls its parts
# which part a file's name ends with
OF = re.compile(r"(?:^|_)((train|valid|validation|val|test|held_out)(\d{4})?)$", re.IGNORECASE)


class Told(NamedTuple):
    """What an annotation file says of one picture; boxes are None where it tells none of any."""

    boxes: tuple[Spot, ...] | None = None
    captions: tuple[str, ...] = ()
    sides: tuple[float, float] | None = None  # (width, height) of the picture that the boxes are of

    def __or__(self, more: "Told") -> "Told":
        """What two files say of it, each thing once."""
        boxes = self.boxes if more.boxes is None else (self.boxes or ()) + _new(more.boxes, self.boxes)
        return Told(boxes, self.captions + _new(more.captions, self.captions), self.sides or more.sides)


def _new(several: Sequence[Any], known: Sequence[Any] | None) -> tuple[Any, ...]:
    return tuple(one for one in several if one not in (known or ()))


def files(root: Path, folders: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """The annotation files of the folders of pictures under a root, each with the folder that it is of; None: of them all."""
    own = {path: folder for folder in folders for path in _files(folder)}
    yield from own.items()
    beside = [root, *(folder.parent for folder in folders if folder != root)]
    beside += [root.parent] if root in folders and YEAR.fullmatch(root.name) else []
    for path in dict.fromkeys(path for folder in beside for path in _files(folder) if path not in own):
        said = OF.search(path.stem)
        if said is None and path.is_relative_to(root):
            yield path, None
        elif said is not None and (folder := next((f for f in folders if _of(said, f.name)), None)):
            yield path, folder


def _files(folder: Path) -> list[Path]:
    return sorted({p for where in (folder, folder / "annotations") for name in PATTERNS for p in where.glob(name)})


def _of(said: "re.Match[str]", name: str) -> bool:
    """Whether a file whose name ends so is of the folder of this name; one of the two may leave the year out."""
    part = OF.search(name)
    if part is None:
        return False
    (whole, kind, year), (own, its, of) = ([g.lower() if g else g for g in m.groups()] for m in (said, part))
    return whole == own or (kind == its and not (year and of))


def told(path: Path) -> tuple[dict[str, Told], tuple[str, ...]]:
    """What a file says, by the pictures' file names, and its categories' names. Raises `ValueError` for another form."""
    return _told(path, path.stat().st_mtime_ns)


def matched(told: Mapping[str, Told], paths: Sequence[str]) -> tuple[dict[str, Told], list[str]]:
    """What is told of each of these paths, and those of which nothing is, because it may be of another.

    A name in a COCO file is the picture's path, or the end of it, or the path is the name's end: a `1.png` is read for
    `images/1.png` where no other picture is called so, and never `b/1.png` for `a/1.png`.
    """
    found = {path: told[path] for path in paths if path in told}
    named: dict[str, list[str]] = {}
    for name in told:
        if name not in found:
            named.setdefault(PurePosixPath(name).name, []).append(name)
    pairs = [
        (path, name)
        for path in paths
        if path not in found
        for name in named.get(PurePosixPath(path).name, ())
        if path.endswith(f"/{name}") or name.endswith(f"/{path}")
    ]
    ways, takers = Counter(path for path, _ in pairs), Counter(name for _, name in pairs)
    sure = {path: told[name] for path, name in pairs if ways[path] == takers[name] == 1}
    return found | sure, sorted(path for path in ways if path not in sure)


@lru_cache(maxsize=16)
def _told(path: Path, stamp: int) -> tuple[dict[str, Told], tuple[str, ...]]:
    """What one file says; while it does not change (`stamp`) it is read, and its faults are told, once."""
    faults: Counter[str] = Counter()
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
        pictures = {row["id"]: row for row in whole["images"]}
        categories = {row["id"]: str(row["name"]) for row in whole.get("categories", ())}
        boxes: dict[Any, list[Spot]] = {key: [] for key in pictures}
        captions: dict[Any, list[str]] = {key: [] for key in pictures}
        for row in whole["annotations"]:
            boxed = bool(row.get("bbox")) and not row.get("iscrowd")
            if row.get("image_id") not in pictures:
                faults["are of pictures that the file does not list and left out"] += 1
            elif row.get("caption") and not row.get("bbox"):  # beside a box it is of what is in that
                captions[row["image_id"]].append(str(row["caption"]).strip())
            elif boxed:
                spot, fault = _spot(categories.get(row.get("category_id")), row["bbox"], pictures[row["image_id"]])
                boxes[row["image_id"]] += [spot] if spot else []
                faults[fault] += 1
        names = {key: PurePosixPath(row["file_name"].replace("\\", "/")).as_posix() for key, row in pictures.items()}
        often = Counter(names.values())
        doubled = sum(len(boxes[key]) + len(captions[key]) for key, name in names.items() if often[name] > 1)
        faults["are of pictures of one name, listed several times, and left out"] += doubled
        found = {
            names[key]: Told(
                tuple(boxes[key]) if categories else None,
                tuple(captions[key]),
                (float(row["width"]), float(row["height"])) if boxes[key] else None,
            )
            for key, row in pictures.items()
            if often[names[key]] == 1
        }
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} is not of COCO's form ({type(error).__name__}: {error}); it wants images, annotations, categories: "
            "give it another name where it is something else"
        ) from None
    if text := ", ".join(f"{count} {fault}" for fault, count in sorted(faults.items()) if fault and count):
        log.warning("%s: of %d annotations %s", path, len(whole["annotations"]), text)
    return found, tuple(categories[key] for key in sorted(categories))


def _spot(name: str | None, box: Sequence[float], row: Mapping[str, Any]) -> tuple[Spot | None, str]:
    """A box [x, y, width, height] in pixels as shares, cut at the picture's edges, None where nothing is left of it; and
    what is wrong with it."""
    if name is None:
        return None, "are of a category that the file does not name and left out"
    try:
        x, y, w, h = (float(v) for v in box)
    except (TypeError, ValueError):
        return None, "are not four numbers and left out"
    wide, high = float(row["width"]), float(row["height"])
    if not (w > 0 and h > 0):  # NaN too
        return None, "are empty or reversed and left out"
    x0, x1, y0, y1 = max(x, 0.0), min(x + w, wide), max(y, 0.0), min(y + h, high)
    if not (x1 > x0 and y1 > y0):
        return None, "lie outside their picture and are left out"
    off = max(x0 - x, x + w - x1, y0 - y, y + h - y1)
    return (name, x0 / wide, y0 / high, x1 / wide, y1 / high), "reach beyond it and are cut" if off > BEYOND else ""
