"""How much of a picture survives the first stage: picture by picture, and what is worst.

PSNR, SSIM and MS-SSIM after rounding to 8 bits, a perceptual distance by any function of two batches, under the name
that its maker gives it. Means hide failures, so every picture keeps its row; `worst` puts those to look at first.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato import distributed, image
from sfumato.autoencoder.codec import Codec, together
from sfumato.data.base import Part
from sfumato.evaluation.source import PartPictures, Rebuilt, Source, batches, equal

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales of MS-SSIM, Wang et al. (2003)
KERNEL, SPREAD = 11, 1.5  # pixels a side of SSIM's window, and the Gaussian's in it
STEADY = (0.01**2, 0.03**2)  # what keeps SSIM's quotients finite, of values in [0, 1]


class Perceptual(NamedTuple):
    """A distance of two batches in [-1, 1], (B, C, H, W) twice -> (B,), with its name and what a protocol keeps of it."""

    name: str
    distance: Callable[[Tensor, Tensor], Tensor]
    told: dict[str, Any]


def pictures(part: Part, at_once: int = 64) -> Iterator[tuple[list[int], Tensor]]:
    """Indices and pictures (B, C, H, W) in [-1, 1], batch by batch."""
    for begin in range(0, len(part), at_once):
        indices = list(range(begin, min(begin + at_once, len(part))))
        yield indices, torch.stack([part.image(k) for k in indices]).float() / 127.5 - 1.0


@torch.no_grad()
def rebuilt(codec: Codec, images: Tensor) -> Tensor:
    """Encode (the posterior's mode) and decode, in [-1, 1], on the CPU."""
    return codec.decode(codec.encode(images.to(codec.shift.device))).cpu()


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair, (B,), after rounding both to 8 bits; 100 where they are equal."""
    a, b = image.to_uint8(images).double(), image.to_uint8(others).double()
    error = (a - b).square().flatten(1).mean(1)
    return (10 * torch.log10(255.0**2 / error.clamp(min=255.0**2 * 1e-10))).float()


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) of each pair, (B,), after rounding both to 8 bits; NaN below 11 pixels a side.

    The mean over the windows that lie in the picture, as published: torchmetrics counts windows over mirrored edges too.
    """
    if min(images.shape[2:]) < KERNEL:
        return torch.full((len(images),), float("nan"))
    return _similar(*(image.to_uint8(x).float() / 255.0 for x in (images, others)))[0]


def _similar(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Means over all windows of pictures (B, C, H, W) in [0, 1]: the similarity (B,), and its part of contrast and structure.

    In bands of rows, so that large pictures take no more memory than small ones.
    """
    reach, windows = KERNEL - 1, a.shape[2] - KERNEL + 1
    line = torch.exp(-((torch.arange(KERNEL) - reach / 2) ** 2) / (2 * SPREAD**2)).to(a)
    line = (line / line.sum()).reshape(1, 1, 1, KERNEL)
    rows = max(together(a.shape[3]) // len(a), 1)
    total = torch.zeros(2, len(a), dtype=torch.float64)
    for top in range(0, windows, rows):
        x, y = (p[:, :, top : min(top + rows, windows) + reach] for p in (a, b))
        maps = torch.stack([x, y, x * x, y * y, x * y])
        means = F.conv2d(F.conv2d(maps.reshape(-1, 1, *x.shape[2:]), line), line.mT)
        mean_x, mean_y, xx, yy, xy = means.reshape(5, *x.shape[:2], *means.shape[2:])
        both = mean_x * mean_y
        squares = mean_x.square() + mean_y.square()
        contrast = (2 * (xy - both) + STEADY[1]) / (xx + yy - squares + STEADY[1])
        found = torch.stack([contrast * (2 * both + STEADY[0]) / (squares + STEADY[0]), contrast])
        total += found.double().sum((2, 3, 4)).cpu()
    one, other = (total / (a.shape[1] * windows * (a.shape[3] - reach))).float()
    return one, other


def scales(height: int, width: int) -> int:
    """Scales of MS-SSIM that a picture is large enough for: the published 5 from 176 pixels a side, fewer below, or 0."""
    side = min(height, width)
    # (n - 1)^2 is torchmetrics' rule, by which these numbers were made first; it agrees with 2^(n - 1) for 3 and 5 scales
    return max((n for n in range(1, 6) if side // max(2 ** (n - 1), (n - 1) ** 2) >= KERNEL), default=0)


def ms_ssim(images: Tensor, others: Tensor) -> Tensor:
    """Multi-scale SSIM (Wang et al., 2003) of each pair, (B,), after rounding to 8 bits; NaN below 11 pixels a side.

    Pictures too small for the five scales have the first few, their weights scaled to the same sum.
    """
    number = scales(*images.shape[2:])
    if not number:
        return torch.full((len(images),), float("nan"))
    weights = WEIGHTS[:number]
    a, b = (image.to_uint8(x).float() / 255.0 for x in (images, others))
    found = torch.ones(len(a))
    for place, weight in enumerate(weights):
        whole, contrast = _similar(a, b)
        part = whole if place == number - 1 else contrast
        found = found * part.clamp(min=0) ** (weight * sum(WEIGHTS) / sum(weights))
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return found


@torch.no_grad()
def measured(again: Rebuilt, perceptual: Perceptual | None = None) -> list[dict[str, Any]]:
    """A row a picture: `index`, `name`, `psnr`, `ssim`, `ms_ssim`, the perceptual distance under its name."""

    def some(indices: range) -> list[dict[str, Any]]:
        originals = again.source.pictures(indices)
        values = _columns(originals, again.rebuilt(originals), perceptual)
        return [
            {"index": k, "name": again.name(k)}
            | {n: float(v[place]) for n, v in values.items() if not v[place].isnan()}
            for place, k in enumerate(indices)
        ]

    return [row for rows in distributed.spread(some, batches(len(again))) for row in rows]


def _columns(originals: Sequence[Tensor], made: Sequence[Tensor], perceptual: Perceptual | None) -> dict[str, Tensor]:
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim}
    if perceptual is not None:
        functions[perceptual.name] = perceptual.distance
    columns: dict[str, list[Tensor]] = {name: [] for name in functions}
    for some, others in zip(equal(originals), equal(made), strict=True):
        rows = together(some.shape[2] * some.shape[3])  # few large pictures at a time
        for a, b in zip(torch.split(some, rows), torch.split(others, rows), strict=True):
            for name, function in functions.items():
                columns[name].append(function(a, b).detach().float().cpu().reshape(-1))
    return {name: torch.cat(parts) for name, parts in columns.items()}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the pictures' rows, the standard error of the PSNR's, and the count; what a picture lacks has no mean."""
    names = [n for n in rows[0] if n not in ("index", "name") and all(n in row for row in rows)]
    columns = {n: torch.tensor([row[n] for row in rows], dtype=torch.float64) for n in names}
    found = {n: float(v.mean()) for n, v in columns.items()}
    error = float(columns["psnr"].std() / len(rows) ** 0.5) if len(rows) > 1 else 0.0
    return {"psnr": found.pop("psnr"), "psnr_error": error, **found, "count": len(rows)}


def worst(rows: Sequence[dict[str, Any]], by: str = "psnr") -> list[dict[str, Any]]:
    """The rows from worst to best: by PSNR and the similarities lowest first, by a distance highest first."""
    return sorted(rows, key=lambda row: row[by], reverse=by not in ("psnr", "ssim", "ms_ssim"))


def empty(source: Source) -> None:
    """Raise `ValueError` where there is nothing to reconstruct."""
    if not len(source):
        raise ValueError("there are no held-out pictures to reconstruct; hold some out, or add a `val` folder")


def reconstruction(codec: Codec, part: Part, perceptual: Perceptual | None = None) -> dict[str, float]:
    """Means over a part: PSNR (dB) with its standard error, SSIM, MS-SSIM. Raises `ValueError` for an empty part."""
    source = PartPictures(part, "held out")
    empty(source)
    return summary(measured(Rebuilt(codec, source), perceptual))
