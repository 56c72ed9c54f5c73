"""`sfumato convert WHAT FILE ...`: foreign weights into a model folder, or a model folder into half its size."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    what: Annotated[str, typer.Argument(help="taesd; or half, for a model's weights in half precision")],
    weights: Annotated[
        list[Path], typer.Argument(help="taesd: the encoder and the decoder, safetensors; half: the model folder")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="the model folder that is written")],
) -> None:
    """Convert and print the model folder."""
    if what not in ("taesd", "half"):
        raise ValueError(f"there is no family {what!r} to convert from; known: taesd, and half for a model folder")
    if what == "half":
        if len(weights) != 1:
            raise ValueError(f"half takes one model folder; got {len(weights)}")

        from sfumato.convert import half
        from sfumato.shipped import folder

        print(half.convert(folder(weights[0]), out))
        return
    if len(weights) != 2:
        raise ValueError(f"taesd comes in two files, encoder and decoder; got {len(weights)}")

    from sfumato.convert import taesd

    print(taesd.convert(weights[0], weights[1], out))
