"""Generate: pictures from words, a class, or nothing at all."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.model import LatentDiffusion
from sfumato.streams import Stream
from sfumato.tasks.requests import Generate
from sfumato.tasks.walk import Made, Progress, Rows, batches, fits, walk


def generate(model: LatentDiffusion, request: Generate, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures. Picture k depends on seed + k and its own words, not on the batch."""
    fits(model, request.width or model.size, request.height or model.size)
    shape = model.latent_shape(request.width, request.height)

    def make(rows: Rows) -> Tensor:
        x = started(request, rows, shape).to(model.device)
        return model.pictures(walk(model, x, request, rows.said, rows.noise, rows.tell))

    yield from batches(model, request, make, tell)


def started(request: Generate, rows: Rows, shape: tuple[int, int, int]) -> Tensor:
    """The noise that these pictures begin with, (B, *shape): their seeds', or a mixture with another's."""
    x = rows.noise.normal(shape, 0)
    if request.variation_seed is not None:
        others = Stream([(request.variation_seed + k) % 2**63 for k in rows.places])
        return between(x, others.normal(shape, 0), request.variation)
    if request.until is not None:
        ends = [Stream([seed]).normal(shape, 0)[0] for seed in (request.seed, request.until)]
        last = request.total - 1
        return torch.stack([between(ends[0], ends[1], k / last) for k in rows.places])
    return x


def between(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of two noises (..., C, h, w): what lies between is as long as noise is (Shoemake, 1985)."""
    flat_a, flat_b = a.flatten(-3), b.flatten(-3)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, -1).clamp(-0.999999, 0.999999)
    angle = cosine.acos()[..., None, None, None]
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
