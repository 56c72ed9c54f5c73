"""One picture of a folder, and what a row of a table beside it says of it: `metadata.jsonl` or `metadata.csv`."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.data import beside
from sfumato.data.frame import Spot

CAPTIONS = ("caption", "captions", "text", "prompt")
COMPANIONS = {"map": "maps", "pair": "pairs"}  # fields that are files, and the folders of them beside `images`


class Entry(NamedTuple):
    """One picture of a folder."""

    file: Path
    name: str  # its path inside the folder
    captions: tuple[str, ...] = ()
    group: str | tuple[str, ...] | None = None  # its class, or several
    map: Path | None = None
    pair: Path | None = None
    boxes: tuple[Spot, ...] | None = None
    sides: tuple[float, float] | None = None  # of the picture that the boxes are of, where these are in pixels


def table(path: Path) -> list[Any]:
    """The rows of a JSON-lines or CSV file. Raises `ValueError` where it is neither."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} is not JSON lines or CSV ({error}); one object a line, with `file_name` and `text`"
        ) from None


def of_row(source: Path, number: int, row: Any, root: Path) -> Entry:
    """What a row, the `number`th of a table, says of a picture under `root`. Raises `ValueError` for another form."""
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"{source}, line {number}: every line needs a `file_name`")
    said = next((row[key] for key in CAPTIONS if row.get(key)), ())
    captions = (said,) if isinstance(said, str) else said
    if not isinstance(captions, list | tuple) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{source}, line {number}: a caption is a text or a list of texts; got {said!r}")
    file, group = source.parent / name, _group(row.get("label"), f"{source}, line {number}")
    for field in COMPANIONS:
        if row.get(field) and not isinstance(row[field], str):
            raise ValueError(f"{source}, line {number}: {field} is the name of a file; got {row[field]!r}")
    more: dict[str, Any] = {field: source.parent / row[field] for field in COMPANIONS if row.get(field)}
    for path in more.values():
        if not path.is_file():
            raise ValueError(f"{source}, line {number}: there is no file {path}")
    if (boxes := _listing(row.get("boxes"))) is not None:
        if not isinstance(boxes, list):
            raise ValueError(
                f"{source}, line {number}: boxes are a list of objects with `label` and `box`; got {boxes!r}"
            )
        more["boxes"] = beside.spots(boxes, f"{source}, line {number}")
    captions = tuple(caption for caption in captions if caption.strip())
    return Entry(file, within(file, root) or name, captions, group, **more)


def gathered(rows: Sequence[Entry]) -> list[Entry]:
    """The rows, of those that differ in their captions alone, a caption a row as some tables have it, one with all of them."""
    found: dict[Any, Entry] = {}
    for row in rows:
        bare = row._replace(captions=())
        before = found.get(bare, bare)
        found[bare] = row._replace(captions=tuple(dict.fromkeys((*before.captions, *row.captions))))
    return list(found.values())


def within(path: Path, folder: Path) -> str | None:
    """The path inside a folder, None of one outside of it."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None


def _listing(said: Any) -> Any:
    """A value, or what a text of JSON holds, as tables of texts alone have it; None where nothing is said."""
    if not isinstance(said, str):
        return said
    try:
        return json.loads(said) if said.strip() else None
    except ValueError:
        return said


def _group(said: Any, where: str) -> str | tuple[str, ...] | None:
    """The class that a row names, several where it lists them, or None. Raises `ValueError` for another thing."""
    several = said if isinstance(said, list) else [said]
    if any(isinstance(one, list | dict) for one in several):
        raise ValueError(f"{where}: a label is a name or a number, or a list of them; got {said!r}")
    names = tuple(dict.fromkeys(str(one) for one in several if one not in (None, "")))
    return names if len(names) > 1 else names[0] if names else None
