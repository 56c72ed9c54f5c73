"""What stands beside the pictures of a folder: maps, boxes and pairs.

A row of `metadata.jsonl` may name a `map` and a `pair` (picture files) and list `boxes`; or a folder `maps` stands
beside a folder `images`, with a file of the same name for each picture; or boxes are in a file of COCO's form. The names
of a map's classes, and their colours where maps are in colour, are in `classes.json`: {classes, palette}.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from sfumato import image
from sfumato.data.frame import Frame, Spot

log = logging.getLogger(__name__)
BEYOND = 1.0  # pixels by which boxes are cut without a word: annotators round

COCO = ("annotations.json", "_annotations.coco.json", "instances*.json", "annotations/instances*.json")


class Classes(NamedTuple):
    """Names of a map's classes, and their colours; () where there are none."""

    names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()


NO_CLASSES = Classes()


class Told(NamedTuple):
    """What an annotation file says of one picture."""

    boxes: tuple[Spot, ...]
    captions: tuple[str, ...]
    sides: tuple[float, float] | None = None  # (width, height) of the picture that the boxes are of


def classes(*folders: Path) -> Classes:
    """Those of the first `classes.json` in these folders. Raises `ValueError` where it is not what it should be."""
    path = next((f / "classes.json" for f in folders if (f / "classes.json").is_file()), None)
    if path is None:
        return NO_CLASSES
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        names = found if isinstance(found, list) else found.get("classes", found.get("names"))
        palette = () if isinstance(found, list) else found.get("palette", ())
        colours = tuple((int(r), int(g), int(b)) for r, g, b in palette)
        if not names or not all(isinstance(n, str) for n in names) or (colours and len(colours) != len(names)):
            raise ValueError("names and colours do not fit")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is not {{"classes": [names], "palette": [[r, g, b]]}}, a colour a class ({error})'
        ) from None
    return Classes(tuple(names), colours)


def numbers(path: Path, frame: Frame, size: int, known: Classes) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """A map as the frame shows it, (size, size) uint8 class numbers: never interpolated.

    A gray picture or one with a palette holds numbers; in colour they are told by the palette of `classes.json`. Raises
    `ValueError` for unknown colours, numbers above 255, and where a map cannot be read.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            turned = ImageOps.exif_transpose(opened)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a map ({error}); replace or remove it") from None
    if turned.mode == "F":
        raise ValueError(
            f"{path} holds floats and a map whole class numbers: save it gray, of 8 bits, or with a palette"
        )
    plain = turned.mode in ("L", "P", "1", *image.DEEP)
    part = frame.cut(np.asarray(turned) if plain else _indexed(np.asarray(turned.convert("RGB")), path, known))
    if part.min() < 0 or part.max() > 255:
        raise ValueError(
            f"{path} holds class numbers {part.min()} to {part.max()} and a map's go from 0 to 255: number its classes anew"
        )
    side = Image.fromarray(part.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.array(side)


def misfit(path: Path, what: str, sides: tuple[float, float]) -> str | None:
    """What is wrong where the picture at `path` has not the shape of these sides, to a pixel of the smaller one."""
    (wide, high), (w, h) = image.sides(path), sides
    if abs(high * w - wide * h) <= max(wide, high, w, h):
        return None
    return f"{path} is {wide}x{high} and {what} {w:g}x{h:g}, which is another shape"


def _indexed(colours: "np.ndarray[Any, Any]", path: Path, known: Classes) -> "np.ndarray[Any, Any]":
    """Class numbers of a map in colour."""
    if not known.palette:
        raise ValueError(f"{path} is a map in colour: give its classes' colours as `palette` in classes.json")
    same = (colours[:, :, None, :] == np.array(known.palette)).all(-1)
    if not same.any(-1).all():
        strange = sorted({tuple(int(v) for v in c) for c in colours[~same.any(-1)][:1000]})[:4]
        raise ValueError(f"{path} has colours {strange} that classes.json does not know")
    found: np.ndarray[Any, Any] = same.argmax(-1)
    return found


def spots(value: Any, where: str) -> tuple[Spot, ...]:
    """Boxes of a row: {label, box: [x0, y0, x1, y1]} or [label, x0, y0, x1, y1], corners as shares. Raises `ValueError`."""
    found: list[Spot] = []
    for one in value:
        flat = [one.get("label"), *one.get("box", ())] if isinstance(one, Mapping) else list(one)
        try:
            label, x0, y0, x1, y1 = flat[0], *(float(v) for v in flat[1:])
        except (TypeError, ValueError):
            raise ValueError(f"{where}: a box is {{label, box: [x0, y0, x1, y1]}}; got {one!r}") from None
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ValueError(
                f"{where}: the corners of {label!r} are shares of the picture, upper left first; got {one!r}"
            )
        found.append((label, x0, y0, x1, y1))
    return tuple(found)


def coco(folder: Path) -> tuple[dict[str, Told], tuple[str, ...]]:
    """What COCO files in a folder say, by file name, and the categories' names; both empty where there is none."""
    told: dict[str, Told] = {}
    names: list[str] = []
    for path in sorted({p for pattern in COCO for p in folder.glob(pattern)}):
        one, categories = _coco(path, path.stat().st_mtime_ns)
        for name, value in one.items():
            before = told.get(name, Told((), ()))
            both = before.boxes + value.boxes, before.captions + value.captions
            told[name] = Told(*both, value.sides or before.sides)
        names += [n for n in categories if n not in names]
    return told, tuple(names)


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


@lru_cache(maxsize=4)
def _coco(path: Path, stamp: int) -> tuple[dict[str, Told], tuple[str, ...]]:
    """What one file says; while it does not change (`stamp`) it is read, and its faults are told, once."""
    faults: Counter[str] = Counter()
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        pictures = {row["id"]: row for row in whole["images"]}
        categories = {row["id"]: row["name"] for row in whole.get("categories", ())}
        boxes: dict[Any, list[Spot]] = {key: [] for key in pictures}
        captions: dict[Any, list[str]] = {key: [] for key in pictures}
        for row in whole["annotations"]:
            if "caption" in row:
                captions[row["image_id"]].append(row["caption"].strip())
            elif row.get("bbox") and not row.get("iscrowd"):
                spot, fault = _spot(categories[row["category_id"]], row["bbox"], pictures[row["image_id"]])
                boxes[row["image_id"]] += [spot] if spot else []
                faults[fault] += 1
        found = {
            PurePosixPath(row["file_name"].replace("\\", "/")).as_posix(): Told(
                tuple(boxes[key]),
                tuple(captions[key]),
                (float(row["width"]), float(row["height"])) if boxes[key] else None,
            )
            for key, row in pictures.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} is not of COCO's form ({type(error).__name__}: {error}); it wants images, annotations, categories"
        ) from None
    if told := ", ".join(f"{count} {fault}" for fault, count in sorted(faults.items()) if fault):
        log.warning("%s: of %d boxes %s", path, faults.total(), told)
    return found, tuple(categories[key] for key in sorted(categories))


def _spot(name: str, box: Sequence[float], row: Mapping[str, Any]) -> tuple[Spot | None, str]:
    """A box [x, y, width, height] in pixels as shares, cut at the picture's edges, None where nothing is left of it; and
    what is wrong with it."""
    x, y, w, h = (float(v) for v in box)
    wide, high = float(row["width"]), float(row["height"])
    if not (w > 0 and h > 0):  # NaN too
        return None, "are empty or reversed and left out"
    x0, x1, y0, y1 = max(x, 0.0), min(x + w, wide), max(y, 0.0), min(y + h, high)
    if not (x1 > x0 and y1 > y0):
        return None, "lie outside their picture and are left out"
    off = max(x0 - x, x + w - x1, y0 - y, y + h - y1)
    return (name, x0 / wide, y0 / high, x1 / wide, y1 / high), "reach beyond it and are cut" if off > BEYOND else ""
