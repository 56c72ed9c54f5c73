"""What a recipe or a model folder is made of, as text and a table: shapes, parameters, FLOPs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato import paths
from sfumato.autoencoder.codec import Codec
from sfumato.conditioning.base import Conditions, Sizes
from sfumato.families import base as families
from sfumato.model import LatentDiffusion
from sfumato.training import decoder
from sfumato.training import recipe as recipes
from sfumato.training.finetuning import begun
from sfumato.training.fitted import fitted, gridded
from sfumato.training.given import there
from sfumato.training.recipe import AutoencoderRecipe, DecoderRecipe, DistillationRecipe, FamilyRecipe, FinetuningRecipe
from sfumato.training.run import modelling
from sfumato.training.shortcut import strided

Row = tuple[str, str, str, str, str]


def folder(path: Path) -> tuple[str, list[Row]]:
    """A model folder's `model.yaml` and table. Raises `ValueError` where it is none."""
    if not (path / "model.yaml").is_file():
        raise ValueError(f"{path} is not a model folder: it has no model.yaml")
    text = (path / "model.yaml").read_text(encoding="utf-8")
    stage = (yaml.safe_load(text) or {}).get("stage")
    if stage == "autoencoder":
        return text, first_stage(Codec.load(path), 64)
    if stage == "family":
        made = families.load(path)
        size = shape(made.shape.channels, made.shape.size, made.shape.size)
        return text, [(turn, "", size, parameters(*made.learned(turn)), "") for turn in made.turns]
    return text, both(LatentDiffusion.load(path))


def recipe(source: str, changes: Sequence[str]) -> tuple[str, list[Row]]:
    """A recipe's resolved YAML and table. Where the first stage or the data are not known, a denoiser has no shape, and
    the table says so."""
    read = recipes.read(source, changes)
    text = yaml.safe_dump(recipes.dump(read), sort_keys=False, allow_unicode=True)
    if isinstance(read, AutoencoderRecipe):
        return text, first_stage(Codec(read.autoencoder), read.data.size)
    if isinstance(read, FamilyRecipe):
        return text, _family(read)
    if isinstance(read, DistillationRecipe):
        teacher = LatentDiffusion.load(there(read.teacher, read.data))
        return text, both(strided(teacher, read.steps) if read.how == "shortcut" else teacher)
    if isinstance(read, DecoderRecipe):
        start = decoder.begun(read)
        return text, both(start) if isinstance(start, LatentDiffusion) else first_stage(start, read.data.size)
    if isinstance(read, FinetuningRecipe):
        return text, both(begun(read))
    codec = _planned(read.autoencoder)
    if codec is None:
        return text, [("denoiser", f"train the first stage first: {read.autoencoder} is not there", "", "", "")]
    try:
        part = read.data.open("train")
    except ValueError as error:  # its shape hangs on classes and words of data that are not there yet
        return text, [*first_stage(codec, read.data.size), ("denoiser", str(error), "", "", "")]
    config, texts = fitted(read, part)
    config = gridded(config, read.data.size, codec.factor)
    return text, both(LatentDiffusion(codec, config, read.data.size, texts))


def _planned(path: Path) -> Codec | None:
    """The first stage in a model folder, or with fresh weights the one that the recipe of its run's name will give."""
    if (path / "model.yaml").is_file():
        return Codec.load(path)
    if path.name != "model" or path.parent.name not in recipes.shipped():
        return None
    found = recipes.read(path.parent.name)
    return Codec(found.autoencoder) if isinstance(found, AutoencoderRecipe) else None


def _family(read: FamilyRecipe) -> list[Row]:
    """A row for each turn's weights."""
    if read.autoencoder is not None and not (read.autoencoder / "model.yaml").is_file():
        return [(read.family.kind_name(), f"train the first stage first: {read.autoencoder} is not there", "", "", "")]
    made = modelling(read, torch.device("cpu")).family
    pixels = shape(made.shape.channels, made.shape.size, made.shape.size)
    count = f"{made.evaluations} evaluations a picture"
    return [(turn, count, pixels, parameters(*made.learned(turn)), "") for turn in made.turns]


def shape(*sides: int) -> str:
    """Sides as `3 x 64 x 64`."""
    return " x ".join(map(str, sides))


def parameters(*modules: nn.Module) -> str:
    """The number of parameters, with thousands apart."""
    return f"{sum(p.numel() for m in modules for p in m.parameters()):,}"


@torch.no_grad()
def first_stage(codec: Codec, size: int) -> list[Row]:
    """The encoder's and the decoder's rows."""
    coder, f = codec.autoencoder.eval(), codec.factor
    images = torch.zeros(1, codec.image_channels, size, size)
    with counting() as there:
        latent = coder.encode(images).latent
    with counting() as back:
        coder.decode(latent)
    pixels, small = shape(codec.image_channels, size, size), shape(codec.channels, size // f, size // f)
    ways = [getattr(coder, name, nn.Identity()) for name in ("encoder", "decoder")]
    return [
        ("encoder", pixels, small, parameters(ways[0]), f"{there.get_total_flops() / 1e9:.3f}"),
        ("decoder", small, pixels, parameters(ways[1]), f"{back.get_total_flops() / 1e9:.3f}"),
    ]


@torch.no_grad()
def both(model: LatentDiffusion) -> list[Row]:
    """The first stage's rows, the denoiser's and the conditioners'."""
    model.eval()
    rows = first_stage(model.codec, model.size)
    latent, sizes = model.latent_shape(), model.conditions.sizes
    cost = f"{evaluation(model) / 1e9:.3f} an evaluation"
    rows.append(("denoiser", shape(*latent), shape(*latent), parameters(model.denoiser), cost))
    doors = ", ".join(f"{name} {width}" for name, width in sizes._asdict().items() if width)
    fields = ", ".join(model.conditions.fields.values())
    rows.append(("conditioners", fields or "none", doors, parameters(model.conditions), ""))
    return rows


def counting() -> FlopCounterMode:
    """Counts FLOPs, those of attention too: torch's counter knows its kernels on accelerators and none on the CPU."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: _attending})


def _attending(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of attention for shapes (B, heads, N, d), (B, heads, M, d), (B, heads, M, e)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@torch.no_grad()
def evaluation(model: LatentDiffusion) -> int:
    """FLOPs of one evaluation of the denoiser for one picture of the model's size."""
    latent, device = model.latent_shape(), model.device
    # plainly: lanes are threads, in which nothing is counted
    with paths.plain(), device, counting() as counter:
        model.denoiser(torch.zeros(1, *latent), torch.full((1,), 0.5), blank(model.conditions.sizes, latent))
    return int(counter.get_total_flops())


def blank(sizes: Sizes, latent: tuple[int, int, int], tokens: int = 8) -> Conditions:
    """Zeros through every open door, for measuring."""
    return Conditions(
        torch.zeros(1, sizes.vector) if sizes.vector else None,
        torch.zeros(1, tokens, sizes.tokens) if sizes.tokens else None,
        torch.ones(1, tokens, dtype=torch.bool) if sizes.tokens else None,
        torch.zeros(1, sizes.image, *latent[1:]) if sizes.image else None,
    )
