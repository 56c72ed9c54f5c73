"""Several processes as one: each takes its parts of every batch, and sums meet once a step.

Gradients and everything that a turn measures are summed over processes before anything is done with them, so each
process clips, steps and settles alike, and the weights stay equal without being sent.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist


def place() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside of `torch.distributed`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@torch.no_grad()
def total(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over all processes, in place and in one message a type; every process gives the same shapes."""
    if place()[1] == 1:
        return
    for dtype in sorted({t.dtype for t in tensors}, key=str):
        several = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in several])
        dist.all_reduce(flat)
        for tensor, part in zip(several, torch.split(flat, [t.numel() for t in several]), strict=True):
            tensor.copy_(part.reshape(tensor.shape))
