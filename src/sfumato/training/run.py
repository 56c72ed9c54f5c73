"""From a recipe to a run folder: open the data, build what is trained, hand both to the loop."""

import itertools
import json
import logging
import os
import platform
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from sfumato import __version__, distributed, files
from sfumato import device as devices
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.coder import CoderConfig
from sfumato.data.base import Part
from sfumato.families.base import Shape
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.nn import draws
from sfumato.nn.recompute import recompute
from sfumato.training import checkpoint, compiled, decoder
from sfumato.training import recipe as recipes
from sfumato.training.autoencoder import Reconstruction
from sfumato.training.card import card
from sfumato.training.decoder import Decoding
from sfumato.training.diffusion import Denoising
from sfumato.training.distillation import Distilling
from sfumato.training.family import Modelling
from sfumato.training.finetuning import begun, magnifying, named, times
from sfumato.training.fitted import as_small, fitted, gridded, heard, known, varied
from sfumato.training.given import cached, held_out, in_steps, only_squares, there
from sfumato.training.latents import Fresh, Latents, Shaped
from sfumato.training.loop import Loop, Watch
from sfumato.training.memory import Needs, accumulating, fitting, needs
from sfumato.training.objective import Objective
from sfumato.training.recipe import (
    AutoencoderRecipe,
    DecodedConfig,
    DecoderRecipe,
    DiffusionRecipe,
    DistillationRecipe,
    FamilyRecipe,
    FinetuningRecipe,
    Recipe,
    dump,
    parse,
)
from sfumato.training.resumed import as_it_was, changed, precise, resumed
from sfumato.training.shortcut import Shortcutting

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
    watch: Watch | None = None,
) -> Path:
    """Train a recipe in the run folder and return its model folder.

    Raises `ValueError` where the folder holds another run, or where the data, the recipe and the first stage do not
    fit one another, and where another process trains in the folder; `Interrupted` after Ctrl-C and `FloatingPointError` on
    NaN, both with what to do next.
    """
    where = devices.pick(device)
    with ExitStack() as stack:
        if distributed.chief():
            stack.enter_context(files.alone(folder))
        return _trained(recipe, folder, resume, where, quiet, watch)


def _trained(recipe: Recipe, folder: Path, resume: bool, where: torch.device, quiet: bool, watch: Watch | None) -> Path:
    with as_it_was(folder / "recipe.yaml", resume):
        recipe = _agreed(recipe, folder, resume, where)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.training.seed)  # of the fresh weights; everything later has streams of its own
            dtype = devices.precision(recipe.training.precision, where)
            objective = _ready(recipe, folder, where, dtype)
        if isinstance(objective, Reconstruction) and not objective.learns:
            return _measured(objective, folder)
        compiled.ready(objective.turns.values(), recipe.training, where)
        loop = Loop(objective, recipe.training, folder, f"{recipe.stage} {folder.name}", where, dtype, quiet, watch)
        if resume:
            loop.resume()
    loop.run()
    return folder / "model"


def _measured(objective: Reconstruction, folder: Path) -> Path:
    """The model folder of a first stage that has nothing to train: `kind: identity`, whose latents are pixels."""
    log.warning(
        "this first stage has nothing to train: only its shift and scale are measured, over the training pictures"
    )
    objective.conclude()
    if distributed.chief():
        objective.publish(folder / "model")
    distributed.wait()
    return folder / "model"


def _ready(recipe: Recipe, folder: Path, where: torch.device, dtype: torch.dtype) -> Objective:
    """The objective where it is to be trained, as it is to be trained."""
    objective = objective_of(recipe, folder, where)
    for module in objective.turns.values():
        module.to(where, torch.float64 if dtype == torch.float64 else None)
    recompute(objective.through(), recipe.training.checkpointing)
    return objective


def objective_of(recipe: Recipe, folder: Path, where: torch.device) -> Reconstruction | Denoising | Modelling:
    """What a recipe trains, before it is trained. Raises as `train` does."""
    seen(recipe)  # before a folder is looked through and its pictures are encoded
    if isinstance(recipe, AutoencoderRecipe):
        return reconstruction(recipe, where)
    if isinstance(recipe, DecoderRecipe):
        return decoding(recipe, where)
    if isinstance(recipe, FamilyRecipe):
        return modelling(recipe, where)
    if isinstance(recipe, DistillationRecipe):
        return distilling(recipe, folder, where)
    if isinstance(recipe, FinetuningRecipe):
        return finetuning(recipe, folder, where)
    return denoising(recipe, folder, where)


def seen(recipe: Recipe) -> None:
    """Raise `ValueError` where a network that the recipe compares pictures with is not there."""
    compared = recipe.objective if isinstance(recipe, AutoencoderRecipe | DecoderRecipe) else None
    if compared is not None and compared.perceptual and compared.perceptual_weight:
        compared.perceptual.present(without="objective.perceptual=null")
    decoded = getattr(recipe, "decoded", None)
    if isinstance(decoded, DecodedConfig) and decoded.perceptual is not None:
        decoded.perceptual.present(without="decoded=null" if decoded.critic is None else "decoded.perceptual=null")


@draws.wanted()
def reconstruction(recipe: AutoencoderRecipe, where: torch.device) -> Reconstruction:
    """The first stage's objective, with fresh weights."""
    only_squares(recipe.data, "a first stage")
    coder = getattr(recipe.autoencoder, "coder", None)
    if isinstance(coder, CoderConfig):
        coder.attended()
    part, apart = recipe.data.open("train"), held_out(recipe.data, bool(recipe.training.held_out))
    return Reconstruction(Codec(recipe.autoencoder).to(where), recipe, part, apart, where)


@draws.wanted()
def decoding(recipe: DecoderRecipe, where: torch.device) -> Decoding:
    """The objective of a decoder that goes on learning. Raises `ValueError` as `decoder.begun`, and for pictures that are not
    the model's."""
    only_squares(recipe.data, "a decoder")
    start = decoder.begun(recipe).to(where)
    part, apart = recipe.data.open("train"), held_out(recipe.data, bool(recipe.training.held_out))
    return Decoding(start, recipe, part, apart, where)


@draws.wanted()
def denoising(recipe: DiffusionRecipe, folder: Path, where: torch.device) -> Denoising:
    """The second stage's objective: its conditioners fitted to the data, its latents encoded where they are not yet."""
    codec = Codec.load(there(recipe.autoencoder, recipe.data)).to(where)
    part, apart = recipe.data.open("train"), held_out(recipe.data, bool(recipe.training.held_out))
    config, texts = fitted(recipe, part, apart)
    config = gridded(config, recipe.data.size, codec.factor)
    model = LatentDiffusion(codec, config, recipe.data.size, texts).to(where)
    heard(model)
    varied(model, part)
    part = in_steps(part, model, recipe.training)
    latents = _latents(codec, part, recipe, folder)
    return Denoising(model, recipe, part, latents, where, card(recipe), apart if recipe.training.held_out else None)


@draws.wanted()
def modelling(recipe: FamilyRecipe, where: torch.device) -> Modelling:
    """The objective of another family, with fresh weights."""
    only_squares(recipe.data, f"a model of kind {recipe.family.kind_name()}")
    part = recipe.data.open("train")
    if recipe.autoencoder is not None and not recipe.family.coded:
        kind = recipe.family.kind_name()
        raise ValueError(f"this model of kind {kind} draws pixels and takes no autoencoder; set autoencoder=null")
    codec = None if recipe.autoencoder is None else Codec.load(there(recipe.autoencoder, recipe.data)).to(where)
    labels = tuple(part.labels) if recipe.labelled else ()
    family = recipe.family.build(Shape(part.channels, part.size), labels, codec).to(where)
    for name in family.tuned(next(iter(family.turns))):
        if getattr(recipe.training, name) != type(recipe.training).model_fields[name].default:
            kind = recipe.family.kind_name()
            log.warning("training.%s has no effect on a model of kind %s, which has its own (family.rate)", name, kind)
    apart = held_out(recipe.data, needed=True) if recipe.training.held_out else None
    if apart is not None and not family.scored:
        raise ValueError(
            f"a model of kind {recipe.family.kind_name()} has no loss on held-out pictures; leave training.held_out and "
            "training.best out, of recipe.yaml too where a run goes on"
        )
    return Modelling(family, recipe, part, where, card(recipe, labels), apart)


@draws.wanted()
def distilling(recipe: DistillationRecipe, folder: Path, where: torch.device) -> Distilling:
    """The objective of a distillation.

    Raises `ValueError` where the data are not of the teacher's size, or have not what its conditioners read, and where
    the teacher is a shortcut itself, or a shortcut cannot be made of it.
    """
    only_squares(recipe.data, "a distillation")
    if recipe.training.held_out:
        raise ValueError(
            "a distillation has no held-out loss: its student follows the teacher, not the pictures; leave "
            "training.held_out and training.best out, of recipe.yaml too where a run goes on; sfumato evaluate measures it"
        )
    teacher = LatentDiffusion.load(there(recipe.teacher, recipe.data)).to(where)
    told = teacher.config.distilled
    if told is not None and "shortcut" in (told.how, recipe.how):
        raise ValueError("the teacher was distilled into few steps itself; give the model that it was distilled from")
    if teacher.size != recipe.data.size:
        raise ValueError(
            f"the teacher makes {teacher.size} pixels a side and data.size is {recipe.data.size}; make them equal"
        )
    whole = _whole_of(teacher, recipe, autoencoder=recipe.teacher / "autoencoder")
    part, _ = known(teacher, recipe.data.open("train"), held_out(recipe.data))
    as_small(teacher, part)
    way = Shortcutting if recipe.how == "shortcut" else Distilling
    return way(teacher, recipe, whole, part, _latents(teacher.codec, part, recipe, folder), where, card(whole))


@draws.wanted()
def finetuning(recipe: FinetuningRecipe, folder: Path, where: torch.device) -> Denoising:
    """The second stage's objective with the weights of a trained model. Raises `ValueError` where the data have not what its
    conditioners read, and as `finetuning.begun`."""
    model = begun(recipe).to(where)
    told, part = bool(recipe.training.held_out), recipe.data.open("train")
    named(model, part)
    model = magnifying(model, part)
    whole = _whole_of(
        model, recipe, autoencoder=recipe.start / "autoencoder", times=times(recipe, model),
        weighting=recipe.weighting, decoded=recipe.decoded, unsaid=recipe.unsaid,
    )  # fmt: skip
    part, apart = known(model, part, held_out(recipe.data, told))
    part = in_steps(part, model, recipe.training)
    latents = _latents(model.codec, part, recipe, folder)
    return Denoising(model, whole, part, latents, where, card(whole, start=str(recipe.start)), apart if told else None)


def _whole_of(model: LatentDiffusion, recipe: DistillationRecipe | FinetuningRecipe, **more: Any) -> DiffusionRecipe:
    """The recipe of a second stage that makes such a model of such data."""
    kept = {n: getattr(model.config, n) for n in DiffusionConfig.model_fields if n != "distilled"}
    shared = {n: getattr(recipe, n) for n in ("cache", "prompts", "data", "training")}
    return DiffusionRecipe(stage="diffusion", **kept, **shared, **more)


def _latents(
    codec: Codec, part: Part, recipe: DiffusionRecipe | DistillationRecipe | FinetuningRecipe, folder: Path
) -> Latents | Shaped | Fresh:
    """A part's latents: from the cache beside the run folder, or encoded when they are shown."""
    if recipe.cache:
        return cached(codec, part, folder.parent / "latents", recipe.training.flip > 0)
    return Fresh(codec, part)


def _agreed(recipe: Recipe, folder: Path, resume: bool, where: torch.device) -> Recipe:
    """The recipe with every measured choice made, by the first process for all."""
    if distributed.chief():
        with distributed.alone():
            recipe = _settled(recipe, folder, resume, where)
    distributed.wait()
    if distributed.chief():
        return recipe
    path = folder / "recipe.yaml"
    return parse(recipes.load_yaml(str(path)), str(path))


def _settled(recipe: Recipe, folder: Path, resume: bool, where: torch.device) -> Recipe:
    """The recipe with every measured choice made, written to the run folder; on resume, the one that stands there."""
    path = folder / "recipe.yaml"
    begun_before = bool(checkpoint.found(folder / "state")) or (folder / "model" / "model.yaml").is_file()
    if resume and begun_before and path.is_file():
        return resumed(recipe, folder)
    if resume and begun_before and not path.is_file():
        raise ValueError(f"{folder} holds a run whose recipe.yaml is missing: bring it back, or choose another folder")
    if resume and not begun_before:
        log.warning("%s holds no run to go on with; it begins anew", folder)
    elif begun_before:
        raise ValueError(f"{folder} holds a run already; add --resume to go on, or choose another folder")
    _room(folder)
    faster = "bf16" if devices.precision(recipe.training.precision, where) == torch.bfloat16 else "fp32"
    settled = _sized(recipe.model_copy(update={"training": precise(recipe, faster)}), folder, where)
    if path.is_file() and "sfumato" not in recipes.load_yaml(str(path)):  # one that was written by hand
        several = (path.with_name(f"recipe.before{f'-{n}' if n > 1 else ''}.yaml") for n in itertools.count(1))
        kept = next(name for name in several if not name.exists())
        path.replace(kept)
        log.warning("%s is kept as %s, for the run writes its settled recipe there", path, kept.name)
    files.write(path, yaml.safe_dump(dump(settled), sort_keys=False, allow_unicode=True))
    files.write(folder / "environment.json", json.dumps(environment(where), indent=1))
    return settled


def _sized(recipe: Recipe, folder: Path, where: torch.device) -> Recipe:
    """The recipe with a batch that fits, and parts of it, where it asks for them."""
    if recipe.training.batch and recipe.training.accumulate:
        return recipe
    return sized(recipe, needed(recipe, folder, where))


def sized(recipe: Recipe, found: Needs) -> Recipe:
    """The recipe with the batch and the parts that `auto` takes where so much is needed."""
    batch = recipe.training.batch or fitting(found)
    return changed(recipe, batch=batch, accumulate=recipe.training.accumulate or accumulating(found, batch))


def needed(recipe: Recipe, folder: Path, where: torch.device) -> Needs:
    """What a training needs of memory, measured on two pictures. Writes nothing but what reading the
    data keeps of them (`kind: table`), which a training needs too; raises as `train` does."""
    if isinstance(recipe, DiffusionRecipe | DistillationRecipe | FinetuningRecipe):
        recipe = recipe.model_copy(update={"cache": False})
    decoded = getattr(recipe, "decoded", None)
    if isinstance(decoded, DecodedConfig):  # whatever share is decoded, a part may be all
        recipe = recipe.model_copy(update={"decoded": decoded.model_copy(update={"every": 1})})
    small = changed(recipe, batch=2, accumulate=1, images=max(recipe.training.images // 2 * 2, 2))  # whole steps
    dtype = devices.precision(recipe.training.precision, where)
    with torch.random.fork_rng(devices=[]):
        objective = _ready(small, folder, where, dtype)
    return needs(objective, small.training, dtype, where, small.training.images - 2)


def _room(folder: Path, wanted: int = 64 << 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise OSError(f"no disk space left for {folder}: {free >> 20} MiB are free; free at least {wanted >> 20} MiB")


def environment(where: torch.device) -> dict[str, object]:
    """What a run's exact numbers depend on besides its recipe."""
    return {
        "sfumato": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "tf32": torch.backends.cudnn.allow_tf32 if where.type == "cuda" else None,  # of convolutions, under fp32 too
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
