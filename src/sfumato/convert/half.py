"""A model folder with its weights in half precision: half as large, to be handed on. It opens like any other."""

from pathlib import Path

import torch
from torch import nn

from sfumato import files
from sfumato.autoencoder.codec import Codec
from sfumato.model import LatentDiffusion
from sfumato.shipped import SHEET


def convert(source: Path, out: Path) -> Path:
    """Write the folder of a denoiser or a first stage. What is no weight, such as the latents' shift and scale, stays as it
    is. Raises `ValueError` where a weight is too large for half precision, or `source` is no such folder.
    """
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} is the model itself; give another folder")
    files.vacant(out)
    if not (source / SHEET).is_file():
        raise ValueError(f"there is no model folder {source}; give one, or the run folder around it")
    if "stage: autoencoder" in (source / SHEET).read_text(encoding="utf-8").splitlines():
        codec = Codec.load(source)
        rounded(codec, source)
        files.replace(out, lambda part: codec.save(part, half=True))
        return out
    model = LatentDiffusion.load(source)
    rounded(model, source)  # the first stage is a part of it
    card = source / "README.md"
    told = card.read_text(encoding="utf-8") if card.is_file() else ""
    files.replace(out, lambda part: model.save(part, told, half=True))
    return out


@torch.no_grad()
def rounded(module: nn.Module, source: Path) -> None:
    """Round the weights to what half precision holds, in place; `files.save_tensors` then writes them so."""
    for name, weight in module.named_parameters():
        half = weight.half().to(weight.dtype)
        if not bool(half.isfinite().all()):
            raise ValueError(f"{source}: {name} has values too large for half precision; hand the model on as it is")
        weight.copy_(half)
