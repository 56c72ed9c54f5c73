"""`sfumato convert FAMILY FILE ...`: foreign weights into a model folder."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    family: Annotated[str, typer.Argument(help="what the files are: taesd")],
    weights: Annotated[
        list[Path], typer.Argument(help="its files: for taesd the encoder and the decoder, safetensors")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="the model folder that is written")],
) -> None:
    """Convert and print the model folder."""
    if family != "taesd":
        raise ValueError(f"there is no family {family!r} to convert from; known: taesd")
    if len(weights) != 2:
        raise ValueError(f"taesd comes in two files, encoder and decoder; got {len(weights)}")

    from sfumato.convert import taesd

    print(taesd.convert(weights[0], weights[1], out))
