"""How many pictures at a time fit: measured on one and two, before a run begins."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato import device as devices
from sfumato import distributed
from sfumato.lanes import lanes
from sfumato.training.muon import Muon
from sfumato.training.objective import Objective
from sfumato.training.optimizer import Optimizer
from sfumato.training.settings import TrainingConfig

LARGEST = 32  # the batch that `auto` prefers: larger ones learn less from the same pictures in short runs
SHARE = 0.5  # of the memory that is free; the rest is for workspaces, which are not counted


def kept(objective: Objective, dtype: torch.dtype, device: torch.device, positions: Sequence[int]) -> int:
    """Bytes that a step's backward pass keeps for the examples at these positions, the larger of all turns.

    Weights that it keeps too are not among them: they are there anyway.
    """
    most = 0
    there = {p.untyped_storage().data_ptr() for turn in objective.turns.values() for p in turn.parameters()}
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
        most = max(most, sum(size for place, size in held.items() if place not in there))
    return most


def copies(device: torch.device) -> int:
    """How many of a turn's gradients there are at most: each lane's beside those of earlier parts."""
    count = 1 if distributed.members() > 1 else lanes(device)
    return count + 1 if count > 1 else 1


def working(part: torch.optim.Optimizer) -> int:
    """Bytes that an optimiser takes while it steps: Muon's iteration on the largest stack of matrices of one shape."""
    if not isinstance(part, Muon):
        return 0
    stacks: dict[tuple[int, int], int] = {}
    sizes = [(p.shape[0], p.numel() // p.shape[0]) for group in part.param_groups for p in group["params"]]
    whole = part.param_groups[0]["params"][0].element_size()
    for rows, columns in sizes:
        # the step itself in the weights' type; in the iteration's its start, two rounds of it and two squares
        iterated = 3 * rows * columns + 2 * min(rows, columns) ** 2
        taken = whole * rows * columns + part.dtype.itemsize * iterated
        stacks[rows, columns] = stacks.get((rows, columns), 0) + taken
    return max(stacks.values(), default=0)


class Needs(NamedTuple):
    """Bytes that a training needs, and how many pictures fit at a time."""

    parameters: int  # numbers, no bytes: of all turns, what only helps included
    learned: int
    weights: int
    gradients: int  # of the turn with the most: every copy of them, or one and what its optimiser makes of it; of all
    # turns, where several processes' gradients meet in buckets
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
    learned, averaged = sum(p.numel() for p in several if p.requires_grad), sum(p.numel() for p in several)
    bytes_each = several[0].element_size()
    moments, gradients = 0, 0
    for name, modules in turns.items():
        parts = Optimizer(modules, objective.tuned(name, config), dtype).parts
        own = bytes_each * sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)
        gradients = max(gradients, copies(device) * own, own + max(map(working, parts), default=0))
        for part in parts:
            numbers = sum(p.numel() for group in part.param_groups for p in group["params"])
            moments += numbers * (1 if isinstance(part, Muon) else 2)
    whole = {id(p): p for turn in objective.turns.values() for p in turn.parameters()}
    return Needs(
        sum(p.numel() for p in whole.values()),
        learned,
        sum(p.numel() * p.element_size() for p in whole.values()),
        gradients + (learned * bytes_each if distributed.members() > 1 else 0),
        moments * bytes_each,
        len(config.ema) * averaged * bytes_each,
        max(2 * one - two, 0),
        max(two - one, 0),
        devices.free(device) // (distributed.neighbours() if device.type == "cpu" else 1),
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
