"""The demo's page, made from whatever the run's folder holds so far.

It is written first when the first preview is there and again with every later one; while training runs it reloads
itself.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato import page
from sfumato.training.log import lines


@dataclass
class Page(page.Page):
    """What there is to show; every part may still be missing."""

    title: str = "Sfumato demo"
    intro: str = (
        "A latent diffusion model trained from scratch on this machine: first stage and denoiser both, "
        "on captioned emoji of 64 x 64 pixels."
    )

    def ran(self, *words: object) -> None:
        """The command that makes what stands above it, as a shell reads it."""
        self.command(shlex.join(map(str, words)))

    def trained(self, stage: str) -> None:
        """The command that trains a stage of the demo again, beside it: a folder holds one run."""
        folder = self.folder / stage
        self.ran("sfumato", "train", folder / "recipe.yaml", "--run", f"{folder}-again")

    def generated(self, prompts: Sequence[str], *more: object) -> None:
        """The command that makes these prompts' pictures from seed 7 on, in the precision of this page."""
        words = [word for prompt in prompts for word in ("--prompt", prompt)]
        self.ran("sfumato", "generate", self.folder / "model", *words, "--seed", 7, *more, "--precision", "auto")


def curves(runs: Sequence[tuple[str, Path, Sequence[str]]]) -> Image.Image | None:
    """One plot a run: (title, its folder, names of metrics) against images seen. None where there is no line yet."""
    found = [(title, lines(folder / "metrics.jsonl"), names) for title, folder, names in runs]
    found = [(title, rows, names) for title, rows, names in found if len(rows) > 1]
    if not found:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.0), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (title, rows, names) in zip(axes, found, strict=True):
        for name in names:
            axis.plot([r["images"] / 1000 for r in rows], [r[name] for r in rows], label=name, linewidth=1.4)
        axis.set(title=title, xlabel="thousand images", yscale="log")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def percent(cell: dict[str, Any], name: str) -> str:
    """A share with its standard error, as the tables show it."""
    error = cell.get(f"{name}_error")
    return f"{100 * cell[name]:.1f} %" + (f" ± {100 * error:.1f}" if error is not None else "")
