"""Upscale: super-resolution of a picture of any size (Rombach et al., 2022, section 4.4).

The factor is the one that the model was trained with. Canvases larger than its own are denoised in windows that agree
where they overlap, so there are no seams.
"""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sfumato.model import LatentDiffusion
from sfumato.tasks import given
from sfumato.tasks.requests import Upscale
from sfumato.tasks.walk import Made, Progress, Rows, batches, takes, walk


def upscale(model: LatentDiffusion, request: Upscale, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures, `factor` times as large as the one given. Raises `ValueError` for a level that was not
    trained, and for a model that knows no small pictures."""
    takes(model, "lowres", "super-resolution")
    factor = magnification(model)
    small = given.picture(model, request.picture)
    high, wide = small.shape[-2:]
    multiple = model.codec.factor // math.gcd(model.codec.factor, factor)
    padded = given.whole(small, multiple)
    value: dict[str, Any] = {"picture": padded, "level": request.level}
    shape = model.latent_shape(factor * padded.shape[-1], factor * padded.shape[-2])
    side = model.latent_shape()[1]
    stride = None if max(shape[1:]) <= side else max(side // 2, 1)

    def make(rows: Rows) -> Tensor:
        x = rows.noise.normal(shape, 0).to(model.device)
        said = rows.every("lowres", value)
        made = model.pictures(walk(model, x, request, said, rows.noise, rows.tell, stride=stride))
        return made[..., : factor * high, : factor * wide]

    yield from batches(model, request, make, tell)


def magnification(model: LatentDiffusion) -> int:
    """How many times larger the model's pictures are than the small ones that it was trained with."""
    side: int | None = getattr(model.conditions.reader("lowres"), "side", None)
    if side is None:
        raise ValueError("this model does not say how large its small pictures were; train it with data.degrade")
    return max(round(model.size / side), 1)
