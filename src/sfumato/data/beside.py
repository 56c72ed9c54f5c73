"""What stands beside the pictures of a folder: maps, boxes and pairs.

A row of `metadata.jsonl` may name a `map` and a `pair` (picture files) and list `boxes`; or a folder `maps` stands
beside a folder `images`, with a file of the same name for each picture; or boxes are in a file of COCO's form. The names
of a map's classes, and their colours where maps are in colour, are in `classes.json`: {classes, palette}.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sfumato.data.frame import Frame, Spot

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
    `ValueError` for unknown colours, and where a map cannot be read.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            whole = np.asarray(opened if opened.mode in ("L", "P", "1", "I", "I;16") else opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a map ({error}); replace or remove it") from None
    part = frame.cut(whole if whole.ndim == 2 else _indexed(whole, path, known))
    side = Image.fromarray(part.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.array(side)


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
        one, categories = _coco(path)
        for name, value in one.items():
            before = told.get(name, Told((), ()))
            told[name] = Told(before.boxes + value.boxes, before.captions + value.captions)
        names += [n for n in categories if n not in names]
    return told, tuple(names)


@lru_cache(maxsize=4)
def _coco(path: Path) -> tuple[dict[str, Told], tuple[str, ...]]:
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
                spot = _spot(categories[row["category_id"]], row["bbox"], pictures[row["image_id"]])
                boxes[row["image_id"]] += [spot] if spot else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not of COCO's form ({type(error).__name__}: {error}); it wants images, annotations, categories"
        ) from None
    found = {row["file_name"]: Told(tuple(boxes[key]), tuple(captions[key])) for key, row in pictures.items()}
    return found, tuple(categories[key] for key in sorted(categories))


def _spot(name: str, box: Sequence[float], row: Mapping[str, Any]) -> Spot | None:
    """A box [x, y, width, height] in pixels as shares, cut at the picture's edges; None where nothing is left of it."""
    wide, high = float(row["width"]), float(row["height"])
    x0, y0, x1, y1 = box[0] / wide, box[1] / high, (box[0] + box[2]) / wide, (box[1] + box[3]) / high
    x0, y0, x1, y1 = (min(max(v, 0.0), 1.0) for v in (x0, y0, x1, y1))
    return (name, x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None
