"""How many pictures at a time fit: measured on one and two, before a run begins."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato import device as devices
from sfumato.training.objective import Objective

LARGEST = 32  # the batch that `auto` prefers: larger ones learn less from the same pictures in short runs
SHARE = 0.5  # of the memory that is free; the rest is for workspaces, which are not counted


def kept(objective: Objective, dtype: torch.dtype, device: torch.device, positions: Sequence[int]) -> int:
    """Bytes that a step's backward pass keeps for the examples at these positions, the larger of all turns."""
    most = 0
    for turn in objective.turns.values():
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


def fitting(objective: Objective, dtype: torch.dtype, device: torch.device, place: int) -> int:
    """The largest power of two, up to `LARGEST`, of which a batch fits in half of the free memory; at least 1.

    `place` is a position of the run at which everything that costs memory has begun.
    """
    one, two = (kept(objective, dtype, device, range(place, place + n)) for n in (1, 2))
    weights = sum(p.numel() for turn in objective.turns.values() for p in turn.parameters())
    fixed = max(2 * one - two, 0) + 4 * 4 * weights  # gradients, two moments, an average
    room = SHARE * devices.free(device) - fixed
    return max((n for n in (1, 2, 4, 8, 16, LARGEST) if n * (two - one) <= room), default=1)
