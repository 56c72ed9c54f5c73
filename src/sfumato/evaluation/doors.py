"""What a command's words mean: which folder is measured how, with what, against what."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Data
from sfumato.data.folder import SUFFIXES
from sfumato.diffusion.names import DEFAULT, DEFAULT_GRID
from sfumato.evaluation import run
from sfumato.evaluation.likelihood import likelihood
from sfumato.evaluation.report import report
from sfumato.evaluation.run import Looking, Tell
from sfumato.evaluation.source import FolderPictures, Modelled, PartPictures, Rebuilt, Sampled, Source
from sfumato.families import base as families
from sfumato.families.base import Family
from sfumato.features import network as networks
from sfumato.model import LatentDiffusion
from sfumato.tasks.requests import Generate

Show = Callable[[Path], Path]  # writes the page


@dataclass(frozen=True)
class Asked:
    """The words of the command."""

    target: Path
    data: str | None = None
    size: int | None = None
    reference: str | None = None
    images: int = 1000
    captions: int = 512
    steps: int = 25
    guidance: float = 3.0
    sampler: str = DEFAULT
    grid: str = DEFAULT_GRID
    dtype: torch.dtype = torch.float32


def looking(
    features: Path | None,
    sha256: str | None,
    perceptual: Path | None,
    clip: Path | None,
    cache: Path | None,
    workers: int,
    device: torch.device,
) -> Looking:
    """The networks of these files, on the device. Raises `ValueError` for what is missing or not the expected file."""
    sides = None
    if clip is not None:
        from sfumato.features import vision

        sides = networks.opened(clip).to(device), vision.reader(clip).to(device)
    return Looking(
        networks.opened(features, sha256).to(device) if features is not None else None,
        run.perceptual(perceptual, device=device) if perceptual is not None else None,
        sides,
        cache,
        workers,
    )


def evaluate(asked: Asked, look: Looking, device: torch.device, tell: Tell) -> tuple[dict[str, Any], Show]:
    """The result of whatever the target is, and the function that writes its page.

    Raises `ValueError` where the target is nothing that can be measured, or something is missing for it.
    """
    folder = asked.target / "model" if (asked.target / "model" / "model.yaml").is_file() else asked.target
    text = (folder / "model.yaml").read_text(encoding="utf-8") if (folder / "model.yaml").is_file() else "{}"
    stage = (yaml.safe_load(text) or {}).get("stage")
    if stage is None and _pictures(folder):
        return _images(asked, look, tell)
    fields = run.read_data(folder)
    if asked.data is not None:
        fields = _fields(asked.data, asked.size if asked.size is not None else 64)
    if fields is None:
        raise ValueError(f"there is no recipe beside {folder} that names its data; say which with --data")
    if stage == "autoencoder":
        return _first_stage(asked, Codec.load(folder).to(device), fields, look, tell)
    if stage == "family":
        return _family(asked, families.load(folder, device), fields, look, tell)
    return _model(asked, LatentDiffusion.load(folder, device), fields, look, tell)


def _fields(data: str, size: int) -> dict[str, Any]:
    return {"kind": "emoji", "size": size} if data == "emoji" else {"kind": "folder", "path": data, "size": size}


def _pictures(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*"))


def real(words: str, size: int | None) -> Source:
    """The reference that a command names: the emoji's training part, or all pictures of a folder."""
    if words != "emoji":
        return FolderPictures(Path(words), size)
    return PartPictures(Data.model_validate({"kind": "emoji", "size": size or 64}).open("train"), "emoji, train")


def _images(asked: Asked, look: Looking, tell: Tell) -> tuple[dict[str, Any], Show]:
    if asked.reference is None:
        raise ValueError("a folder of images is measured against real ones; name them with --reference")
    size = asked.size or None
    images, reference = FolderPictures(asked.target, size), real(asked.reference, size)
    found = run.evaluate_images(images, reference, look, tell)
    return found, lambda path: report(path, found, title=images.title, images=images, reference=reference)


def _first_stage(
    asked: Asked, codec: Codec, fields: dict[str, Any], look: Looking, tell: Tell
) -> tuple[dict[str, Any], Show]:
    if asked.reference is not None:
        raise ValueError("reconstructions are measured against their originals; leave --reference out")
    if asked.data is not None and asked.data != "emoji" and asked.size == 0:
        source: Source = FolderPictures(Path(asked.data), None, codec.factor)
    else:
        source = run.held_out(Data.model_validate(fields))
    found = run.evaluate_codec(codec, source, look, tell)
    again = Rebuilt(codec, source)
    return found, lambda path: report(
        path, found, title=str(asked.target), again=again, perceptual=look.perceptual, images=again, reference=source
    )


def _family(
    asked: Asked, family: Family, fields: dict[str, Any], look: Looking, tell: Tell
) -> tuple[dict[str, Any], Show]:
    data = Data.model_validate(fields)
    train = data.open("train")
    reference = real(asked.reference, family.shape.size) if asked.reference is not None else None
    against = reference or PartPictures(train, f"{run.titled(data)}, train")
    samples = Modelled(family, asked.images, run.SEED, asked.guidance, train)
    found = run.evaluate_images(samples, against, look, tell)
    apart = data.open("held_out")
    found["likelihood"] = likelihood(family, apart)
    return found, lambda path: report(path, found, title=str(asked.target), images=samples, reference=against)


def _model(
    asked: Asked, model: LatentDiffusion, fields: dict[str, Any], look: Looking, tell: Tell
) -> tuple[dict[str, Any], Show]:
    data = Data.model_validate(fields)
    reference = real(asked.reference, model.size) if asked.reference is not None else None
    found = run.evaluate_model(
        model,
        data,
        captions=asked.captions,
        steps=asked.steps,
        guidance=asked.guidance,
        sampler=asked.sampler,
        grid=asked.grid,
        dtype=asked.dtype,
        images=asked.images,
        look=look,
        reference=reference,
        tell=tell,
    )

    def show(path: Path) -> Path:
        if "extremes" not in found:
            return report(path, found, title=str(asked.target))
        request = Generate(
            seed=run.SEED, steps=asked.steps, guidance=asked.guidance, sampler=asked.sampler, grid=asked.grid
        )
        train = data.open("train")
        samples = Sampled(copy.deepcopy(model).for_sampling(asked.dtype), request, asked.images, train)
        trained = PartPictures(train, run.titled(data))
        against = reference or trained
        return report(path, found, title=str(asked.target), images=samples, reference=against, train=trained)

    return found, show
