"""Held-out loss against the length of the average of the weights, rebuilt after a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from sfumato.autoencoder.codec import Codec
from sfumato.data.renumbered import renumbered
from sfumato.evaluation.reconstruction import reconstruction
from sfumato.families.base import Family
from sfumato.model import LatentDiffusion
from sfumato.training import posthoc
from sfumato.training.ema import exponent
from sfumato.training.fitted import classes
from sfumato.training.likelihood import over
from sfumato.training.recipe import DecoderRecipe, Recipe
from sfumato.training.validation import denoising


class Length(NamedTuple):
    """A width, how far its profile was missed, and what it gives: a loss, or dB of PSNR where `name` says so."""

    width: float
    missed: float
    name: str
    value: float


def compared(
    snapshots: Sequence[posthoc.Snapshot],
    recipe: Recipe,
    model: Codec | LatentDiffusion | Family,
    parameters: Sequence[nn.Parameter],
    widths: Sequence[float],
) -> list[Length]:
    """Rebuild and measure each width: a denoiser's held-out loss, a first stage's PSNR on held-out pictures, the bits in which
    another family tells these. Raises `ValueError` where there is no such thing."""
    for width in widths:
        exponent(width)  # which raises for what is no width, before minutes of measuring
    part, rows = recipe.data.open("held_out"), []
    if isinstance(recipe, DecoderRecipe) and isinstance(model, LatentDiffusion):
        model = model.codec  # of which the decoder alone has learned
    if isinstance(model, LatentDiffusion):
        part = renumbered(part, classes(model))
    if isinstance(model, Family):
        part = renumbered(part, model.labels)
    for width in widths:
        far = posthoc.rebuild(snapshots, width, parameters)
        if isinstance(model, LatentDiffusion):
            rows.append(Length(width, far, "held-out loss", denoising(model, part)["loss"]))
        elif isinstance(model, Family):
            found = over(model, part, model.told)
            if found is None:
                raise ValueError("no held-out picture has a loss of this model; give --width and --out")
            rows.append(Length(width, far, "held-out bits", float(found.mean())))
        else:
            rows.append(Length(width, far, "PSNR, dB", reconstruction(model, part)["psnr"]))
    return rows


def best(rows: Sequence[Length]) -> Length:
    """The row with the lowest loss, or the highest PSNR."""
    return max(rows, key=lambda r: r.value) if rows[0].name.startswith("PSNR") else min(rows, key=lambda r: r.value)


def text(rows: Sequence[Length]) -> str:
    """A table in markdown and what is best."""
    head = f"| width | {rows[0].name} | profile missed by |\n|---|---|---|\n"
    lines = "\n".join(f"| {r.width:g} | {r.value:.4f} | {100 * r.missed:.2g} % |" for r in rows)
    chosen = best(rows)
    return f"{head}{lines}\n\nBest: width {chosen.width:g}, {chosen.name} {chosen.value:.4f}."


def draw(rows: Sequence[Length], path: Path) -> None:
    """Loss against width, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([r.width for r in rows], [r.value for r in rows], "o-")
    chosen = best(rows)
    axes.plot([chosen.width], [chosen.value], "o", markersize=12, markerfacecolor="none", color="C1")
    axes.set(xscale="log", xlabel="width of the average, relative to the run", ylabel=rows[0].name)
    axes.set_xticks([r.width for r in rows], [f"{r.width:g}" for r in rows], fontsize=8, rotation=45)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
