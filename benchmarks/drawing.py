"""Pictures for the benchmarks of tasks, which measure many: a batch at a time, each from a seed of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.model import LatentDiffusion
from sfumato.streams import Stream
from sfumato.tasks.requests import Generate
from sfumato.tasks.said import planned
from sfumato.tasks.walk import walk

BATCH = 64


@torch.no_grad()
def sampled(
    model: LatentDiffusion, said: Mapping[str, Sequence[Any]], count: int, steps: int, scale: float, seed: int
) -> Tensor:
    """Pictures (count, C, H, W), the k-th with seed + k and with what is said in place k of every field."""
    found = []
    for begin in range(0, count, BATCH):
        places = range(begin, min(begin + BATCH, count))
        seeds = [seed + k for k in places]
        some = {name: list(values[places.start : places.stop]) for name, values in said.items()}
        noise, request = Stream(seeds), Generate(steps=steps, guidance=scale, seed=0)
        x = noise.normal(model.latent_shape(), 0)
        found.append(model.pictures(walk(model, x, request, planned(model, some, seeds), noise)))
    return torch.cat(found)
