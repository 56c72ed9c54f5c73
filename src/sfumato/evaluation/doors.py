"""What a command's words mean: which folder is measured how, with what, against what."""

import copy
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato import files, shipped
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Data
from sfumato.data.layout import SUFFIXES, walked
from sfumato.evaluation import run
from sfumato.evaluation.outside import Named, Outside, stands
from sfumato.evaluation.report import report
from sfumato.evaluation.run import Looking, Tell
from sfumato.evaluation.source import FolderPictures, Modelled, PartPictures, Rebuilt, Sampled, Source
from sfumato.families import base as families
from sfumato.families.base import Family
from sfumato.features import network as networks
from sfumato.model import LatentDiffusion
from sfumato.training.fitted import classes
from sfumato.training.given import held_out
from sfumato.training.likelihood import LIMIT, likelihood

log = logging.getLogger(__name__)
NAMES = {"dtype": "precision", "each": "one-each"}  # of options that are called otherwise in the command
SAMPLING = ("dtype", "steps", "guidance", "sampler", "grid")
IMAGES, CAPTIONS = 1000, 512  # that are measured where nothing is said
Show = Callable[[Path], Path]  # writes the page


@dataclass(frozen=True)
class Asked:
    """The words of the command."""

    target: Path
    data: str | None = None
    size: int | None = None
    reference: str | None = None
    images: int | None = None
    captions: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    grid: str | None = None
    dtype: torch.dtype | None = None  # of sampling; float32 where nothing is said
    each: bool = False  # of twins one, as training shows them

    @property
    def count(self) -> int:
        """How many images are generated."""
        return IMAGES if self.images is None else self.images


def looking(
    features: Path | None,
    sha256: str | None,
    perceptual: Path | None,
    clip: Path | None,
    cache: Path | None,
    workers: int,
    device: torch.device,
    perceptual_sha256: str | None = None,
    heads: Path | None = None,
    heads_sha256: str | None = None,
) -> Looking:
    """The networks of these files, on the device. Raises `ValueError` for what is missing or not the expected file."""
    if perceptual is None and (heads or perceptual_sha256 or heads_sha256):
        raise ValueError("a perceptual distance needs its network; name the file with --perceptual")
    sides = None
    if clip is not None:
        from sfumato.features import vision

        sides = networks.opened(clip).to(device), vision.reader(clip).to(device)
    return Looking(
        networks.opened(features, sha256).to(device) if features is not None else None,
        run.perceptual(perceptual, perceptual_sha256, device, heads, heads_sha256) if perceptual is not None else None,
        sides,
        cache,
        workers,
    )


def evaluate(asked: Asked, look: Looking, device: torch.device, tell: Tell) -> tuple[dict[str, Any], Show]:
    """The result of whatever the target is, and the function that writes its page.

    Raises `ValueError` where the target is nothing that can be measured, or something is missing for it.
    """
    folder = shipped.folder(asked.target)
    if not folder.exists():
        raise ValueError(
            f"there is no folder {folder}; give a model's, a run's or one of pictures, or {shipped.told()}"
        )
    stage = files.mapping(folder / "model.yaml").get("stage") if (folder / "model.yaml").is_file() else None
    if stage is None and _pictures(folder):
        return _images(asked, look, tell)
    recipe = read_data(folder)
    if stage == "autoencoder":
        recipe = recipe or read_data(folder.parent)  # of a model that it is a part of
        return _first_stage(asked, Codec.load(folder).to(device), recipe, look, tell)
    if recipe is None and asked.data is None:
        raise ValueError(_unsaid(folder))
    if stage == "family":
        return _family(asked, families.load(folder, device), recipe, look, tell)
    return _model(asked, LatentDiffusion.load(folder, device), recipe, look, tell)


def read_data(folder: Path) -> dict[str, Any] | None:
    """The `data` of the recipe beside a model folder, as squares, None where there is none. Of a model whose decoder alone
    learned on, those of the model that it was taken from: what that learned from, and not what its decoder did."""
    from sfumato.training.recipe import load_yaml

    path = folder.parent / "recipe.yaml"
    if not path.is_file():
        return None
    recipe = load_yaml(str(path))
    if recipe.get("stage") == "decoder" and files.mapping(folder / "model.yaml").get("stage") == "diffusion":
        return read_data(shipped.folder(recipe["start"]))
    found: dict[str, Any] | None = recipe.get("data")
    return found and {name: value for name, value in found.items() if name != "buckets"}


def _unsaid(folder: Path) -> str:
    return f"there is no recipe beside {folder} that names its data; say which with --data"


def _data(asked: Asked, recipe: dict[str, Any] | None, size: int, channels: int, labels: tuple[str, ...] = ()) -> Data:
    """What a model is measured on: the data of its run, or those that the command names, at the model's size.

    A folder other than the run's is held out whole, beside the run's data; where these are gone, it stands for them. Its
    classes are those of the model with the same names.
    """
    size = asked.size or size
    if asked.data is None and not stands(recipe):
        raise ValueError(
            f"the run's pictures are not in {(recipe or {}).get('path')}, seen from here: start in the folder that it was "
            "trained from, or say with --data where they are"
        )
    if asked.data is not None and _moved(asked.data, recipe):
        recipe = {**(recipe or {}), "path": asked.data}
    if asked.data is None or _same(asked.data, recipe):
        assert recipe is not None
        return _named(Data.model_validate(recipe | ({"size": size} if asked.data is not None else {})), labels)
    derived = {k: recipe[k] for k in ("degrade", "masks", "embed") if recipe and recipe.get(k)}
    if asked.data == "emoji":
        return _named(Data.model_validate({"kind": "emoji", "size": size, **derived}), labels)
    fields = {"path": asked.data, "size": size, **({"channels": channels} if channels != 3 else {}), **derived}
    if not stands(recipe):
        if recipe is not None:
            log.warning(
                "the run's own data, %s, are not there, seen from here: %s stands for them", recipe["path"], asked.data
            )
        return _named(Data.model_validate({"kind": "folder", **fields}), labels)
    return Outside.model_validate({**fields, "trained": recipe, "labels": labels})


def _named(data: Data, labels: tuple[str, ...]) -> Data:
    """The data with the model's classes, where they have others of the same names."""
    own = data.open("train").labels if labels else ()
    if tuple(own) == labels or not set(own) & set(labels):
        return data
    return Named(data=data, size=data.size, labels=labels, degrade=data.degrade, masks=data.masks, embed=data.embed)


def _moved(data: str, recipe: dict[str, Any] | None) -> bool:
    """Whether these words name the folder of a run's data, which the recipe tells from another place."""
    if recipe is None or stands(recipe) or Path(recipe["path"]).is_absolute():
        return False
    told, found = Path(recipe["path"]).parts, Path(data).resolve().parts
    return bool(told) and ".." not in told and found[-len(told) :] == told


def _same(data: str, recipe: dict[str, Any] | None) -> bool:
    """Whether these words name the data of a recipe."""
    if recipe is None or data == "emoji":
        return recipe is not None and recipe.get("kind") == "emoji"
    return "path" in recipe and Path(data).resolve() == Path(recipe["path"]).resolve()


def _originals(asked: Asked, codec: Codec, recipe: dict[str, Any] | None) -> Source:
    """The pictures that a first stage rebuilds: its run's held-out ones, or a folder whole, at the run's size or as they
    are where there was no run."""
    size = asked.size if asked.size is not None else (recipe or {}).get("size", 0 if asked.data != "emoji" else 64)
    if asked.data is not None and asked.data != "emoji" and not (size and _same(asked.data, recipe)):
        return FolderPictures(Path(asked.data), size or None, codec.factor, codec.image_channels)
    return run.held_out(_data(asked, recipe, size or 64, codec.image_channels))


def _side(asked: Asked, size: int) -> int:
    """Pixels a side of a model's reference. Raises `ValueError` where a size is asked for and nothing has it."""
    if asked.size and asked.size != size and asked.data is None and asked.reference is None:
        raise ValueError(
            f"--size is of --data, --reference and pictures, and this model makes pictures of {size} pixels; leave it out"
        )
    return asked.size or size


def _pictures(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in SUFFIXES for path in walked(folder))


def real(words: str, size: int | None, channels: int = 3, each: bool = False) -> Source:
    """The reference that a command names: the emoji's training part, or all pictures of a folder.

    Raises `ValueError` where one `each` family of a folder is asked for: which of its pictures are twins is not known.
    """
    if words == "emoji":
        return run.trained(Data.model_validate({"kind": "emoji", "size": size or 64}), each)
    if each:
        raise ValueError(f"which pictures of {words} are twins is not known; leave --one-each out, or --reference")
    return FolderPictures(Path(words), size, channels=channels)


def _heeds(asked: Asked, target: str, *ignored: str) -> None:
    """Raise `ValueError` where something was asked that says nothing of what is measured."""
    said = [f"--{NAMES.get(name, name)}" for name in ignored if getattr(asked, name) not in (None, False)]
    if said:
        raise ValueError(f"{' and '.join(said)} would do nothing, for {target}; leave out what does nothing")


def _generates(asked: Asked, look: Looking) -> None:
    """Raise `ValueError` where images are asked for that no network would look at."""
    if look.network is None and look.clip is None:
        _heeds(asked, "images are generated for --features or --clip", "images", "reference", "each")


def _images(asked: Asked, look: Looking, tell: Tell) -> tuple[dict[str, Any], Show]:
    _heeds(asked, "pictures are measured as they are", "data", "images", "captions", *SAMPLING)
    if look.perceptual is not None:
        raise ValueError("a perceptual distance is between a picture and its reconstruction; leave --perceptual out")
    if asked.reference is None:
        raise ValueError("a folder of images is measured against real ones; name them with --reference")
    size = asked.size or None
    images, reference = FolderPictures(asked.target, size), real(asked.reference, size, each=asked.each)
    found = run.evaluate_images(images, reference, look, tell)
    return found, lambda path: report(path, found, title=images.title, images=images, reference=reference)


def _first_stage(
    asked: Asked, codec: Codec, recipe: dict[str, Any] | None, look: Looking, tell: Tell
) -> tuple[dict[str, Any], Show]:
    _heeds(asked, "a first stage samples nothing", "images", "captions", *SAMPLING)
    if asked.reference is not None:
        raise ValueError("reconstructions are measured against their originals; leave --reference out")
    if asked.each:
        raise ValueError("reconstructions are measured of all held-out pictures; leave --one-each out")
    if look.clip is not None:
        raise ValueError("reconstructions have no captions to be held against; leave --clip out")
    if asked.size is not None and asked.data is None:
        raise ValueError(
            "held-out pictures have the recipe's size; say with --data which are of another, or leave --size out"
        )
    if recipe is None and asked.data is None:
        raise ValueError(_unsaid(asked.target))
    source = _originals(asked, codec, recipe)
    found = run.evaluate_codec(codec, source, look, tell)
    again, seen = Rebuilt(codec, source), look.of(codec.image_channels)
    return found, lambda path: report(
        path, found, title=str(asked.target), again=again, perceptual=seen.perceptual, images=again, reference=source
    )


def _family(
    asked: Asked, family: Family, recipe: dict[str, Any] | None, look: Looking, tell: Tell
) -> tuple[dict[str, Any], Show]:
    _heeds(asked, "this model is no diffusion and has none", "dtype", "captions", "steps", "sampler", "grid")
    _generates(asked, look)
    if look.perceptual is not None:
        raise ValueError("a perceptual distance is between a picture and its reconstruction; leave --perceptual out")
    shape = family.shape
    data = _data(asked, recipe, shape.size, shape.channels, family.labels)
    side = _side(asked, shape.size)
    reference = real(asked.reference, side, shape.channels, asked.each) if asked.reference is not None else None
    shown = run.trained(data, asked.each)
    against = reference or shown
    if not family.unnamed and asked.guidance not in (None, 1.0):
        raise ValueError("this model learned nothing that guidance could move away from; leave --guidance out")
    guidance = (3.0 if family.unnamed else 1.0) if asked.guidance is None else asked.guidance
    samples = Modelled(family, asked.count, run.SEED, guidance, shown.part)
    codec = next(iter(family.parts().values()), None)
    own = _data(dataclasses.replace(asked, size=None), recipe, shape.size, shape.channels, family.labels)
    apart = held_out(own, needed=asked.data is not None and not _same(asked.data, recipe))
    found = run.evaluate_images(samples, against, look, tell, codec)
    found["likelihood"] = None if apart is None else likelihood(family, apart)
    found["protocol"] |= {
        "samples": {"guidance": guidance, "seed": run.SEED, "conditions_of": shown.part.fingerprint},
        "likelihood": None if apart is None else {"held_out": apart.fingerprint, "limit": LIMIT},
    }
    return found, lambda path: report(path, found, title=str(asked.target), images=samples, reference=against)


def _model(
    asked: Asked, model: LatentDiffusion, recipe: dict[str, Any] | None, look: Looking, tell: Tell
) -> tuple[dict[str, Any], Show]:
    channels = model.codec.image_channels
    _generates(asked, look)
    data = _data(asked, recipe, model.size, channels, classes(model))
    if not run.matches(model, data):
        _heeds(asked, "captions are matched of models of words, and on emoji", "captions")
        if look.network is None and look.clip is None:
            _heeds(asked, "nothing is sampled without --features or --clip", *SAMPLING)
    side = _side(asked, model.size)
    reference = real(asked.reference, side, channels, asked.each) if asked.reference is not None else None
    found = run.evaluate_model(
        model,
        data,
        captions=CAPTIONS if asked.captions is None else asked.captions,
        steps=asked.steps,
        guidance=asked.guidance,
        sampler=asked.sampler,
        grid=asked.grid,
        dtype=asked.dtype or torch.float32,
        images=asked.count,
        look=look,
        reference=reference,
        tell=tell,
        each=asked.each,
    )

    def show(path: Path) -> Path:
        if "extremes" not in found:
            return report(path, found, title=str(asked.target))
        request = run.requested(model, asked.steps, asked.guidance, asked.sampler, asked.grid)
        shown = run.trained(data, asked.each, model)
        samples = Sampled(
            copy.deepcopy(model).for_sampling(asked.dtype or torch.float32), request, asked.count, shown.part
        )
        whole = PartPictures(data.open("train"), run.titled(data))
        return report(path, found, title=str(asked.target), images=samples, reference=reference or shown, train=whole)

    return found, show
