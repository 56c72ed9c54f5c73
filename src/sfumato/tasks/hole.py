"""Masks as programs write them: where the hole is, and which way of saying it was found.

Editors save strokes on an empty layer, phones a photograph with a part erased, scripts arrays of 0 and 1, data sets
palettes, the web JPEGs. None says which it is.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato import image
from sfumato.conditioning import pictures

FRINGE = 16 / 255  # how near to black and white lossy files leave what was so, beside a hard edge
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")
GRAY = 24  # of 255, by which channels differ where lossy files hold gray
MARKED = 63  # of 255: a colour whose largest channel is above it is no black
FRINGED = "a lossy file: what is nearly black or nearly white is taken to be so"
SHADED = 0.2  # of what is opaque in a photograph in gray, at the least, is neither nearly black nor nearly white
FEW = 8  # colours, in steps of `STEP`, that strokes on a layer have at most
STEP = 8  # of 255: brushes, resizes and lossy files shift a colour a little
OPAQUE = "strokes on an empty layer: where it is opaque is the hole"
ERASED = "a picture with transparent parts: these are the hole"
OVER = "transparent, seen over black"
IN_COLOUR = "in colour: what is not black is the hole"
ONES = "of 0 and 1: 1 is the hole"
DARK = 8  # of 255, at which nobody sees the hole of a mask
DARKEST = (
    "nowhere lighter than {} of 255, as numbers of classes are, so that next to nothing is filled: white is the hole"
)


def hole(shown: Image.Image, lossy: bool) -> tuple[Tensor, list[str]]:
    """An opened mask -> (1, H, W) in [0, 1], 1 in the hole, and in words how it was read where that is not plain.

    With transparent parts: strokes of one colour, or of a few that are not gray, are the hole; of a picture in many colours,
    or shades of gray, what is transparent is; another gray one is seen over black. In colour without them, what is not
    black is the hole. Numbers of 0 and 1 alone are a hole of 1. In a `lossy` file what is nearly black is black, and nearly
    white white.
    """
    said: list[str] = []
    clear = np.asarray(shown.convert("RGBA"))[..., 3] if _transparent(shown) else None
    if clear is not None and (clear < 255).any():
        shown, words = _layered(shown.convert("RGBA"), clear)
        said.append(words)
    elif shown.mode not in (*image.DEEP, "F", "L", "1") and _colours(np.asarray(shown.convert("RGB"))):
        colours = np.asarray(shown.convert("RGB")).max(2)
        shown = Image.fromarray(np.where(colours > MARKED, 255, 0).astype(np.uint8))
        said.append(IN_COLOUR)
    elif shown.mode not in (*image.DEEP, "F"):  # which `convert` would cut at 255
        shown = shown.convert("L")
    found, words = counted(pictures.mask(shown, "the picture"), shown.mode in image.DEEP)
    said += [words] if words else []
    if lossy:
        found = torch.where(found < FRINGE, 0.0, torch.where(found > 1 - FRINGE, 1.0, found))
        said.append(FRINGED)
    return found, said


def _transparent(shown: Image.Image) -> bool:
    return shown.mode in ("RGBA", "LA", "PA") or "transparency" in shown.info


def _layered(shown: Image.Image, clear: Any) -> tuple[Image.Image, str]:
    """A mask with transparent parts as a gray one, and what it was taken for."""
    seen = np.asarray(shown)[..., :3][clear == 255]  # soft edges have lost their colour
    several = len(np.unique(seen // STEP, axis=0))
    if several <= 1 or (several <= FEW and _colours(seen)):
        return Image.fromarray(clear), OPAQUE
    grays = ((seen > MARKED) & (seen < 255 - MARKED)).mean()  # of which a mask has few, but at its edges
    if _colours(seen) or (several > FEW and grays > SHADED):
        return Image.fromarray(255 - clear), ERASED
    return Image.alpha_composite(Image.new("RGBA", shown.size, "black"), shown).convert("L"), OVER


def _colours(values: Any) -> bool:
    """Whether some of these colours (..., 3) uint8 are not gray."""
    return bool((values.max(-1).astype(int) - values.min(-1) > GRAY).any())


def counted(found: Tensor, deep: bool) -> tuple[Tensor, str]:
    """A mask in [0, 1] whose numbers were of a smaller range than their file's, 8 bits kept in 16, or 0 and 1, and what is to
    be told of it: also that it fills next to nothing, being hardly above 0."""
    whole = 65535 if deep else 255
    most = round(float(found.max()) * whole)
    if most == 1:
        return found * whole, ONES
    if deep and 1 < most <= 255:
        return found * (whole / 255), ""
    return found, DARKEST.format(most) if not deep and 1 < most <= DARK else ""
