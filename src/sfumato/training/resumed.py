"""The recipe of a run that goes on: the one that stands in its folder, with what may be another since."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sfumato import distributed, files
from sfumato.conditioning.lowres import LowresConfig
from sfumato.config import Config
from sfumato.features import lpips
from sfumato.training import checkpoint
from sfumato.training import recipe as recipes
from sfumato.training.critic import PatchCriticConfig
from sfumato.training.recipe import (
    AutoencoderRecipe,
    DecoderRecipe,
    DiffusionRecipe,
    FamilyRecipe,
    Recipe,
    dump,
    parse,
)

log = logging.getLogger(__name__)

# What a resumed run may change: its length, how often it tells and saves, what alters no bit, and what one lowers after a
# loss that was not finite.
FREE = ("images", "report", "preview", "checkpoint", "keep", "workers", "checkpointing", "compile", "rate", "clip")


def _halved(recipe: DiffusionRecipe, written: DiffusionRecipe) -> DiffusionRecipe:
    """The recipe with the halvings of small pictures that a run began with before these came from the data."""
    several = dict(recipe.conditioners)
    for name, one in several.items():
        before = written.conditioners.get(name)
        if isinstance(one, LowresConfig) and isinstance(before, LowresConfig) and one.stages is None:
            several[name] = one.model_copy(update={"stages": before.stages})
    return recipe.model_copy(update={"conditioners": several})


def resumed(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe that a run was begun with, with what the one given changes and may, written back where it does.

    Raises `ValueError` where it changes something else, or asks for fewer images than the run has seen.
    """
    path = folder / "recipe.yaml"
    fields = recipes.load_yaml(str(path))
    written = parse(fields, str(path))
    if isinstance(written, DiffusionRecipe) and isinstance(recipe, DiffusionRecipe):
        written = written.model_copy(update={"steps": recipe.steps})  # of sampling
        # begun before these were told: what edm took until then, and nothing that is unsaid
        before = {name: value for name, value in (("data_std", 0.5), ("unsaid", 0.0)) if name not in fields}
        written, recipe = (one.model_copy(update=before) for one in (written, recipe))
        recipe = _halved(recipe, written)
    if written.data.masks and recipe.data.masks and "all" not in (fields["data"].get("masks") or {}):
        written, recipe = (_whole(one, 0.0) for one in (written, recipe))
    free = {name: getattr(recipe.training, name) for name in FREE}
    stored = _own_rates(changed(written, **free), recipe)
    if (recipe.training.precision == "fp64") != (
        written.training.precision == "fp64"
    ) and recipe.training.precision != "auto":
        raise ValueError(
            f"{folder} was begun in {written.training.precision}, and no run changes to or from fp64; leave "
            "training.precision out, or begin another run"
        )
    if recipe.training.precision != "auto":  # what to do after a NaN is to go on with a lower rate, or in float32
        stored = changed(stored, precision=recipe.training.precision)
    chosen = recipe.model_copy(update={"training": precise(recipe, stored.training.precision)})
    if not recipe.training.batch:
        chosen = changed(chosen, batch=stored.training.batch)
    if not recipe.training.accumulate:
        chosen = changed(chosen, accumulate=stored.training.accumulate)
    if stored != chosen and _alike(dump(stored), dump(chosen)):
        stored = chosen
    if stored != chosen:
        raise ValueError(
            f"{path} holds another recipe than the one given; resume with that one, or use a new run folder"
        )
    _long_enough(stored, folder)
    if stored != written:
        _tell(written, stored)
        files.write(path, yaml.safe_dump(dump(stored), sort_keys=False, allow_unicode=True))
    return stored


@contextmanager
def as_it_was(path: Path, resume: bool) -> Iterator[None]:
    """Give a file back what it held where the work within ends with an error: a refused resume leaves the run its recipe."""
    held = path.read_text(encoding="utf-8") if resume and path.is_file() else None
    try:
        yield
    except BaseException:
        if held is not None and distributed.chief():
            files.write(path, held)
        raise


def precise(recipe: Recipe, name: str) -> object:
    """The settings of its training, with this precision where they say `auto`."""
    chosen = name if recipe.training.precision == "auto" else recipe.training.precision
    return recipe.training.model_copy(update={"precision": chosen})


def changed(recipe: Recipe, **training: object) -> Recipe:
    """The recipe with other settings of its training."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


def _alike(one: Any, other: Any, key: str = "") -> bool:
    """Whether what two recipes say differs in nothing but how places are called: from another folder, or in full. That they
    hold the same is told by their fingerprints."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name], name) for name in one)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(_alike(a, b, key) for a, b in zip(one, other, strict=True))
    if key == "heads" and None in (one, other) and isinstance(named := one or other, str):
        return lpips.as_published(Path(named))  # those that come with torchmetrics were files of one's own once
    if key in recipes.PLACES and isinstance(one, str) and isinstance(other, str):
        short, long = sorted((Path(one), Path(other)), key=lambda p: len(p.parts))
        ends = not short.is_absolute() and long.parts[-len(short.parts) :] == short.parts
        return ends or short.resolve() == long.resolve()
    return bool(one == other)


def _whole(recipe: Recipe, weight: float) -> Recipe:
    """The recipe with this weight of masks that are nothing but hole."""
    assert recipe.data.masks is not None
    masks = recipe.data.masks.model_copy(update={"all": weight})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"masks": masks})})


def _long_enough(recipe: Recipe, folder: Path) -> None:
    """Raise `ValueError` where a run has seen more images than it is to see."""
    done = [int(p.name) for p in checkpoint.found(folder / "state")]
    if done and done[-1] > recipe.training.images:
        raise ValueError(
            f"{folder} has seen {done[-1]:,} images already; give training.images={done[-1]} or more, "
            "or use a new run folder"
        )


def _own_rates(stored: Recipe, recipe: Recipe) -> Recipe:
    """`stored` with the rates of `recipe` that are not the training's: a critic's, and a family's own."""
    name = "objective" if isinstance(stored, AutoencoderRecipe | DecoderRecipe) else "decoded"
    holder, other = getattr(stored, name, None), getattr(recipe, name, None)
    if isinstance(holder, Config) and isinstance(other, Config):
        critic, given = getattr(holder, "critic", None), getattr(other, "critic", None)
        if not isinstance(critic, PatchCriticConfig) or not isinstance(given, PatchCriticConfig):
            return stored
        critic = critic.model_copy(update={"rate": given.rate})
        return stored.model_copy(update={name: holder.model_copy(update={"critic": critic})})
    if isinstance(stored, FamilyRecipe) and isinstance(recipe, FamilyRecipe):
        rate = getattr(recipe.family, "rate", None)
        if rate is None or "rate" not in type(stored.family).model_fields:
            return stored
        return stored.model_copy(update={"family": stored.family.model_copy(update={"rate": rate})})
    return stored


def _tell(before: Recipe, after: Recipe) -> None:
    """Say which settings a resumed run goes on with in place of its first ones."""
    one, other = _flat(before.model_dump()), _flat(after.model_dump())
    for name in (n for n in one if one[n] != other[n]):
        log.warning("goes on with %s=%s; until now it was %s", name, other[name], one[name])


def _flat(fields: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Settings by their whole names, as the command line takes them."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= _flat(value, f"{place}{name}.") if isinstance(value, dict) else {f"{place}{name}": value}
    return found
