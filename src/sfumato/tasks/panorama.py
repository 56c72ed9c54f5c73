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
from sfumato.tasks.requests import Panorama
from sfumato.tasks.walk import Made, Progress, Rows, batches, fits, walk, windowed

MARGIN = 8  # latent places that a wrapped canvas is continued by while it is decoded


def panorama(model: LatentDiffusion, request: Panorama, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures. Raises `ValueError` for sizes that the first stage's factor does not divide, and for
    `wrap` with `whole` or a picture narrower than the model's own."""
    height = request.height or model.size
    if request.whole:
        fits(model, request.width, height)
    shape = model.latent_shape(request.width, height)
    side = model.latent_shape()[1]
    if request.wrap and (request.whole or shape[2] <= side):
        raise ValueError(f"wrap joins windows: leave whole out, and ask for a width above {model.size}")
    if request.wrap and model.conditions.sizes.image:
        raise ValueError("wrap is for models without pictures as conditions, which have edges; leave it out")
    stride = None if request.whole else max(round(side * (1 - request.overlap)), 1)
    if stride is not None:
        windowed(model, request.width, height, stride)

    def make(rows: Rows) -> Tensor:
        x = rows.noise.normal(shape, 0).to(model.device)
        latents = walk(model, x, request, rows.said, rows.noise, rows.tell, stride=stride, wrap=request.wrap)
        return around(model, latents) if request.wrap else model.pictures(latents)

    yield from batches(model, request, make, tell)


def around(model: LatentDiffusion, latents: Tensor) -> Tensor:
    """Pictures of latents whose right edge goes on at the left."""
    margin = min(MARGIN, latents.shape[-1])
    wide = torch.cat([latents[..., -margin:], latents, latents[..., :margin]], -1)
    edge = margin * model.codec.factor
    return model.pictures(wide)[..., edge:-edge]
