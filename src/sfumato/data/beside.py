"""Maps and boxes that stand beside the pictures of a folder, and the names and colours of their classes.

A row of `metadata.jsonl` may name a `map` and list `boxes`; or a folder `maps` stands beside a folder `images`, with a file
of the same name for each picture. The names of a map's classes, and their colours where maps are in colour, are in
`classes.json`: {classes, palette}. Boxes in files of COCO's form are read by `coco.py`.
"""

import codecs
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from sfumato import image
from sfumato.data.frame import Frame, Spot
from sfumato.shape import Shape

Numbers = np.ndarray[Any, np.dtype[np.uint8]]


class Classes(NamedTuple):
    """Names of a map's classes, and their colours; () where there are none."""

    names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()


NO_CLASSES = Classes()
SHARP = 8  # values of a map beside a pixel's side


def text(path: Path) -> str:
    """What a text file says, of whatever Unicode it is. Raises `ValueError` where it is of none."""
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Windows' «Unicode»
    try:
        return content.decode("utf-16" if marked else "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not UTF-8, so its letters are not known; save it, and others like it, as UTF-8"
        ) from None


def classes(*folders: Path) -> Classes:
    """Those of the first `classes.json` in these folders. Raises `ValueError` where it is not what it should be."""
    path = next((f / "classes.json" for f in folders if (f / "classes.json").is_file()), None)
    if path is None:
        return NO_CLASSES
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        names = found if isinstance(found, list) else found.get("classes", found.get("names"))
        names = [names[str(k)] for k in range(len(names))] if isinstance(names, dict) else names
        palette = () if isinstance(found, list) else found.get("palette", ())
        colours = tuple((int(r), int(g), int(b)) for r, g, b in palette)
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(n, str) for n in names)
            or (colours and len(colours) != len(names))
        ):
            raise ValueError("names and colours do not fit")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f'{path} is not {{"classes": [names], "palette": [[r, g, b]]}}, a colour a class ({error})'
        ) from None
    return Classes(tuple(names), colours)


def opened(path: Path) -> Image.Image:
    """A map, decoded to its end and turned as its EXIF says. Raises `ValueError` where it cannot be."""
    try:
        with Image.open(path) as found:
            found.load()
            return ImageOps.exif_transpose(found)
    except Exception as error:  # what damaged bytes lead to
        raise ValueError(f"{path} cannot be read as a map ({error}); replace or remove it") from None


def whole(shown: Image.Image, path: Path, known: Classes) -> Numbers:
    """The class numbers (H, W) of an opened map: what it holds, or what `classes.json` says of its colours.

    Raises `ValueError` for unknown colours, for numbers above 255 and for floats.
    """
    found = image.numbered(shown, known.palette, str(path), "classes.json")
    if found.dtype not in (np.uint8, np.bool_) and (found.min() < 0 or found.max() > 255):
        raise ValueError(
            f"{path} holds class numbers {found.min()} to {found.max()} and a map's go from 0 to 255: number its classes anew"
        )
    return found.astype(np.uint8)


def numbers(path: Path, frame: Frame, shape: Shape, known: Classes) -> Numbers:
    """A map as the frame shows it in these proportions, uint8 class numbers, never interpolated: of its own size, at least
    `shape` and at most `SHARP` times that, so that a conditioner tells what lies in each place and not what one pixel of it
    is. Raises as `opened` and `whole`."""
    shown = opened(path)
    if shown.mode == "P":  # whether it is read by its colours hangs on all of it
        part = frame.cut(whole(shown, path, known), shape)
    else:
        left, top, across, down = frame.region(*shown.size, shape)
        part = whole(shown.crop((left, top, left + across, top + down)), path, known)
    scale = max(1.0, min(len(part) / shape[0], SHARP))
    high, wide = (round(scale * n) for n in shape)
    return np.array(Image.fromarray(part).resize((wide, high), Image.Resampling.NEAREST))


def misfit(path: Path, what: str, sides: tuple[float, float]) -> str | None:
    """What is wrong where the picture at `path` has not the shape of these sides, to a pixel of the smaller one."""
    (wide, high), (w, h) = image.sides(path), sides
    if abs(high * w - wide * h) <= max(wide, high, w, h):
        return None
    return f"{path} is {wide}x{high} and {what} {w:g}x{h:g}, which is another shape"


def spots(value: Any, where: str) -> tuple[Spot, ...]:
    """Boxes of a row: {label, box: [x0, y0, x1, y1]} or [label, x0, y0, x1, y1], corners as shares. Raises `ValueError`."""
    found: list[Spot] = []
    for one in value:
        try:
            flat = [one.get("label"), *one.get("box", ())] if isinstance(one, Mapping) else list(one)
            if isinstance(flat[0], list | dict):
                raise TypeError
            label, x0, y0, x1, y1 = flat[0], *(float(v) for v in flat[1:])
        except (TypeError, ValueError, IndexError):
            raise ValueError(f"{where}: a box is {{label, box: [x0, y0, x1, y1]}}; got {one!r}") from None
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ValueError(
                f"{where}: the corners of {label!r} are shares of the picture, upper left first; got {one!r}"
            )
        found.append((label, x0, y0, x1, y1))
    return tuple(found)
