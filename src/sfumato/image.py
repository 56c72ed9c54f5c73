"""Pictures in and out: PIL and uint8 <-> (B, C, H, W) float32 in [-1, 1]."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor


def to_tensor(picture: "Image.Image | np.ndarray[Any, Any]") -> Tensor:
    """A picture, or an array (H, W) or (H, W, C) of uint8 -> (C, H, W) float32 in [-1, 1]."""
    array = np.array(picture)
    if array.ndim == 2:
        array = array[:, :, None]
    return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8, rounded to the nearest value and clamped; any shape."""
    return ((images.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1] -> B pictures; 1 channel is gray, 3 are RGB, 4 RGBA."""
    arrays = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a[:, :, 0] if a.shape[2] == 1 else a) for a in arrays]


def sheet(images: Tensor, columns: int = 8, gap: int = 2) -> Image.Image:
    """(B, C, H, W) in [-1, 1] -> one picture, row by row, `gap` white pixels between them."""
    pictures = [p.convert("RGB") for p in to_pil(images)]
    columns = max(min(columns, len(pictures)), 1)
    width, height = images.shape[3] + gap, images.shape[2] + gap
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for k, picture in enumerate(pictures):
        whole.paste(picture, (k % columns * width, k // columns * height))
    return whole


def read(path: Path, least: int | None = None) -> Image.Image:
    """A picture as a person sees it: turned as its EXIF says, its colours in sRGB, transparency over white; RGB.

    With `least` a JPEG may come out at a half, a quarter or an eighth of its size, its sides no shorter than that:
    several times faster where it is made small anyway. Raises `ValueError` where the file is missing, no picture, or
    cut short.
    """
    try:
        with Image.open(path) as opened:
            if least is not None:
                opened.draft(None, (least, least))
            opened.load()
            return upright(opened)
    except Exception as error:  # decoders of damaged files raise anything: OSError, SyntaxError, struct.error, KeyError
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as a picture ({reason}); replace or remove it") from None


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says, in sRGB, over white where it is transparent; mode RGB."""
    profile = picture.info.get("icc_profile")
    turned = ImageOps.exif_transpose(picture)
    if turned.mode in ("I;16", "I;16B", "I"):  # 16-bit gray
        turned = Image.fromarray((np.asarray(turned).astype(np.float64) / 257.0 + 0.5).clip(0, 255).astype(np.uint8))
    if turned.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in turned.info:
        turned = turned.convert("RGBA")
    if profile and turned.mode in ("RGB", "RGBA", "L", "CMYK"):
        turned = _to_srgb(turned, profile)
    if turned.mode == "RGBA":
        white = Image.new("RGBA", turned.size, "white")
        turned = Image.alpha_composite(white, turned)
    return turned.convert("RGB")


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    plain = picture.convert("RGB") if alpha is not None else picture
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        changed = ImageCms.profileToProfile(plain, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a profile that does not fit its picture: browsers ignore it too
        return picture
    assert changed is not None
    if alpha is not None:
        changed.putalpha(alpha)
    return changed


def fitted(picture: Image.Image, size: int) -> Image.Image:
    """The largest centred square, resized to `size` with antialiasing."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=box)
