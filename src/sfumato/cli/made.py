"""What every task's verb does: check the request, load the model, make pictures, write them with their settings."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli import doors, handed
from sfumato.tasks.requests import Request

if TYPE_CHECKING:
    from rich.progress import Progress

    from sfumato.tasks.pipeline import Pipeline

P = inspect.Parameter
MADE = re.compile(r"(\d{5,7})-\d+\.png")  # names of pictures that were made


def run(kind: type[Request], fields: dict[str, Any], model: Path, out: Path, device: str, precision: str) -> None:
    """Validate, load, make, write; requests are checked before a model is loaded.

    Of several pictures one that cannot be taken is told and left out, and the command fails at its end; what the first three
    meet alike is the request's fault and ends it.
    """
    requests = [checked(kind, one) for one in handed.each(fields, out)]
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")

    from rich.console import Console
    from rich.progress import Progress

    from sfumato import distributed
    from sfumato.tasks.pipeline import Pipeline

    pipeline = Pipeline.load(model, device=device, precision=precision)
    speaks = distributed.chief()
    bar = Progress(console=Console(stderr=True), transient=True, disable=not speaks)
    with there(out) if speaks else nullcontext(), bar as progress:
        faults: dict[str, str] = {}
        for place, request in enumerate(requests):
            source = whose(request) if len(requests) > 1 else ""
            try:
                written(pipeline, request, out, progress, speaks, source)
            except ValueError as error:
                # the request's fault, not the pictures'
                alike = place == len(faults) == 2 and {*faults.values()} == {str(error)}
                if not source or alike:
                    raise
                faults[source] = str(error)
    if faults:
        told = "\n".join(f"{source}: {fault}" for source, fault in faults.items())
        raise ValueError(f"{told}\n{len(faults)} of {len(requests)} pictures could not be taken, which stand above")


def written(pipeline: "Pipeline", request: Request, out: Path, progress: "Progress", speaks: bool, source: str) -> None:
    """Make the pictures of a request and write them; where there are several, `source` is told beside each."""
    from sfumato.tasks import given, metadata

    def say(text: str) -> None:
        progress.console.print(text, soft_wrap=True, markup=False, highlight=False)

    for what, said in given.converted(request, pipeline.channels) if speaks else ():
        say(f"{what}: {said}")
    number = first_free(out)
    task = progress.add_task(f"sampling {source}".strip(), total=None)
    for picture in pipeline.stream(request, lambda done, total: progress.update(task, completed=done, total=total)):
        if not speaks:
            continue
        path = claimed(out, number, seed_of(picture.info))
        try:
            metadata.save(picture, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        say(f"{source} -> {path}" if source else str(path))
        number = numbered(path) + 1
    progress.remove_task(task)


def whose(request: Request) -> str:
    """The path of the picture that a request is about."""
    return str(getattr(request, handed.EACH))


def checked(kind: type[Request], fields: dict[str, Any]) -> Request:
    """The request of these fields. Raises `ValueError`, one line a fault."""
    from pydantic import ValidationError

    from sfumato.config import explain

    try:
        return kind(**fields)
    except ValidationError as error:
        raise ValueError(explain(error, kind.__name__.lower())) from None


@contextmanager
def there(folder: Path) -> Iterator[None]:
    """A folder that is there, so that none is missed after the work; one that is new and stays empty is taken away."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()


def seed_of(info: dict[Any, Any]) -> int:
    """The seed that a made picture tells."""
    import json

    return int(json.loads(info["sfumato"])["seed"])


def first_free(folder: Path) -> int:
    """The number after the highest in the folder: no picture is ever written over."""
    return max((numbered(path) for path in folder.glob("*-*.png")), default=-1) + 1


def numbered(path: Path) -> int:
    """The number of a made picture, -1 for another file."""
    found = MADE.fullmatch(path.name)
    return int(found[1]) if found else -1


def claimed(folder: Path, number: int, seed: int) -> Path:
    """An empty file of this number and seed, or of the first number after it at which none is: a command that runs beside
    this one may have counted alike."""
    while True:
        path = folder / f"{number:05d}-{seed}.png"
        folder.mkdir(parents=True, exist_ok=True)  # which a command that was refused beside this one may take away
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path


def command(kind: type[Request]) -> Callable[..., None]:
    """The verb of a task: the request's fields as options, the model and where the pictures go."""
    return doors.command(kind, partial(run, kind), OWN)


OWN = [
    P(
        "model",
        P.KEYWORD_ONLY,
        annotation=Annotated[
            Path, typer.Argument(help="a model folder, the run folder around it, or `emoji`, which ships")
        ],
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
]
