"""What users hand in: pictures, masks and maps of any kind, as tensors that a model reads."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from sfumato import image
from sfumato.conditioning import pictures
from sfumato.data import contact
from sfumato.model import LatentDiffusion
from sfumato.tasks.hole import LOSSY, hole
from sfumato.tasks.requests import Request

READ = ("picture", "reference")  # fields whose pictures are read as a person sees them


def converted(request: Request, channels: int) -> list[tuple[str, str]]:
    """What is done to each picture that was handed in before a model of so many channels sees it, after its path or, where
    it is a PIL picture without one, its field."""
    found = []
    for field in (*READ, "mask", "map"):
        value = getattr(request, field, None)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            done = _changes(one)
            if done is None:  # the task says so, or reads it all the same
                continue
            said = [*contact.noticed(dict.fromkeys(done, 1), field if field in READ else "map", channels)]
            if field == "picture":  # references are cut, as training's pictures are
                said = [name for name in said if name != contact.SQUARE]
            if field == "mask":
                said = [name for name in said if name != contact.UNSEEN] + _read_as(one)
            if said:
                path = one if isinstance(one, Path) else getattr(one, "filename", "")
                found.append((str(path or f"the {field}"), ", ".join(said)))
    return found


def _changes(value: Any) -> list[str] | None:
    """What is done to a picture, of a path or PIL's, by its content; None for an array or what cannot be opened."""
    try:
        if not isinstance(value, Path):
            return _done(value)
        if image.arrayed(value):
            return None
        with Image.open(value) as file:
            return _done(file)
    except Exception:  # decoders of damaged files raise anything, as in `image.pixels`
        return None


def _done(value: Image.Image) -> list[str]:
    """What is done to an opened picture; as transparent counts what something can be seen through."""
    done = contact.changes(value)
    return done if contact.CLEAR not in done or image.transparent(value) else [n for n in done if n != contact.CLEAR]


def _read_as(value: Any) -> list[str]:
    """How a mask says where its hole is, where that is not plain; nothing where it cannot be read, which the task says."""
    try:
        return hole(opened(value, "mask"), lossy(value))[1]
    except ValueError:
        return []


def picture(model: LatentDiffusion, value: Any, field: str = "picture") -> Tensor:
    """A path or a PIL picture -> (C, H, W) in [-1, 1], as a person sees it: turned, in sRGB, over white.

    Of an animation it is the first frame; 16 bits are kept where the model reads gray. Raises `ValueError`.
    """
    channels = model.codec.image_channels
    if isinstance(value, Path):
        array = torch.from_numpy(np.ascontiguousarray(image.pixels(value, channels)))
        return array.permute(2, 0, 1).float() / 127.5 - 1.0
    return pictures.picture(value, channels, field)


def opened(value: Any, field: str) -> Image.Image:
    """A path or a PIL picture as a PIL picture in its own mode, turned as its EXIF says. Raises `ValueError` for no picture."""
    if not isinstance(value, Path):
        found: Image.Image = ImageOps.exif_transpose(image.loaded(value, f"the {field}"))
        return found
    try:
        with Image.open(value) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    except Exception as error:  # decoders of damaged files raise anything, as in `image.pixels`
        raise ValueError(f"{value} cannot be read as a {field} ({error}); replace it") from None


def mask(value: Any, size: tuple[int, int]) -> Tensor:
    """A path or a PIL picture -> (1, H, W) in [0, 1], 1 where there is a hole, however it says so (`hole`).

    Raises `ValueError` unless it is `size` (H, W).
    """
    found, _ = hole(opened(value, "mask"), lossy(value))
    if tuple(found.shape[-2:]) != size:
        raise ValueError(
            f"the mask is {found.shape[-1]}x{found.shape[-2]} and the picture {size[1]}x{size[0]}; make them equal"
        )
    return found


def lossy(value: Any) -> bool:
    """Whether a path or an opened picture is of a format that leaves a fringe around edges."""
    if not isinstance(value, Path):
        return getattr(value, "format", None) in LOSSY
    try:
        with Image.open(value) as file, value.open("rb") as raw:
            return file.format in LOSSY and not (file.format == "WEBP" and b"VP8L" in raw.read(4096))  # a lossless one
    except Exception:  # `opened` says what is wrong
        return False


def whole(x: Tensor, multiple: int) -> Tensor:
    """x (..., H, W), continued at its right and lower edge until its sides are multiples, as in `larger`."""
    high, wide = x.shape[-2:]
    return larger(x, high + -high % multiple, wide + -wide % multiple)


def larger(x: Tensor, high: int, wide: int) -> Tensor:
    """x (..., H, W), continued at its right and lower edge to this size: reflected, as far as there is something to
    reflect."""
    down, right = high - x.shape[-2], wide - x.shape[-1]
    if not down and not right:
        return x
    mode = "reflect" if down < x.shape[-2] and right < x.shape[-1] else "replicate"
    flat = x.reshape(-1, 1, *x.shape[-2:]).double()  # which holds class numbers too
    return F.pad(flat, (0, right, 0, down), mode=mode).reshape(*x.shape[:-2], high, wide).to(x.dtype)
