"""Generate: pictures from words, a class, or nothing at all."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.conditioning.base import index
from sfumato.conditioning.label import named
from sfumato.families.base import Family, chosen
from sfumato.model import LatentDiffusion
from sfumato.streams import Stream
from sfumato.tasks import canvas
from sfumato.tasks.requests import Generate
from sfumato.tasks.said import planned
from sfumato.tasks.walk import Made, Progress, Rows, batches, walk


def generate(model: LatentDiffusion | Family, request: Generate, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures. Picture k depends on seed + k and its own words, not on the batch."""
    if isinstance(model, Family):
        yield from modelled(model, request, tell)
        return
    made = canvas.whole(model, request.width, request.height)

    def make(rows: Rows) -> Tensor:
        x = started(request, rows, made.shape).to(model.device)
        own = request.plan and made.shape == model.latent_shape()  # layouts are of pictures of the trained shape
        said = planned(model, rows.said, rows.seeds) if own else rows.said
        return model.pictures(walk(model, x, request, said, rows.noise, rows.tell))

    yield from batches(model, request, made, make, tell)


WALKED = ("steps", "sampler", "grid")  # settings of what is walked from noise to a picture


def unused(family: Family | None) -> tuple[str, ...]:
    """Settings that a model of another family does nothing with, which its pictures do not tell."""
    if family is None:
        return ()
    return WALKED if family.unnamed else (*WALKED, "guidance")


def modelled(family: Family, request: Generate, tell: Progress | None = None) -> Iterator[Made]:
    """Pictures of a model of another family, which knows classes and nothing else. Raises `ValueError` for more."""
    size = family.shape.size
    more = request.prompt or request.negative or request.reference or request.bank or request.boxes or request.map
    mixed = (request.until, request.variation_seed, request.interval) != (None, None, None)
    walked = any(getattr(request, name) != Generate.model_fields[name].default for name in WALKED)
    if walked:
        raise ValueError("this model makes a picture without steps of a sampler; leave steps, sampler and grid out")
    if more or mixed or {request.width or size, request.height or size} != {size}:
        raise ValueError(f"this model makes pictures of {size}x{size} pixels, of a class at most; leave the rest out")
    if not family.unnamed and "guidance" in request.model_fields_set and request.guidance != 1.0:
        raise ValueError("this model learned nothing that guidance could move away from; leave guidance out")
    if request.label is not None and not family.labels:
        raise ValueError("this model was trained without labels, so it takes no label; leave the label out")
    if len(request.label or ()) > 1:
        raise ValueError(f"a picture of this model is of one class; got {', '.join(request.label or ())}")
    seeds, none = request.seeds(), len(family.labels)
    label = [index(named(name, family.labels), family.labels, "label") for name in request.label or ()]
    device = next(family.parameters()).device
    for begin in range(0, len(seeds), request.batch):
        own = seeds[begin : begin + request.batch]
        unsaid = [none] * len(own) if family.unnamed else chosen(own, none)
        labels = torch.tensor([*label * len(own)] or unsaid, device=device)
        made = family.sample(Stream(own), labels, request.guidance if request.label else 1.0).cpu()
        if tell is not None:
            tell(begin + len(own), len(seeds))
        yield Made(made, own, [None] * len(own), request)


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
