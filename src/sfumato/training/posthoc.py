"""An average of any length, rebuilt after the run from the snapshots of a few (Karras et al., 2024, section 3.2).

The average of exponent g after N steps weighs the weights of step t in proportion to t^g. Some such profiles, stored at
some moments, span a space of profiles; the wanted one's nearest point in it (least squares over the run, weights that sum
to 1) says how much of each snapshot to take. So the length, which decides much of a model's quality and can hardly be
guessed, is chosen when the run is over.
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfumato import files
from sfumato.autoencoder.codec import Codec
from sfumato.conditioning.stride import FIELD
from sfumato.families import base as families
from sfumato.families.base import Family
from sfumato.model import LatentDiffusion
from sfumato.training import decoder
from sfumato.training.autoencoder import stack
from sfumato.training.ema import exponent
from sfumato.training.recipe import (
    AutoencoderRecipe,
    DecoderRecipe,
    DistillationRecipe,
    FamilyRecipe,
    Recipe,
    load_yaml,
    parse,
)

FACTS = "averages.json"


class Snapshot(NamedTuple):
    """An average of relative `width` as it was after `step` steps."""

    width: float
    step: int
    images: int
    file: Path


def save(folder: Path, images: int, step: int, widths: Sequence[float], averages: Sequence[Sequence[Tensor]]) -> None:
    """Write every average as it is now to `folder/IMAGES/`: one file a width, then the facts, each whole or not there."""
    place = folder / f"{images:09d}"
    for number, several in enumerate(averages):
        files.save_tensors(place / f"{number}.safetensors", {str(k): t for k, t in enumerate(several)})
    files.write(place / FACTS, json.dumps({"images": images, "step": step, "widths": list(widths)}))


def cut(folder: Path, images: int) -> None:
    """Delete the snapshots after so many images: of a run that did not come this far again, they are another's."""
    for path in folder.glob("[0-9]*"):
        if path.name.isdecimal() and int(path.name) > images:
            shutil.rmtree(path)


def found(run: Path) -> list[Snapshot]:
    """All snapshots of a run, oldest first. Raises `ValueError` where there are none."""
    several = []
    for path in sorted((run / "averages").glob(f"*/{FACTS}")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        for number, width in enumerate(facts["widths"]):
            file = path.parent / f"{number}.safetensors"
            several.append(Snapshot(width, facts["step"], facts["images"], file))
    if not several:
        raise ValueError(
            f"{run} has no snapshots of its averages; train with training.snapshots=IMAGES and, say, training.ema=[0.05,0.1]"
        )
    return several


def overlap(a: tuple[float, int], b: tuple[float, int]) -> float:
    """The inner product of two profiles, each (exponent, steps), over the run.

    Of (g + 1) t^g / N^(g + 1) on [0, N] and its like: what the integral of their product is.
    """
    (g, n), (h, m) = a, b
    low = min(n, m)
    return float((g + 1) * (h + 1) / (g + h + 1) * (low / n) ** g * (low / m) ** h * low / (n * m))


def shares(kept: Sequence[tuple[float, int]], wanted: tuple[float, int]) -> list[float]:
    """How much of each kept profile, (exponent, steps), to take for the wanted one: nearest, and with sum 1."""
    count = len(kept)
    system, right = np.ones((count + 1, count + 1)), np.ones(count + 1)
    system[count, count] = 0.0
    norm = overlap(wanted, wanted)
    for i, a in enumerate(kept):
        right[i] = overlap(a, wanted) / norm
        for j, b in enumerate(kept):
            system[i, j] = overlap(a, b) / norm
    return [float(x) for x in np.linalg.lstsq(system, right, rcond=1e-13)[0][:count]]


def missed(kept: Sequence[tuple[float, int]], wanted: tuple[float, int]) -> float:
    """How far the rebuilt profile is from the wanted one, relative to it: 0 is exact, 1 is nothing of it."""
    take = shares(kept, wanted)
    cross = sum(x * overlap(a, wanted) for x, a in zip(take, kept, strict=True))
    own = sum(x * y * overlap(a, b) for x, a in zip(take, kept, strict=True) for y, b in zip(take, kept, strict=True))
    whole = overlap(wanted, wanted)
    return math.sqrt(max(whole - 2 * cross + own, 0.0) / whole)


@torch.no_grad()
def rebuild(snapshots: Sequence[Snapshot], width: float, parameters: Sequence[nn.Parameter]) -> float:
    """Set the parameters to the run's average of relative `width` at its end; returns how far its profile was missed.

    One snapshot at a time is read. Raises `ValueError` for a width that no power has.
    """
    kept = [(exponent(s.width), s.step) for s in snapshots]
    wanted = exponent(width), max(s.step for s in snapshots)
    totals = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for snapshot, share in zip(snapshots, shares(kept, wanted), strict=True):
        if abs(share) < 1e-9:
            continue
        tensors = files.load_tensors(snapshot.file)
        for k, total in enumerate(totals):
            total.add_(tensors[str(k)].to(total), alpha=float(share))
    for parameter, total in zip(parameters, totals, strict=True):
        parameter.copy_(total)
    return missed(kept, wanted)


def opened(run: Path) -> tuple[Recipe, Codec | LatentDiffusion | Family, list[nn.Parameter]]:
    """A run's recipe, its published model and the parameters that averages are of, in their order."""
    path = run / "recipe.yaml"
    if not path.is_file() or not (run / "model" / "model.yaml").is_file():
        raise ValueError(f"{run} is no finished run: it needs recipe.yaml and model/; give the folder of --run")
    recipe = parse(load_yaml(str(path)), str(path))
    if isinstance(recipe, AutoencoderRecipe):
        codec = Codec.load(run / "model")
        return recipe, codec, list(codec.autoencoder.parameters())
    if isinstance(recipe, DecoderRecipe):
        start = decoder.begun(recipe.model_copy(update={"start": run / "model"}))
        codec = start.codec if isinstance(start, LatentDiffusion) else start
        return recipe, start, list(codec.autoencoder.parameters())
    if isinstance(recipe, FamilyRecipe):
        family = families.load(run / "model")
        first = next(iter(family.turns))
        return recipe, family, [p for m in family.learned(first) for p in m.parameters()]
    model = LatentDiffusion.load(run / "model")
    if isinstance(recipe, DistillationRecipe):  # conditioners stay the teacher's, but for the one that tells strides
        own = [model.conditions.reader(FIELD)] if recipe.how == "shortcut" else []
        return recipe, model, [p for m in (model.denoiser, *own) for p in m.parameters()]
    return recipe, model, [*model.denoiser.parameters(), *model.conditions.parameters()]


def publish(recipe: Recipe, model: Codec | LatentDiffusion | Family, folder: Path, card: str = "") -> None:
    """Write the model folder of rebuilt weights. A first stage's shift and scale are measured again, for
    they are its latents', but where its decoder alone has learned."""
    files.vacant(folder)
    if isinstance(model, LatentDiffusion):
        files.replace(folder, lambda part: model.save(part, card))
        return
    if isinstance(model, Family):
        assert isinstance(recipe, FamilyRecipe)
        config = recipe.family
        files.replace(folder, lambda part: families.save(model, config, part, card))
        return
    if not isinstance(recipe, DecoderRecipe):
        measured(model, recipe)
    files.replace(folder, model.save)


@torch.no_grad()
def measured(codec: Codec, recipe: Recipe) -> None:
    """Measure a first stage's shift and scale over its training pictures."""
    if codec.autoencoder.whitened:
        return
    part = recipe.data.open("train")
    begins = range(0, len(part), 128)
    codec.measure(codec.tally(codec.moments(stack(part, range(b, min(b + 128, len(part)))))) for b in begins)
