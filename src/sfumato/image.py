"""Pictures in and out: PIL and uint8 <-> (B, C, H, W) float32 in [-1, 1].

Pictures deeper than 8 bits, and those of other than 1, 3 or 4 channels, are beyond PIL's modes. They are arrays in 8-bit
units here too, but float32, so that 16 bits keep their fractions and everything after treats them alike.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from sfumato.shape import Pixels

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GRAYS = ("L", "LA", "La")
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # gray of 16 bits
NPY = b"\x93NUMPY"  # how such a file begins
ROUNDING = 2  # levels of 255 by which a way to sRGB and back may be off
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what opening a file may raise
LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as in PIL


class Stored(NamedTuple):
    """The content of a picture file that lies in a larger one, such as a row of a table."""

    content: bytes
    name: str  # what errors call it

    def __str__(self) -> str:
        return self.name


def to_tensor(picture: "Image.Image | np.ndarray[Any, Any]") -> Tensor:
    """A picture, or an array (H, W) or (H, W, C) of uint8 -> (C, H, W) float32 in [-1, 1]."""
    array = np.array(picture)
    if array.ndim == 2:
        array = array[:, :, None]
    return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1.0


def given(picture: Tensor) -> Tensor:
    """A picture of a data set, uint8 or float32 in [0, 255] -> as conditions are given: uint8, or float32 in [-1, 1]."""
    return picture if picture.dtype == torch.uint8 else picture / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8, rounded to the nearest value and clamped; any shape."""
    return ((images.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1] -> B pictures; 1 channel is gray, 3 are RGB, 4 RGBA; of others the first 1 or 3 are shown."""
    shown = images if images.shape[1] in MODES else images[:, : 1 if images.shape[1] == 2 else 3]
    arrays = to_uint8(shown).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a[:, :, 0] if a.shape[2] == 1 else a) for a in arrays]


def sheet(images: Tensor, columns: int = 8, gap: int = 2) -> Image.Image:
    """(B, C, H, W) in [-1, 1] -> one picture, row by row, `gap` white pixels between them."""
    pictures = [over_white(p).convert("RGB") for p in to_pil(images)]
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
    with _opened(path, least) as picture:
        return upright(picture)


def pixels(path: Path | Stored, channels: int = 3, least: int | None = None) -> Pixels:
    """A picture file, or a `.npy` array, as (H, W, channels): uint8, or float32 in [0, 255] where it is deeper than 8 bits.

    Transparency is kept in 4 channels and seen over white in 1 or 3; gray becomes colour and colour gray. An array is
    (H, W) or (H, W, C) of uint8, of uint16 or of floats in [0, 1]. The file lies at a path, or its content is given.
    `least` and faults as in `read`; a number of channels that does not fit is a `ValueError` too.
    """
    if arrayed(path):
        return fitting(_array(path), channels, path)
    if channels not in MODES:
        raise ValueError(f"{path} is a picture of 1, 3 or 4 channels and {channels} are asked for; use .npy arrays")
    with _opened(path, least) as picture:
        return values(picture, channels, path)


def values(picture: Image.Image, channels: int, name: Path | Stored | str) -> Pixels:
    """An opened picture as `pixels` of 1, 3 or 4 channels; `name` is what errors call it."""
    if picture.mode in DEEP:
        turned = ImageOps.exif_transpose(picture)
        array, clear = fitting(deep(turned)[:, :, None] / 257, channels, name), _cleared(turned)
        if clear is not None:
            array[..., 3 if channels == 4 else slice(None)][clear] = 0 if channels == 4 else 255
        return array
    whole = coloured(picture)
    array = np.array((whole if channels == 4 else over_white(whole)).convert(MODES[channels]))
    return array[:, :, None] if channels == 1 else array


def transparent(picture: Image.Image) -> bool:
    """Whether anything of an opened picture can be seen through; one with an alpha channel may be opaque all over."""
    if picture.mode in DEEP:
        clear = _cleared(picture)
        return clear is not None and bool(clear.any())
    if picture.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in picture.info:
        return False
    return bool((np.asarray(picture.convert("RGBA"))[..., 3] < 255).any())


def arrayed(path: Path | Stored) -> bool:
    """Whether it is a `.npy` array rather than a picture file."""
    return path.content.startswith(NPY) if isinstance(path, Stored) else path.suffix.lower() == ".npy"


def sides(path: Path) -> tuple[int, int]:
    """(width, height) of a picture file as a person sees it, or of a `.npy` array, without decoding it. Raises `ValueError`."""
    try:
        if path.suffix.lower() == ".npy":
            high, wide = np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
            return wide, high
        with Image.open(path) as opened:
            if opened.format == "PNG" and not _late(path):
                told = Image.Image.getexif(
                    opened
                )  # Pillow's own of PNG decodes the picture, for what may stand behind it
            else:
                told = opened.getexif()
            turned = told.get(0x0112, 1) >= 5 and opened.format != "TIFF"  # whose sides Pillow turns itself
            return (opened.height, opened.width) if turned else (opened.width, opened.height)
    except Exception as error:  # of damaged files anything, as in `_opened`
        what = "an array" if path.suffix.lower() == ".npy" else "a picture"
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as {what} ({reason}); replace or remove it") from None


def _late(path: Path) -> bool:
    """Whether a PNG file says something of itself behind its pixels."""
    with path.open("rb") as file:
        file.seek(8)
        pixels = False
        while len(head := file.read(8)) == 8:
            kind = head[4:]
            if pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            pixels = pixels or kind == b"IDAT"
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return False


def numbered(picture: Image.Image, palette: Sequence[tuple[int, int, int]], name: str, knows: str) -> Pixels:
    """The class numbers (H, W) of a map: whole numbers, those that it holds, or the places of its colours in `palette`.

    A picture that has a palette of its own is read by its colours where classes have all that it uses, for programs put
    palettes in another order; where they have most of several, the others are a fault; else, and where it is gray, it holds
    numbers. Raises `ValueError` for colours that no class
    has, and for floats; `name` is what it calls the map, and `knows` what tells the classes' colours.
    """
    if picture.mode == "F":
        raise ValueError(
            f"{name} holds floats and a map whole class numbers: save it gray, of 8 bits, or with a palette"
        )
    if picture.mode == "P":
        held = np.asarray(picture)
        used = np.flatnonzero(np.bincount(held.ravel(), minlength=256))
        own = np.zeros((256, 3), np.uint8)
        told = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        own[: len(told)] = told
        places = _places(own, palette)
        if not palette or used.max() >= len(told):
            return held
        known = places[used] >= 0
        own_numbers = (places[used] == used)[known].all()  # as data sets order their palettes
        if 2 <= known.sum() < len(used) and 2 * known.sum() > len(used) and not own_numbers:
            raise _strange(name, own[used[~known]], palette, knows)
        return places[held] if known.all() else held
    if picture.mode in ("L", "1", *DEEP):
        return np.asarray(picture)
    if not palette:
        raise ValueError(f"{name} is a map in colour: give its classes' colours as `palette` in {knows}")
    colours = np.asarray(picture.convert("RGB"))
    places = _places(colours, palette)
    if (places < 0).any():
        raise _strange(name, colours[places < 0], palette, knows)
    return places


def _strange(name: str, colours: Pixels, palette: Sequence[tuple[int, int, int]], knows: str) -> ValueError:
    """The error that names colours of no class, those of classes, and what smears them."""
    found = np.unique(colours.reshape(-1, 3), axis=0)
    several, known = ([tuple(c) for c in list(some)[:4]] for some in (found.tolist(), palette))
    more = f" and {len(found) - 4:,} more" if len(found) > 4 else ""
    rest = f" and {len(palette) - 4} more" if len(palette) > 4 else ""
    return ValueError(
        f"{name} has colours {several}{more} that {knows} does not know, which has {known}{rest}; use these alone, without "
        "soft edges, and save it as PNG, for a JPEG smears them"
    )


def _places(colours: Pixels, palette: Sequence[tuple[int, int, int]]) -> Pixels:
    """The first place in a palette of each colour (..., 3) uint8, -1 where there is none; int64 (...)."""
    known, first = np.unique(_coded(np.array(palette, np.int32).reshape(-1, 3)), return_index=True)
    codes = _coded(colours.astype(np.int32))
    if not len(known):
        return np.full(codes.shape, -1)
    near = np.searchsorted(known, codes).clip(max=len(known) - 1)
    return np.where(known[near] == codes, first[near], -1)


def _coded(colours: Pixels) -> Pixels:
    """Colours (..., 3) as single numbers (...)."""
    coded: Pixels = colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]
    return coded


def _array(path: Path | Stored) -> Pixels:
    """A stored array (H, W, C), uint8 or float32 in [0, 255]."""
    try:
        array: Pixels = np.load(_file(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an array ({error}); replace or remove it") from None
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{path} has shape {array.shape}; a picture is (H, W) or (H, W, C)")
    array = array[:, :, None] if array.ndim == 2 else array
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return array.astype(np.float32) / 257
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"{path} holds {array.dtype} values; save uint8, uint16, or floats in [0, 1]")
    return array.astype(np.float32) * 255


def fitting(array: Pixels, channels: int, path: Path | Stored | str) -> Pixels:
    """(H, W, C) with another number of channels. Raises `ValueError` where that has no meaning."""
    have = array.shape[2]
    if have == channels:
        return array
    if have not in MODES or channels not in MODES:
        raise ValueError(f"{path} has {have} channels and {channels} are asked for; ask for {have}")
    if have == 4:
        part = array[:, :, 3:].astype(np.float32) / 255
        over = array[:, :, :3] * part + 255 * (1 - part)
        array, have = (over + 0.5).astype(np.uint8) if array.dtype == np.uint8 else over, 3
    if have == 1 and channels > 1:
        array, have = array.repeat(3, axis=2), 3
    if have == channels:
        return array
    if channels == 1:
        gray = array.astype(np.float32) @ np.array(LUMA, np.float32)[:, None]
        return (gray + 0.5).astype(np.uint8) if array.dtype == np.uint8 else gray
    return np.concatenate([array, np.full_like(array[:, :, :1], 255)], axis=2)


def _file(source: Path | Stored) -> Path | io.BytesIO:
    return io.BytesIO(source.content) if isinstance(source, Stored) else source


@contextmanager
def _opened(path: Path | Stored, least: int | None) -> Iterator[Image.Image]:
    """The decoded picture. Raises `ValueError` where it cannot be, there or in what is done with it."""
    try:
        with Image.open(_file(path)) as opened:
            if least is not None:
                opened.draft(None, (least, least))
            opened.load()
            yield opened
    except Exception as error:  # decoders of damaged files raise anything: OSError, SyntaxError, struct.error, KeyError
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as a picture ({reason}); replace or remove it") from None


def loaded(picture: Image.Image, name: str) -> Image.Image:
    """An opened picture, decoded. Raises `ValueError`, which calls it by its file or else by `name`, where it is cut short."""
    try:
        picture.load()
    except Exception as error:  # decoders of damaged files raise anything, as in `_opened`
        told = str(getattr(picture, "filename", "") or name)
        raise ValueError(
            f"{told} cannot be read as a picture ({str(error) or type(error).__name__}); replace it"
        ) from None
    return picture


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says, in sRGB, over white where it is transparent; mode RGB."""
    return over_white(coloured(picture)).convert("RGB")


def deep(picture: Image.Image) -> Pixels:
    """The values of a gray picture of 16 bits, (H, W) float32 in [0, 65535]. Raises `ValueError` for values beyond."""
    array = np.asarray(picture)
    if array.min() < 0 or array.max() > 65535:
        raise ValueError(f"values go from {array.min()} to {array.max()}, 16 bits hold 0 to 65535: save it as .npy")
    return array.astype(np.float32)


def _cleared(picture: Image.Image) -> Pixels | None:
    """Where (H, W) a gray picture of 16 bits is transparent: a PNG names one value for it. None where nowhere."""
    value = picture.info.get("transparency")
    return np.asarray(picture) == value if isinstance(value, int) else None


def coloured(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says, in sRGB; mode RGBA where it can be transparent.

    Raises `ValueError` for one of floats: it does not say which value is white.
    """
    profile = None if picture.mode in DEEP else picture.info.get("icc_profile")  # as in `pixels`; `show` tells
    turned = ImageOps.exif_transpose(picture)
    if turned.mode == "F":
        raise ValueError("a picture of floats does not say which value is white: save it as .npy, floats in [0, 1]")
    if turned.mode in DEEP:
        clear = _cleared(turned)
        turned = Image.fromarray((deep(turned) / 257.0 + 0.5).astype(np.uint8))
        if clear is not None:
            turned.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    gray = turned.mode in GRAYS
    if turned.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in turned.info:
        turned = turned.convert("RGBA")
    if profile and turned.mode in ("RGB", "RGBA", "L", "CMYK"):
        turned = _to_srgb(turned, profile, gray)
    return turned


def over_white(picture: Image.Image) -> Image.Image:
    """The picture, over white where it is transparent."""
    if picture.mode != "RGBA":
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


@lru_cache(maxsize=64)
def recoloured(profile: bytes, mode: str) -> bool:
    """Whether a colour profile means other colours than sRGB's for pictures of this mode, by more than rounding."""
    if mode not in (*GRAYS, "CMYK"):
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        probe = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3))
    else:
        probe = Image.linear_gradient("L").convert("CMYK" if mode == "CMYK" else "L")
    off = np.asarray(_to_srgb(probe, profile).convert("RGB")).astype(int) - np.asarray(probe.convert("RGB"))
    return int(np.abs(off).max()) > ROUNDING


def _to_srgb(picture: Image.Image, profile: bytes, gray: bool = False) -> Image.Image:
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    plain = picture if alpha is None else picture.convert("L" if gray else "RGB")  # as the profile has it
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        changed = ImageCms.profileToProfile(plain, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a profile that does not fit its picture: browsers ignore it too
        return picture
    assert changed is not None
    if alpha is not None:
        changed.putalpha(alpha)
    return changed
