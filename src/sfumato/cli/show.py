"""`sfumato show RECIPE|MODEL`: settings, shapes, parameters and FLOPs."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[str, typer.Argument(help="a recipe (file or shipped name) or a model folder")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of a recipe")] = None,
) -> None:
    """Print what a recipe resolves to or a folder holds, and what it costs."""
    from rich.console import Console
    from rich.table import Table

    from sfumato.training import describe

    path = Path(source)
    path = path / "model" if (path / "model" / "model.yaml").is_file() else path
    text, rows = describe.folder(path) if path.is_dir() else describe.recipe(source, changes or [])
    print(text, end="")
    table = Table("part", "in", "out", "parameters", "GFLOPs a picture")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
