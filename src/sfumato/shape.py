"""The shape in which a picture is shown: the largest part of its middle in some proportions, resized."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Pixels = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, int]  # (height, width)
SQUARE: Shape = (1, 1)


def centre(width: int, height: int, shape: Shape = SQUARE) -> tuple[int, int, int, int]:
    """The largest part of a picture in these proportions (height, width), in its middle: left, upper edge, width, height."""
    scale = min(width / shape[1], height / shape[0])
    across, down = max(min(round(scale * shape[1]), width), 1), max(min(round(scale * shape[0]), height), 1)
    return (width - across) // 2, (height - down) // 2, across, down


def fitted(picture: Image.Image, shape: Shape) -> Image.Image:
    """The largest centred part of these proportions, resized to `shape`, (height, width), with antialiasing."""
    left, top, across, down = centre(*picture.size, shape)
    box = (left, top, left + across, top + down)
    return picture.resize((shape[1], shape[0]), Image.Resampling.LANCZOS, box=box)


def squared(array: Pixels, size: int) -> Tensor:
    """`shaped` as a square."""
    return shaped(array, (size, size))


def shaped(array: Pixels, shape: Shape) -> Tensor:
    """The largest centred part of (H, W, C) of these proportions, resized as by `fitted`: (C, *shape) uint8, or float32 in
    [0, 255]."""
    left, top, across, down = centre(array.shape[1], array.shape[0], shape)
    if (down, across) == shape:
        cut = array[top : top + down, left : left + across].transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(cut))
    if array.dtype == np.uint8 and array.shape[2] in (1, 3):
        picture = fitted(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array), shape)
        small = np.array(picture).reshape(*shape, -1)
        return torch.from_numpy(small).permute(2, 0, 1)
    part = array[:, :, 3:].astype(np.float32) / 255 if array.shape[2] == 4 else None
    if part is not None:  # colours count as far as they are seen
        array = np.concatenate([array[:, :, :3] * part, array[:, :, 3:]], axis=2)
    planes = [np.ascontiguousarray(array[:, :, k], np.float32) for k in range(array.shape[2])]
    small = np.stack([np.asarray(fitted(Image.fromarray(plane), shape)) for plane in planes])
    if part is not None:
        small[:3] /= (small[3:] / 255).clip(1 / 65535)
    small = small.clip(0, 255)
    return torch.from_numpy((small + 0.5).astype(np.uint8) if array.dtype == np.uint8 else small)
