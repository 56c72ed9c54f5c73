"""`sfumato train RECIPE [key=value ...]`."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[str, typer.Argument(help="a YAML file, or the name of a recipe that ships")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the recipe")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="the run's folder; by default runs/RECIPE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last whole checkpoint")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress line")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check the recipe and print it; train nothing")] = False,
) -> None:
    """Read, check, train; the model folder's path is what it prints."""
    from sfumato.training import recipe as recipes

    read = recipes.read(recipe, changes or [])
    folder = run or Path("runs") / Path(recipe).stem
    if dry_run:
        import yaml

        print(yaml.safe_dump(recipes.dump(read), sort_keys=False, allow_unicode=True), end="")
        return
    from sfumato.training.run import train

    print(train(read, folder, resume=resume, device=device, quiet=quiet))
