"""Vary: another picture like a given one.

Its latent is taken part of the way to noise and walked back under new words (Meng et al., 2022, «SDEdit»). With `invert`
the way up is no random noise, but the one from which a deterministic sampler would return (Song et al., 2021): the form
stays, what the words change changes.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sfumato.diffusion.grid import grid
from sfumato.diffusion.inversion import inversion
from sfumato.diffusion.samplers import last
from sfumato.model import LatentDiffusion
from sfumato.tasks import canvas, given
from sfumato.tasks.canvas import Canvas
from sfumato.tasks.requests import Generate, Vary
from sfumato.tasks.said import fields, placed
from sfumato.tasks.walk import Made, Progress, Rows, batches, bound, walk

REFINE = 2  # evaluations by which each upward step is corrected


def vary(model: LatentDiffusion, request: Vary, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures, as large as the one given. Exactly `steps` steps run, whatever the strength.

    Raises `ValueError` for pictures that cannot be read, and for a `source` that the model cannot read.
    """
    if request.source is not None and not request.invert:
        raise ValueError("source says what the given picture shows, for invert; give both or neither")
    if request.invert and request.sampler != "ddim" and "sampler" in request.model_fields_set:
        raise ValueError(f"invert comes back by ddim, the sampler that it turns round; got {request.sampler!r}")
    if request.invert:
        request = request.model_copy(update={"sampler": "ddim"})
    shown = given.picture(model, request.picture)
    seen = canvas.whole(model, shown.shape[-1], shown.shape[-2])
    clean = model.codec.encode(given.whole(shown, model.codec.factor)[None].to(model.device))
    rows_of_noise = grid(request.grid)(model.denoiser.schedule, request.steps, start=request.strength)

    def make(rows: Rows) -> Tensor:
        x_0 = clean.expand(len(rows), -1, -1, -1)
        if request.invert:
            x = _inverted(model, request, x_0, rows, seen)
        else:
            first = rows_of_noise.rows()[0]
            x = first.alpha * x_0 + first.sigma * rows.noise.normal(clean.shape[1:], 0, x_0)
        made = walk(model, x, request, rows.said, rows.noise, rows.tell, rows=rows_of_noise)
        return model.pictures(made)

    yield from batches(model, request, seen, make, tell)


def _inverted(model: LatentDiffusion, request: Vary, x_0: Tensor, rows: Rows, seen: Canvas) -> Tensor:
    """The noise at `strength` from which ddim, told what the source says, comes back to x_0. Boxes and a map, which say
    the form that is to stay, hold on the way up too."""
    plain = Generate(guidance=1.0, steps=request.steps, sampler="ddim", grid=request.grid)
    said: dict[str, Any] = {field: [value] * len(rows) for field, value in placed(model, request, seen).items()}
    if request.source:
        classes = not model.conditions.asked("caption") and bool(model.conditions.asked("label"))
        words, labels = (None, [request.source]) if classes else (request.source, None)
        said.update(fields(model, [words] * len(rows), labels, "source"))
    said.update({field: rows.said[field] for field in model.conditions.wanting(said) if field in rows.said})
    up = grid(request.grid)(model.denoiser.schedule, request.steps, start=request.strength)
    return last(inversion(bound(model, x_0, plain, said, rows.noise, rows=up), x_0, up, refine=REFINE))
