"""Upscale: super-resolution of a picture of any size (Rombach et al., 2022, section 4.4).

The factor is the one that the model was trained with. Canvases larger than its own are denoised in windows that agree
where they overlap, so there are no seams. A sample's detail is invented, and its blur should not be: the smallest
correction is added after which the picture, made small again, is the one that was given (`consistent`), unless the model
was taught to take away what small pictures have of their own: noise, blur, the blocks of a JPEG.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.model import LatentDiffusion
from sfumato.tasks import canvas, given
from sfumato.tasks.requests import Upscale
from sfumato.tasks.said import denied, takes
from sfumato.tasks.walk import Made, Progress, Rows, batches, walk

log = logging.getLogger(__name__)
ENOUGH = 50.0  # dB; rounding to 8 bits alone leaves 59
PROMISED = 45.0  # dB
STALLED = 0.99  # of the squared error, at which another round is worth nothing


def upscale(model: LatentDiffusion, request: Upscale, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures, `factor` times as large as the one given. Raises `ValueError` for a level that was not
    trained, a picture that would be too large, and a model that knows no small pictures."""
    field = takes(model, "lowres", "super-resolution")
    if request.guidance == 1.0 and "guidance" not in request.model_fields_set:
        idle = "a negative" if denied(request) else "an interval" if request.interval is not None else ""
        if idle:
            raise ValueError(f"{idle} does nothing at guidance 1, the default here; give a guidance above 1 with it")
    factor = magnification(model, field)
    small = given.picture(model, request.picture)
    high, wide = small.shape[-2:]
    multiple = model.codec.factor // math.gcd(model.codec.factor, factor)
    padded = given.whole(small, multiple)
    value: dict[str, Any] = {"picture": padded, "level": request.level}
    level = getattr(model.conditions.reader(field), "level", 0.0) if request.level is None else request.level
    if request.consistent and level:
        raise ValueError(
            f"at level {level:g} the small picture is not trusted, so that nothing is held to it; leave consistent out, or "
            "give level 0"
        )
    if request.consistent is None:
        plain = getattr(model.conditions.reader(field), "plain", True) and not level
        request = request.model_copy(update={"consistent": plain})
    # latents of all that the padded picture shows, so that both have one scale, and of them the picture's part
    over = canvas.parted(model, factor * padded.shape[-1], factor * padded.shape[-2])
    made = dataclasses.replace(over, width=factor * wide, height=factor * high)

    def make(rows: Rows) -> Tensor:
        x = rows.noise.normal(made.shape, 0).to(model.device)
        said = rows.every(field, value)
        large = made.cut(model.pictures(walk(model, x, request, said, rows.noise, rows.tell, stride=made.stride)))
        if not request.consistent:
            return large
        large = corrected(large, small.to(large))
        _told(large, small.to(large))
        return large

    yield from batches(model, request, made, make, tell)


def corrected(pictures: Tensor, small: Tensor, rounds: int = 6, most: int = 40, steps: int = 12) -> Tensor:
    """The nearest pictures (B, C, H, W) in [-1, 1] that, made small by bicubic averages, are `small` (C, h, w).

    The correction of least squares, A' (A A')⁻¹ (small - A x), A the resize, by conjugate gradients; again after what left
    [-1, 1] was cut, since cutting disturbs it: `rounds` times, and up to `most` until a picture agrees to `ENOUGH` dB, which
    white grounds want, or comes no nearer: text in black on white is the average of no such picture.
    """
    size = (small.shape[-2], small.shape[-1])

    def down(x: Tensor) -> Tensor:
        return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)

    def back(y: Tensor) -> Tensor:
        """A' y, the resize's adjoint: its vector-Jacobian product, for it is linear."""
        with torch.enable_grad():
            x = torch.zeros_like(pictures).requires_grad_()
            (found,) = torch.autograd.grad(down(x), x, y)
        return found

    x, far = pictures, torch.full((len(pictures), 1, 1, 1), math.inf, device=pictures.device)
    for number in range(most):
        left = small.expand(len(x), *small.shape) - down(x)
        before, far = far, left.square().mean((1, 2, 3), keepdim=True)
        nearing = (far > 4 * 10 ** (-ENOUGH / 10)) & (far < STALLED * before)
        wanting = nearing | (number < rounds)
        if not bool(wanting.any()):
            break
        y, along = torch.zeros_like(left), left
        square = _inner(left, left)
        for _ in range(steps):
            image = down(back(along))
            step = square / _inner(along, image).clamp(min=1e-12)
            y, left = y + step * along, left - step * image
            last, square = square, _inner(left, left)
            along = left + square / last.clamp(min=1e-20) * along
        x = torch.where(wanting, (x + back(y)).clamp(-1, 1), x)  # each picture for itself, whatever the batch
    return x


def _told(pictures: Tensor, small: Tensor) -> None:
    """Warn where pictures, made small again, are not the one given: black beside white, as in text, is the average of
    no picture in their range."""
    made = F.interpolate(pictures, small.shape[-2:], mode="bicubic", antialias=True, align_corners=False)
    worst = 10 * math.log10(4 / max(float((made - small).square().mean((1, 2, 3)).max()), 1e-12))
    if worst < PROMISED:
        log.warning(
            "made small again the picture is the one given to %.1f dB only, for what is so sharp is the average of no larger "
            "picture",
            worst,
        )


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of each picture, (B, 1, 1, 1)."""
    return (a * b).sum((1, 2, 3), keepdim=True)


def magnification(model: LatentDiffusion, field: str) -> int:
    """How many times larger the model's pictures are than the small ones that it was trained with."""
    side: int | None = getattr(model.conditions.reader(field), "side", None)
    if side is None:
        raise ValueError("this model does not say how large its small pictures were; train it with data.degrade")
    return max(round(model.size / side), 1)
