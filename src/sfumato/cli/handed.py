"""The pictures that a command names: one request for each, so that a folder of them is one command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

EACH = "picture"  # the field of which a command takes several
BESIDE = "mask"  # the field that may be a folder of one each, told apart by name


def each(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of each request: those that are given, with one of the pictures in each.

    Raises `ValueError` for a folder without pictures, and for a picture without a mask of its name where a folder of masks
    is given.
    """
    if not fields.get(EACH):
        return [dict(fields)]
    found = [path for named in fields[EACH] for path in _inside(Path(named))]
    return [{**fields, **_mask(fields.get(BESIDE), path), EACH: str(path)} for path in found]


def _inside(path: Path) -> list[Path]:
    """The picture files of a folder and its folders, by name; another path as it is."""
    if not path.is_dir():
        return [path]
    from sfumato.data import layout  # which imports torch: only a folder waits for it

    found = sorted(layout.pictures(path))
    if not found:
        raise ValueError(f"{path} holds no pictures; known endings: {', '.join(sorted(layout.SUFFIXES))}")
    return found


def _mask(named: str | None, picture: Path) -> dict[str, str]:
    """The mask of a picture, where masks are a folder: the file of its name, whatever the ending."""
    if named is None or not Path(named).is_dir():
        return {}
    found = sorted(path for path in Path(named).glob("*.*") if path.stem == picture.stem and path.is_file())
    if not found:
        raise ValueError(f"{named} holds no mask for {picture.name}; name it {picture.stem}.png")
    return {BESIDE: str(found[0])}
