"""`sfumato show RECIPE|MODEL|PICTURES|TABLE`: settings, shapes, parameters and FLOPs; what a network will see of the data."""

import contextlib
import itertools
from pathlib import Path
from typing import Annotated, Any

import typer

TABLES = (".parquet", ".tar")
OURS = ("Software", "sfumato show")  # in a sheet, which another one may replace


def command(
    source: Annotated[
        str, typer.Argument(help="a recipe (file or shipped name), a model folder, a folder of pictures, or a table")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="overrides of a recipe, or of how a folder is read: size=128"),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="write a contact sheet of what the network will see; of pictures by default sheet.png"),
    ] = None,
) -> None:
    """Print what a recipe resolves to or a folder or table holds, and what it costs; draw what the data look like."""
    from sfumato.shipped import MODELS, folder

    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ValueError(f"the contact sheet is a PNG; give --sheet a name such as {sheet.with_suffix('.png')}")
    path = folder(source)
    path = Path(source) if MODELS in path.parents else path  # a recipe of the same name
    if (path.is_dir() and not (path / "model.yaml").is_file()) or path.suffix in TABLES:
        kind, to = "table" if _tabled(path) else "folder", sheet or _free(Path("sheet.png"))
        _pictures({"kind": kind, "path": source}, changes or [], to)
        return
    if path.is_dir() and (changes or sheet is not None):
        raise ValueError("a model folder is shown as it is: overrides and --sheet are for recipes, pictures and tables")
    _made(source, path, changes or [])
    if sheet is not None and not path.is_dir():
        from sfumato.training import recipe

        read = recipe.read(source, changes or [])
        _drawn(read.data, sheet, read.training.seed, read.training.flip)


def _free(path: Path) -> Path:
    """The path, or where a picture is there that is no contact sheet of ours, the first free one that is called alike."""
    from PIL import Image

    for name in itertools.chain([path], (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(1))):
        if not name.exists():
            return name
        with contextlib.suppress(OSError, ValueError), Image.open(name) as there:
            if there.info.get(OURS[0]) == OURS[1]:
                return name
    raise AssertionError("numbers do not end")


def _tabled(path: Path) -> bool:
    """Whether it is a table, or a folder that holds one and no pictures: beside pictures an archive is what they came in."""
    from sfumato.data import layout, rows
    from sfumato.data.table import TableData

    if not path.is_dir():
        return True
    kept = TableData.model_fields["cache"].default.resolve()  # where tables keep arrays, which may be within
    shown = (file for file in layout.pictures(path) if kept not in file.resolve().parents)
    return next(shown, None) is None and rows.detected(path) != "folder"


def _made(source: str, path: Path, changes: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from sfumato.training import describe

    text, rows = describe.folder(path) if path.is_dir() else describe.recipe(source, changes)
    print(text, end="")
    table = Table("part", "in", "out", "parameters", "GFLOPs a picture")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


def _pictures(fields: dict[str, Any], changes: list[str], sheet: Path) -> None:
    from pydantic import ValidationError

    from sfumato.config import explain
    from sfumato.data.base import Data
    from sfumato.training.recipe import override

    try:
        data = Data.model_validate(override(fields, changes))
    except ValidationError as error:
        raise ValueError(explain(error, fields["path"])) from None
    data.open(data.parts[0])  # which says what is wrong with the pictures first
    _drawn(data, sheet, 0, 0.0)


def _drawn(data: Any, path: Path, seed: int, flip: float) -> None:
    """Say what the parts hold, and write the contact sheet of the training part. Raises `ValueError` for a sheet that would be
    one of the pictures, or would have a folder of tables read as one of pictures."""
    root = getattr(data, "path", None)
    if isinstance(root, Path) and root.is_dir() and path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} would lie among the pictures and be one of them; give --sheet another place")
    from PIL.PngImagePlugin import PngInfo
    from rich.console import Console
    from rich.table import Table

    from sfumato.data import contact
    from sfumato.training.given import held_out

    for name in data.parts[:2]:
        if name == "held_out" and getattr(data, "held_out", None) == 0 and held_out(data) is None:
            continue
        part = data.open(name)
        table = Table(name, "")
        for row in contact.facts(part):
            table.add_row(*row)
        Console(width=110).print(table)
        if name == data.parts[0]:
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn = PngInfo()
            drawn.add_text(*OURS)
            contact.sheet(part, seed, flip).save(path, pnginfo=drawn)
    print(path)
