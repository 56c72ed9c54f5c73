"""How many pictures at a time fit: measured on one and two, before a run begins."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato import device as devices
from sfumato.training.muon import Muon
from sfumato.training.objective import Objective
from sfumato.training.optimizer import Optimizer
from sfumato.training.recipe import TrainingConfig

LARGEST = 32  # the batch that `auto` prefers: larger ones learn less from the same pictures in short runs
SHARE = 0.5  # of the memory that is free; the rest is for workspaces, which are not counted


def kept(objective: Objective, dtype: torch.dtype, device: torch.device, positions: Sequence[int]) -> int:
    """Bytes that a step's backward pass keeps for the examples at these positions, the larger of all turns."""
    most = 0
    for name, turn in objective.turns.items():
        if not objective.active(name, positions):
            continue
        held: dict[int, int] = {}

        def note(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with hooks, devices.cast(dtype, device):
            turn(objective.batch(positions))
        most = max(most, sum(held.values()))
    return most


class Needs(NamedTuple):
    """Bytes that a training needs, and how many pictures fit at a time."""

    parameters: int  # numbers, no bytes: of all turns, what only helps included
    learned: int
    weights: int
    gradients: int
    optimiser: int
    averages: int
    fixed: int  # activations that do not grow with the batch
    each: int  # activations of one picture
    free: int

    @property
    def fits(self) -> int:
        """The largest number of pictures whose activations fit beside the rest in `SHARE` of what is free; at least 1."""
        rest = self.weights + self.gradients + self.optimiser + self.averages + self.fixed
        return max(int((SHARE * self.free - rest) // max(self.each, 1)), 1)


def needs(objective: Objective, config: TrainingConfig, dtype: torch.dtype, device: torch.device, place: int) -> Needs:
    """Measured on one and two pictures, and counted. `place` is a position at which all that costs memory has begun."""
    one, two = (kept(objective, dtype, device, range(place, place + n)) for n in (1, 2))
    turns = {name: list(objective.learned(name)) for name in objective.turns}
    several = [p for modules in turns.values() for m in modules for p in m.parameters()]
    learned = sum(p.numel() for p in several)
    bytes_each = several[0].element_size()
    moments = 0
    for name, modules in turns.items():
        for part in Optimizer(modules, objective.tuned(name, config), dtype).parts:
            numbers = sum(p.numel() for group in part.param_groups for p in group["params"])
            moments += numbers * (1 if isinstance(part, Muon) else 2)
    whole = {id(p): p for turn in objective.turns.values() for p in turn.parameters()}
    return Needs(
        sum(p.numel() for p in whole.values()),
        learned,
        sum(p.numel() * p.element_size() for p in whole.values()),
        learned * bytes_each,
        moments * bytes_each,
        len(config.ema) * learned * bytes_each,
        max(2 * one - two, 0),
        max(two - one, 0),
        devices.free(device),
    )


def fitting(found: Needs) -> int:
    """The batch that `auto` takes: the largest power of two that fits, up to `LARGEST`."""
    return max(n for n in (1, 2, 4, 8, 16, LARGEST) if n <= found.fits)


def accumulating(found: Needs, batch: int) -> int:
    """The parts that `auto` cuts a batch into: the smallest power of two of which each fits."""
    parts = 1
    while batch > found.fits * parts:
        parts *= 2
    return parts
