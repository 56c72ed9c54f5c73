"""The denoising loss on held-out pictures, at fixed times and noise: comparable between runs, and with shuffled words.

In training it tells when a small set begins to be learnt by heart: the training loss goes on falling, this one rises.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato import distributed, streams
from sfumato.conditioning.base import Draws
from sfumato.data.base import Part
from sfumato.data.buckets import alike
from sfumato.model import LatentDiffusion

TIMES = 8  # evenly through (0, 1), each picture at every one
LIMIT = 256  # pictures
AT_ONCE = 64  # of a batch, each worked out by one of the run's processes


def denoising(model: LatentDiffusion, part: Part, limit: int = LIMIT) -> dict[str, float]:
    """Mean L_LDM over at most `limit` pictures of a part: `loss`, and `shuffled` with the conditions half the part away.

    A model that listens to its conditions has a clearly higher `shuffled` loss. Neighbours in a data set are often
    variants of one picture, whose words say nearly the same: those would understate it. Every process has to ask.
    """
    own, others = losses(model, part, limit)
    return {"loss": sum(own) / len(own), "shuffled": sum(others) / len(own), "count": len(own)}


@torch.no_grad()
def losses(model: LatentDiffusion, part: Part, limit: int = LIMIT) -> tuple[list[float], list[float]]:
    """The two losses of `denoising`, of each picture. Picture, times and noise are the same for any model."""
    wanted, chosen = set(model.conditions.fields.values()), _chosen(part, limit)
    groups = _groups(part)

    def some(batch: tuple[list[int], list[int]]) -> tuple[list[float], list[float]]:
        rows, others = batch
        images = torch.stack([part.image(k) for k in rows]).float() / 127.5 - 1.0
        latents = model.codec.encode(images.to(model.codec.shift))
        fields, turned = (_fields(part, several, wanted) for several in (rows, others))
        return _loss(model, latents, fields, rows), _loss(model, latents, turned, rows)

    batches = []
    for group in groups:
        place = {k: number for number, k in enumerate(group)}  # a picture that is alone in its shape has its own words
        mine = [k for k in chosen if k in place]
        away = [group[(place[k] + len(group) // 2) % len(group)] for k in mine]
        batches += [(mine[b : b + AT_ONCE], away[b : b + AT_ONCE]) for b in range(0, len(mine), AT_ONCE)]
    own, others = zip(*distributed.spread(some, batches), strict=True)
    return [one for rows in own for one in rows], [one for rows in others for one in rows]


def _groups(part: Part) -> Sequence[Sequence[int]]:
    """The examples of a part by their shapes."""
    return [range(len(part))] if part.shapes is None else list(alike(part.shapes).values())


@torch.no_grad()
def lesson(model: LatentDiffusion, part: Part, limit: int = LIMIT) -> float | None:
    """The conditioners' own loss, such as a planner's nats a box, on the same examples; None where none has one."""
    if not model.conditions.besides:
        return None
    wanted, chosen = set(model.conditions.read), _chosen(part, limit)

    def some(begin: int) -> float:
        rows = chosen[begin : begin + AT_ONCE]
        found = model.conditions.lesson(_fields(part, rows, wanted), len(rows), Draws.training(0, rows))
        assert found is not None
        return len(rows) * float(found)

    return sum(distributed.spread(some, range(0, len(chosen), AT_ONCE))) / len(chosen)


def _chosen(part: Part, limit: int) -> list[int]:
    """Examples from all of a part: folders are sorted by class."""
    count = min(len(part), limit)
    if not count:
        raise ValueError("there are no held-out pictures to denoise; hold some out, or add a `val` folder")
    return [k * len(part) // count for k in range(count)]


def _fields(part: Part, rows: Sequence[int], wanted: set[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    told = [part.told(k, read=wanted) for k in rows]
    for name in wanted:
        values = [one.get(name) for one in told]
        if name == "caption":  # of which an example has several
            values = [v[0] if isinstance(v, list) and v else v for v in values]
        found[name] = values
    return found


def _loss(model: LatentDiffusion, latents: Tensor, fields: dict[str, list[Any]], rows: Sequence[int]) -> list[float]:
    size = (latents.shape[-2], latents.shape[-1])
    cond = model.conditions(fields, len(rows), size=size, draws=Draws.training(0, rows))
    total = torch.zeros(len(rows), dtype=torch.float64)
    for k in range(TIMES):
        eps = streams.normal(latents.shape[1:], 0, "held-out", rows, k).to(latents)
        t = torch.full((len(rows),), (k + 0.5) / TIMES, device=latents.device, dtype=latents.dtype)
        total += model.denoiser.loss(latents, t, eps, cond).cpu()
    return (total / TIMES).tolist()
