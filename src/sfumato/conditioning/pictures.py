"""Pictures, masks and class maps as users give them, read for the conditioners that lay them beside the latent."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sfumato import image


def picture(value: Any, channels: int, field: str) -> Tensor:
    """A PIL picture, a uint8 array (H, W[, C]) or a tensor (C, H, W), uint8 or in [-1, 1] -> (C, H, W) in [-1, 1].

    PIL pictures are turned and coloured as a person sees them, over white where they are transparent. Raises
    `ValueError` for another thing, another number of channels, or values out of range.
    """
    if isinstance(value, Image.Image):
        if 0 in value.size:
            raise ValueError(f"{field} is {value.width}x{value.height}: there is nothing in it; give another")
        whole = image.loaded(value, field)
        found = image.to_tensor(image.values(whole, channels if channels in image.MODES else 3, field))
    elif isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3):
        found = image.to_tensor(value)
    elif isinstance(value, Tensor) and value.ndim == 3:
        found = value.float() / 127.5 - 1.0 if value.dtype == torch.uint8 else value.float()
    else:
        shape = getattr(value, "shape", None)
        told = (
            repr(value)[:40]
            if shape is None
            else f"{type(value).__name__} {getattr(value, 'dtype', '')} {tuple(shape)}"
        )
        raise ValueError(
            f"{field} is a picture: PIL, a uint8 array (H, W, C), or a tensor (C, H, W) in [-1, 1]; got {told}"
        )
    if found.shape[0] != channels:
        raise ValueError(f"{field} has {found.shape[0]} channels, this model reads pictures of {channels}; convert it")
    if not bool((found.abs() <= 1.01).all()):  # false for NaN too
        raise ValueError(f"{field} has values from {found.min():g} to {found.max():g}; a picture's lie in [-1, 1]")
    return found


def mask(value: Any, field: str) -> Tensor:
    """A PIL mask, an array or a tensor (H, W) or (1, H, W), bool, uint8, uint16 or in [0, 1] -> (1, H, W) in [0, 1].

    Raises `ValueError` for another thing or values out of range.
    """
    if isinstance(value, Image.Image) and value.mode == "F":
        raise ValueError(f"the mask of {field} is a picture of floats: save it gray, or give an array of 0 to 1")
    if isinstance(value, Image.Image):
        value = image.loaded(value, f"the mask of {field}")
        value = image.deep(value) / 65535 if value.mode in image.DEEP else np.array(value.convert("L"))
    if isinstance(value, np.ndarray) and value.dtype == np.uint16:
        value = value.astype(np.float32) / 65535
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Tensor) or value.ndim not in (2, 3) or (value.ndim == 3 and value.shape[0] != 1):
        raise ValueError(f"the mask of {field} is a picture of one channel or a tensor (H, W); got {_told(value)}")
    found = value.float() / 255.0 if value.dtype == torch.uint8 else value.float()
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise ValueError(f"the mask of {field} has values from {found.min():g} to {found.max():g}; give 0 to 1")
    return found if found.ndim == 3 else found[None]


def classes(value: Any, field: str) -> Tensor:
    """A map of class numbers: PIL with a palette or gray, an integer array or tensor (H, W) -> (H, W) int64.

    Raises `ValueError` for another thing: colours are not numbers of classes.
    """
    if isinstance(value, Image.Image):
        if value.mode not in ("P", "L", "1", *image.DEEP):
            raise ValueError(
                f"{field} is a picture of mode {value.mode}; a class map holds a class number a pixel: save it gray or "
                "with a palette"
            )
        value = np.array(image.loaded(value, field))
    if isinstance(value, np.ndarray) and value.dtype.kind in "uib":
        value = torch.from_numpy(value.astype(np.int64))
    if not isinstance(value, Tensor) or value.ndim != 2 or value.is_floating_point() or value.is_complex():
        raise ValueError(f"{field} is a map (H, W) of whole class numbers; got {_told(value)}")
    return value.long()


def _told(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value)[:40] if shape is None else f"{type(value).__name__} {value.dtype} {tuple(shape)}"


def fits(found: Tensor, size: tuple[int, int], field: str, within: float = 1.0) -> Tensor:
    """The (..., H, W), whose sides are as those of `size`, to so much of it: the latent's grid, or a picture. Raises
    `ValueError`."""
    (high, wide), (h, w) = found.shape[-2:], size
    if abs(high * w / wide - h) > within and abs(wide * h / high - w) > within:
        raise ValueError(
            f"{field} is {wide}x{high}, and the picture to be made has sides as {w} to {h}; crop it to that shape"
        )
    return found


def resized(several: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Pictures (C, H, W) of any sizes -> (B, C, *size), bicubic and antialiased where they get smaller."""
    rows = [
        p[None]
        if p.shape[-2:] == size
        else F.interpolate(p[None], size, mode="bicubic", antialias=True, align_corners=False)
        for p in several
    ]
    return torch.cat(rows)
