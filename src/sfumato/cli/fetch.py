"""`sfumato fetch NAME`: download a published network, which no other verb does."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(help="inception, squeezenet, alexnet or vgg16")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder that the file goes to")] = Path("weights"),
) -> None:
    """Download one file, compare its SHA-256, and print its path."""
    from sfumato.features.fetch import fetch

    print(fetch(name, out, lambda said: typer.echo(said, err=True)))
