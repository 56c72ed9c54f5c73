"""`sfumato generate MODEL --prompt ...`: PNGs that carry their settings."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli import doors
from sfumato.tasks.requests import Generate

P = inspect.Parameter


def run(fields: dict[str, Any], model: Path, out: Path, device: str, precision: str) -> None:
    """Validate, load, make, write; the request is checked before torch is even imported."""
    from sfumato.config import explain

    try:
        request = Generate(**fields)
    except ValueError as error:
        from pydantic import ValidationError

        raise ValueError(explain(error, "generate") if isinstance(error, ValidationError) else str(error)) from None

    from rich.console import Console
    from rich.progress import Progress

    from sfumato import distributed
    from sfumato.tasks import metadata
    from sfumato.tasks.pipeline import Pipeline

    pipeline = Pipeline.load(model, device=device, precision=precision)
    out.mkdir(parents=True, exist_ok=True)
    number = first_free(out)
    speaks = distributed.chief()
    with Progress(console=Console(stderr=True), transient=True, disable=not speaks) as progress:
        task = progress.add_task("sampling", total=None)
        for picture in pipeline.stream(request, lambda done, total: progress.update(task, completed=done, total=total)):
            if not speaks:
                continue
            path = out / f"{number:05d}-{seed_of(picture.info)}.png"
            metadata.save(picture, path)
            progress.console.print(str(path), soft_wrap=True)
            number += 1


def seed_of(info: dict[Any, Any]) -> int:
    """The seed that a made picture tells."""
    import json

    return int(json.loads(info["sfumato"])["seed"])


def first_free(folder: Path) -> int:
    """The number after the highest in the folder: no picture is ever written over."""
    taken = [int(p.name[:5]) for p in folder.glob("[0-9][0-9][0-9][0-9][0-9]-*.png")]
    return max(taken, default=-1) + 1


command = doors.command(
    Generate,
    run,
    [
        P(
            "model",
            P.KEYWORD_ONLY,
            annotation=Annotated[Path, typer.Argument(help="a model folder, or the run folder around it")],
        ),
        P(
            "out",
            P.KEYWORD_ONLY,
            default=Path("outputs"),
            annotation=Annotated[Path, typer.Option("--out", "-o", help="folder for the PNGs")],
        ),
        P(
            "device",
            P.KEYWORD_ONLY,
            default="auto",
            annotation=Annotated[str, typer.Option(help="auto, cuda, mps or cpu")],
        ),
        P(
            "precision",
            P.KEYWORD_ONLY,
            default="fp32",
            annotation=Annotated[str, typer.Option(help="fp32, bf16 or auto")],
        ),
    ],
)
