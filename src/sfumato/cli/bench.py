"""`sfumato bench data RECIPE [key=value ...]`: where the time goes before a training step."""

from typing import Annotated

import typer

KNOWN = ("data",)


def command(
    what: Annotated[str, typer.Argument(help="data: what feeds a training step")],
    recipe: Annotated[str, typer.Argument(help="a YAML file, or the name of a recipe that ships")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the recipe")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="threads at most; by default as many as processors, up to 8")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="time for each number")] = 0.5,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
) -> None:
    """Print images a second of every part, and what the bottleneck is."""
    if what not in KNOWN:
        raise ValueError(f"there is nothing to bench by the name {what!r}; known: {', '.join(KNOWN)}")
    from rich.console import Console
    from rich.table import Table

    from sfumato import device as devices
    from sfumato.training import ahead, bench
    from sfumato.training import recipe as recipes

    where = devices.pick(device)
    read = recipes.read(recipe, changes or [])
    found = bench.feeding(read, where, workers or min(ahead.MOST, devices.processors()), seconds)
    table = Table("images/s", *(f"{n} thread{'s' if n > 1 else ''}" for n in found.whole))
    for name, rates in (*found.parts.items(), ("all of it", found.whole)):
        table.add_row(name, *(f"{rate:,.0f}" for rate in rates.values()), end_section=name == "assembling")
    if found.step is not None:
        table.add_section()
        table.add_row("the encoder" if found.encodes else "the training step", f"{found.step:,.0f}")
    console = Console(width=110)
    console.print(table)
    console.print(bench.verdict(found), soft_wrap=True, highlight=False)
