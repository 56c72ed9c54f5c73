"""Inpaint: fill a hole in a picture, or add to its sides (Rombach et al., 2022, section 4.5).

A model with the conditioner `masked` was trained for it and sees what is kept. Any other model fills without training:
what is kept is put into each estimate, and steps are taken again until both agree (Lugmayr et al., 2022). Either way
the decoder's pixels are used in the hole only: outside of it every pixel comes back as it was.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.diffusion.combinators import keeping
from sfumato.diffusion.grid import grid
from sfumato.diffusion.repaint import repaint
from sfumato.model import LatentDiffusion
from sfumato.nn.fill import smooth
from sfumato.nn.rescale import area
from sfumato.tasks import canvas, given
from sfumato.tasks.requests import Inpaint
from sfumato.tasks.said import takes
from sfumato.tasks.walk import Made, Progress, Rows, batches, bound, follow, walk


def inpaint(model: LatentDiffusion, request: Inpaint, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures, as large as the one given and what is added to it. Soft places of the mask are mixtures.

    Raises `ValueError` for a mask of another size, one without a hole, and `method: trained` where the model is not.
    """
    picture, soft = opened(model, request)
    high, wide = picture.shape[-2:]
    hole = (soft > 0).float()
    if not bool(hole.any()):
        raise ValueError("the mask has no hole: it is black everywhere; white is what is filled")
    padded = given.whole(picture, model.codec.factor)
    open_ = given.whole(hole, model.codec.factor)  # as the picture is: a hole at the edge goes on in what continues it
    trained = request.method != "free" and bool(model.conditions.asked("masked"))
    if trained or request.method == "trained":
        field = takes(model, "masked", "inpainting")
        if request.resample not in (1, Inpaint.model_fields["resample"].default):
            raise ValueError(
                "this model was trained to fill holes and takes no step twice; leave resample out, or ask for method free"
            )
    if not trained and request.resample != 1:
        request = resampled(model, request)
    seen = canvas.parted(model, wide, high)

    def make(rows: Rows) -> Tensor:
        x = rows.noise.normal(seen.shape, 0).to(model.device)
        if trained:
            said = rows.every(field, (padded, open_))
            latents = walk(model, x, request, said, rows.noise, rows.tell, stride=seen.stride)
        else:
            latents = _free(model, request, x, padded, open_, rows, seen.stride)
        made = seen.cut(model.pictures(latents).cpu())
        return joined(picture, made, softened(soft, request.soften))

    yield from batches(model, request, seen, make, tell)


def resampled(model: LatentDiffusion, request: Inpaint) -> Inpaint:
    """The request as steps that are taken again carry it out. Raises `ValueError` for a sampler that they do not know."""
    few = model.config.distilled
    own = (Inpaint.model_fields["sampler"].default,) if "sampler" not in request.model_fields_set else ()
    if request.sampler not in ("ddim", few.sampler if few else "ddim", *own):
        raise ValueError(
            f"a model that was not made for holes takes each step again, by ddim; got {request.sampler!r}: leave the sampler "
            "out, or give resample 1 with it"
        )
    return request.model_copy(update={"sampler": "ddim"})


def opened(model: LatentDiffusion, request: Inpaint) -> tuple[Tensor, Tensor]:
    """The picture (C, H, W) with what is added to its sides, gray, and its soft mask (1, H, W), 1 in the hole.

    Raises `ValueError` where that would be too large.
    """
    picture = given.picture(model, request.picture)
    size = (picture.shape[-2], picture.shape[-1])
    soft = torch.zeros(1, *size) if request.mask is None else given.mask(request.mask, size)
    if request.expand is not None:
        left, top, right, bottom = request.expand
        canvas.parted(model, left + size[1] + right, top + size[0] + bottom)  # before there is a canvas of that size
        sides = (left, right, top, bottom)
        picture, soft = F.pad(picture, sides), F.pad(soft, sides, value=1.0)
    return picture, soft


def joined(picture: Tensor, made: Tensor, soft: Tensor) -> Tensor:
    """`picture` (C, H, W) where the mask (1, H, W) is 0, bit for bit, `made` (B, C, H, W) where it is 1, mixtures between."""
    return torch.where(soft > 0, torch.lerp(picture.expand_as(made), made, soft), picture)


def softened(soft: Tensor, pixels: int) -> Tensor:
    """The mask (1, H, W) with an edge that falls to 0 over so many pixels outside of it."""
    wider, fading = soft, soft
    for k in range(1, pixels + 1):
        wider = F.max_pool2d(wider[None], 3, 1, 1)[0]
        fading = torch.maximum(fading, wider * (1 - k / (pixels + 1)))
    return fading


def _free(
    model: LatentDiffusion, request: Inpaint, x: Tensor, picture: Tensor, hole: Tensor, rows: Rows, stride: int | None
) -> Tensor:
    """Latents (B, c, h, w) by a model that was not trained for it: places without any hole are kept."""
    # an encoder sees some way into the hole; what stood there must not colour what is kept
    known = model.codec.encode(smooth(picture[None], hole[None]).to(model.device))
    kept = (area(hole[None], (x.shape[-2], x.shape[-1])) <= 0).to(known)
    denoise = keeping(bound(model, x, request, rows.said, rows.noise, stride=stride), known, kept)
    if request.resample == 1:
        return follow(model, x, request, denoise, rows.noise, rows.tell)
    steps = grid(request.grid)(model.denoiser.schedule, request.steps)
    for number, step in enumerate(
        repaint(denoise, steps.begin(x), steps, repeats=request.resample, noise=rows.noise), 1
    ):
        x = step.x
        rows.tell(number)
    return x
