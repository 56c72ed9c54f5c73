"""Panorama: a picture larger than the model was trained on.

Windows of the trained size are denoised together and blended at every step, so that neighbours agree (Bar-Tal et al.,
2023); `whole` lets the network see all of the canvas at once, which is the paper's convolutional sampling (Rombach et
al., 2022, section 4.3.2): right for textures and landscapes, but attention over more places than it was trained on
repeats things. With `wrap` the right edge goes on at the left, in the latents and in the decoder.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.model import LatentDiffusion
from sfumato.tasks import canvas
from sfumato.tasks.requests import Panorama
from sfumato.tasks.walk import Made, Progress, Rows, batches, walk

MARGIN = 16  # latent places that a wrapped canvas is continued by while it is decoded; the emoji's decoder sees 10


def panorama(model: LatentDiffusion, request: Panorama, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures. Raises `ValueError` for sizes that would never end, and for `wrap` with `whole`, with a
    width that the first stage's factor does not divide, or with a picture no wider than the model's own."""
    side, factor = model.latent_shape()[1], model.codec.factor
    stride = max(round(side * (1 - request.overlap)), 1)
    seen = (
        canvas.whole(model, request.width, request.height)
        if request.whole
        else canvas.parted(model, request.width, request.height, stride)
    )
    if request.whole and request.overlap != Panorama.model_fields["overlap"].default:
        raise ValueError("without windows none overlaps: leave whole or overlap out")
    if request.wrap and (request.whole or request.width <= model.size):
        raise ValueError(f"wrap joins windows: leave whole out, and ask for a width above {model.size}")
    if request.wrap and request.width % factor:
        near = round(request.width / factor) * factor
        raise ValueError(
            f"an edge that is joined cannot be cut: a width with wrap is a multiple of {factor}, try {near}"
        )
    if request.wrap and model.conditions.sizes.image:
        raise ValueError("wrap is for models without pictures as conditions, which have edges; leave it out")

    def make(rows: Rows) -> Tensor:
        x = rows.noise.normal(seen.shape, 0).to(model.device)
        latents = walk(model, x, request, rows.said, rows.noise, rows.tell, stride=seen.stride, wrap=request.wrap)
        return around(model, latents) if request.wrap else model.pictures(latents)

    yield from batches(model, request, seen, make, tell)


def around(model: LatentDiffusion, latents: Tensor) -> Tensor:
    """Pictures of latents whose right edge goes on at the left."""
    margin = min(MARGIN, latents.shape[-1])
    wide = torch.cat([latents[..., -margin:], latents, latents[..., :margin]], -1)
    edge = margin * model.codec.factor
    return model.pictures(wide)[..., edge:-edge]
