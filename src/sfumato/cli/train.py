"""`sfumato train RECIPE [key=value ...]`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sfumato.training.recipe import Recipe


def command(
    recipe: Annotated[str, typer.Argument(help="a YAML file, or the name of a recipe that ships")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the recipe")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            "--run-folder",
            help="the run's folder; by default runs/RECIPE, with --resume that of a run's own recipe.yaml",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last whole checkpoint")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress line")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="check the recipe, print it and what it needs; train nothing, write no run"),
    ] = False,
) -> None:
    """Read, check, train; the model folder's path is what it prints."""
    from sfumato.training import recipe as recipes

    read = recipes.read(recipe, changes or [])
    folder = run or _folder(Path(recipe), resume)
    if dry_run:
        import yaml

        print(yaml.safe_dump(recipes.dump(read), sort_keys=False, allow_unicode=True), end="")
        _needs(read, folder, device)
        return
    from sfumato.training.run import train

    print(train(read, folder, resume=resume, device=device, quiet=quiet))
    if read.training.best:
        _tell_best(folder)


def _folder(recipe: Path, resume: bool) -> Path:
    """The run's folder where none is named: that of a run's own recipe where it goes on, else one of the recipe's name."""
    own = recipe.parent / "state", recipe.parent / "model" / "model.yaml"
    if resume and recipe.name == "recipe.yaml" and any(path.exists() for path in own):
        return recipe.parent
    return Path("runs") / recipe.stem


def _tell_best(folder: Path) -> None:
    """Which model of the run was the best on held-out pictures, on stderr: the last one, after many rounds over few
    pictures, may have begun to repeat them."""
    import json
    import math

    from sfumato.training.log import lines
    from sfumato.training.loop import JUDGED

    judged = [row for row in lines(folder / "metrics.jsonl") if math.isfinite(row.get("held_out", math.nan))]
    if judged:
        told = folder / "best" / JUDGED  # which may be of a way that the run left for an earlier checkpoint
        known = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else None
        lowest = known or min(judged, key=lambda row: row["held_out"])
        typer.echo(
            f"best on held-out pictures after {lowest['images']:,} images, loss {lowest['held_out']:.4f}; "
            f"the last has {judged[-1]['held_out']:.4f}. The best model is {folder / 'best'}",
            err=True,
        )


def _needs(recipe: "Recipe", folder: Path, device: str) -> None:
    """What a training would take of memory, as a table on stderr: stdout is the recipe's."""
    from rich.console import Console
    from rich.table import Table

    from sfumato import device as devices
    from sfumato import shipped
    from sfumato.training.given import there
    from sfumato.training.run import needed, sized

    console = Console(stderr=True)
    first = next((p for key in ("autoencoder", "teacher", "start") if (p := getattr(recipe, key, None))), None)
    if isinstance(first, Path):
        try:
            there(shipped.folder(first), recipe.data)
        except ValueError as error:
            console.print(f"Memory is not known yet: {error}.", soft_wrap=True)
            return
    found = needed(recipe, folder, devices.pick(device))
    training = sized(recipe, found).training
    part = -(-training.batch // training.accumulate)
    table = Table("what", "MiB", title="Memory, measured on two pictures")
    rows = (
        (f"weights, {found.parameters:,} of which {found.learned:,} learn", found.weights),
        ("gradients, their copies in lanes included", found.gradients),
        ("optimiser", found.optimiser),
        (f"averages, {len(training.ema)}", found.averages),
        (f"activations of one picture ({found.fixed / 2**20:,.1f} MiB more for any number)", found.each),
        (f"activations of a part, {part} of a batch of {training.batch}", found.fixed + part * found.each),
    )
    for what, size in rows:
        table.add_row(what, f"{size / 2**20:,.1f}")
    table.add_section()
    whole = found.weights + found.gradients + found.optimiser + found.averages + found.fixed + part * found.each
    table.add_row("together", f"{whole / 2**20:,.1f}")
    table.add_row("free now", f"{found.free / 2**20:,.1f}")
    console.print(table)
    fits = part <= found.fits
    remedy = "" if fits else "; choose training.accumulate=auto, a smaller batch, or training.checkpointing"
    console.print(
        f"{'It fits' if fits else 'It does not fit'}: up to {found.fits:,} pictures at a time in half of what is free{remedy}.",
        soft_wrap=True,
    )
