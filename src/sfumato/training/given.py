"""What a training is given: the model folder that it builds on, pictures held out, latents."""

import copy
import shlex
from pathlib import Path

from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Data, Part
from sfumato.data.buckets import Steps, alike
from sfumato.data.picked import Picked
from sfumato.model import LatentDiffusion
from sfumato.training.latents import Latents, Shaped, encode
from sfumato.training.recipe import load_yaml, shipped
from sfumato.training.settings import TrainingConfig


def there(folder: Path, data: Data) -> Path:
    """The model folder that a training builds on. Raises `ValueError` with what to train first where it is not there."""
    if folder.exists():
        return folder
    name, told = folder.parent.name if folder.name == "model" else "", "train it first"
    if name in shipped():
        its, path = load_yaml(name)["data"], getattr(data, "path", None)
        kind = data.kind_name()
        other = f" data.kind={kind}" if path and kind != its.get("kind") else ""
        own = f"{other} {shlex.quote(f'data.path={path}')}" if path and ("path" in its or other) else ""
        aside = getattr(data, "held_out", None) if own else None  # what one stage holds out the other may not be shown
        if aside is not None and aside != its.get("held_out", type(data).model_fields["held_out"].default):
            own += f" data.held_out={aside!r}"
        told += f" with `sfumato train {name}{own}`"
    raise ValueError(f"there is no model folder {folder}; {told}, or name another in its place")


def held_out(data: Data, needed: bool = False) -> Part | None:
    """What is held out, for runs and evaluations to show; None where nothing is, unless it is `needed`. Raises then."""
    try:
        return data.open("held_out")
    except ValueError:
        if needed:
            raise
        return None


def cached(codec: Codec, part: Part, folder: Path, flip: bool) -> Latents | Shaped:
    """The latent cache of a part, one folder a pair of fingerprints and a shape, encoded where it is not there yet."""
    if part.shapes is not None:
        rows = alike(part.shapes)
        return Shaped([(some, one(codec, Picked(part, some), folder, flip)) for some in rows.values()], len(part))
    return one(codec, part, folder, flip)


def one(codec: Codec, part: Part, folder: Path, flip: bool) -> Latents:
    """The latent cache of a part whose pictures are of one shape."""
    name = f"{part.fingerprint[:12]}-{codec.fingerprint()[:12]}{'-flip' if flip else ''}"
    return encode(codec, part, folder / name, flip=flip)


def in_steps(part: Part, model: LatentDiffusion, training: TrainingConfig) -> Part:
    """The part as a training shows it: itself where all its pictures are squares, else with steps of one shape each.

    Raises `ValueError` where the first stage's factor does not divide a shape.
    """
    if part.shapes is None:
        return part
    try:
        for high, wide in sorted(set(part.shapes)):
            model.latent_shape(wide, high)
    except ValueError as error:
        raise ValueError(f"{error}: give a data.buckets.step that is a multiple of {model.codec.factor}") from None
    shown = copy.copy(part)
    shown.steps = Steps([part.shapes[family[0]] for family in part.families], training.batch)
    return shown


def only_squares(data: Data, what: str) -> None:
    """Raise `ValueError` where the data show pictures in shapes of their own."""
    if data.squares() is not data:
        raise ValueError(
            f"{what} learns from squares: leave data.buckets out (data.crops shows several of each picture)"
        )
