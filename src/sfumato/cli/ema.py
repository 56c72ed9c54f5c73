"""`sfumato ema RUN`: another length of average, after the run."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="the run's folder; it was trained with training.snapshots")],
    width: Annotated[float | None, typer.Option(help="relative width of the average to rebuild, 0 to 0.28")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="model folder to write")] = None,
    widths: Annotated[
        str, typer.Option(help="widths that --plot compares")
    ] = "0.01,0.02,0.03,0.05,0.075,0.1,0.15,0.2,0.25",
    plot: Annotated[Path | None, typer.Option(help="measure the held-out loss of each width and draw it here")] = None,
) -> None:
    """Rebuild one average, or compare several."""
    if (width is None) == (plot is None) or (width is None) != (out is None):
        raise ValueError("give --width with --out to rebuild one average, or --plot to compare several")
    from sfumato.evaluation import lengths
    from sfumato.families.base import Family
    from sfumato.training import posthoc
    from sfumato.training.recipe import DistillationRecipe

    snapshots = posthoc.found(run)
    recipe, model, parameters = posthoc.opened(run)
    if width is not None and out is not None:
        far = posthoc.rebuild(snapshots, width, parameters)
        card = run / "model" / "README.md"
        posthoc.publish(recipe, model, out, card.read_text(encoding="utf-8") if card.is_file() else "")
        typer.echo(f"width {width:g} of {len(snapshots)} snapshots, its profile met to {100 * far:.2g} %", err=True)
        print(out)
        return
    assert plot is not None
    if isinstance(model, Family) and not model.scored:
        raise ValueError("a model of this family has no held-out loss to compare averages by; give --width and --out")
    if isinstance(recipe, DistillationRecipe):
        raise ValueError(
            "a distilled model has no held-out loss to compare averages by, for it follows its teacher and not the pictures; "
            "give --width and --out, and let sfumato evaluate measure them"
        )
    try:
        chosen = [float(text) for text in widths.split(",")]
    except ValueError:
        raise ValueError(f"--widths are numbers with commas between them; got {widths!r}") from None
    rows = lengths.compared(snapshots, recipe, model, parameters, chosen)
    print(lengths.text(rows), flush=True)  # which a picture that cannot be written does not take away
    lengths.draw(rows, plot)
