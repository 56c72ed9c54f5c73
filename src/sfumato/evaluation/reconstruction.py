"""How much of a picture survives the first stage: picture by picture, and what is worst.

PSNR, SSIM and MS-SSIM after rounding to 8 bits, a perceptual distance by any function of two batches, under the name
that its maker gives it. Means hide failures, so every picture keeps its row; `worst` puts those to look at first.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import distributed, image
from sfumato.autoencoder.codec import Codec, together
from sfumato.data.base import Part
from sfumato.evaluation.source import PartPictures, Rebuilt, Source, batches, equal

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales of MS-SSIM, Wang et al. (2003)
KERNEL = 11  # pixels a side of SSIM's window


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

    The mean over the windows that lie in the picture, as published: what torchmetrics makes of mirrored edges is left out.
    In bands of rows, so that large pictures take no more memory than small ones.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    high, wide, edge = images.shape[2], images.shape[3], KERNEL // 2
    if min(high, wide) < KERNEL:
        return torch.full((len(images),), float("nan"))
    a, b = (image.to_uint8(x) for x in (images, others))
    windows, rows, total = high - 2 * edge, max(together(wide) // len(a), 1), torch.zeros(len(a), dtype=torch.float64)
    for top in range(0, windows, rows):
        x, y = (p[:, :, top : min(top + rows, windows) + 2 * edge].float() / 255.0 for p in (a, b))
        found = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none", return_full_image=True)
        inside = found[1][:, :, edge:-edge, edge:-edge]
        total += inside.double().sum((1, 2, 3)).cpu()
    return (total / (images.shape[1] * windows * (wide - 2 * edge))).float()


def scales(height: int, width: int) -> int:
    """Scales of MS-SSIM that a picture is large enough for: the published 5 from 176 pixels a side, fewer below, or 0."""
    side = min(height, width)
    # torchmetrics asks for (n - 1)^2 instead of 2^(n - 1); the two agree for 3 and 5 scales
    return max((n for n in range(1, 6) if side // max(2 ** (n - 1), (n - 1) ** 2) >= KERNEL), default=0)


def ms_ssim(images: Tensor, others: Tensor) -> Tensor:
    """Multi-scale SSIM (Wang et al., 2003) of each pair, (B,), after rounding to 8 bits; NaN below 11 pixels a side.

    Pictures too small for the five scales have the first few, their weights scaled to the same sum. torchmetrics gives
    means over a batch only, so pairs go to it one by one.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    number = scales(*images.shape[2:])
    if not number:
        return torch.full((len(images),), float("nan"))
    weights = WEIGHTS[:number]
    betas = tuple(w * sum(WEIGHTS) / sum(weights) for w in weights)
    a, b = (image.to_uint8(x).float() / 255.0 for x in (images, others))
    found = [
        multiscale_structural_similarity_index_measure(x, y, data_range=1.0, betas=betas, normalize="relu")
        for x, y in zip(torch.split(a, 1), torch.split(b, 1), strict=True)
    ]
    return torch.stack([f for f in found if isinstance(f, Tensor)]).reshape(-1)


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
