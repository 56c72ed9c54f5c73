"""Several processes as one, on PyTorch's own engine: `torchrun --nproc-per-node N -m sfumato ...`.

Each process takes its parts of every batch. Gradients meet in `DistributedDataParallel`, whatever else a step measures
in one sum, so each process clips, steps and settles alike and the weights stay equal without being sent. Work that is
not training (encoding, sampling, measuring) is cut into pieces that do not depend on the number of processes, and
`spread` gives every process all results in order. Files are written by the first process.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

Item = TypeVar("Item")
Result = TypeVar("Result")
# How long processes wait at a meeting. One of them may work alone for hours (a batch measured, latents joined) while the
# others wait; one that dies is told by its connection and by `torchrun`, not by this.
PATIENCE = timedelta(days=1)
_alone = 0


def place() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside of `torch.distributed` and within `alone`."""
    if not _alone and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def chief() -> bool:
    """Whether this is the process that writes files and speaks."""
    return place()[0] == 0


def members() -> int:
    """The number of processes of this run, within `alone` too."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def neighbours() -> int:
    """The number of this run's processes on this machine, itself included: they share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", members())) if members() > 1 else 1


def local() -> int:
    """The number of this process on its machine: of the accelerator that it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined() -> Iterator[None]:
    """Within this context the processes that `torchrun` started are one group. Does nothing for a process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    # two backends: pictures and features meet on the CPU even where gradients meet on the accelerators
    if torch.cuda.is_available():
        if local() < torch.cuda.device_count():  # there may be more processes, with --device cpu
            torch.cuda.set_device(local())
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
        dist.barrier()  # nobody closes the door while another still talks
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within this context this process works as if there were no others."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def wait() -> None:
    """Until every process has come to this place."""
    if place()[1] > 1:
        dist.barrier()


def wrapped(module: nn.Module, learned: Sequence[nn.Module], *, uneven: bool = False) -> nn.Module:
    """The module with the gradients of `learned` averaged over processes; itself where there is one process only.

    `uneven` where a part of a batch may miss some weights: the null of a condition that none of its examples dropped.
    This is the only door to data parallelism: `fully_shard` would enter here.
    """
    if place()[1] == 1:
        return module
    from torch.nn.parallel import DistributedDataParallel

    wanted = {id(p) for m in learned for p in m.parameters()}
    # a turn holds what it does not train (the coder's turn its critic), which has no gradients to wait for
    others = [name for name, p in module.named_parameters() if id(p) not in wanted]
    ignore: Any = DistributedDataParallel
    ignore._set_params_and_buffers_to_ignore_for_model(module, others)
    return DistributedDataParallel(module, find_unused_parameters=uneven)


@contextmanager
def meeting(module: nn.Module, now: bool) -> Iterator[None]:
    """Whether the gradients of a `wrapped` module meet in this part, or wait for the step's last one."""
    if now or not isinstance(module, nn.parallel.DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield


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


@torch.no_grad()
def apart(tensors: Sequence[Tensor]) -> float:
    """How far the processes' tensors are from one another: the largest difference of a tensor's sum, as a share of the sum of
    its magnitudes. 0 where there is one process."""
    if place()[1] == 1 or not tensors:
        return 0.0
    several = (t.cpu().double() for t in tensors)
    told = torch.stack([t.sum() / t.abs().sum().clamp(min=1e-30) for t in several])
    ends = torch.stack([told, -told])
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return float(ends.sum(0).max())


def some(flag: bool) -> bool:
    """Whether any process says so."""
    if place()[1] == 1:
        return flag
    told = torch.tensor(int(flag))
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def all_of(flag: bool) -> bool:
    """Whether every process says so."""
    return not some(not flag)


def spread(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`function(item)` for every item, in order and for every process, each worked out by one of them.

    Results travel between the processes of one run as Python objects; keep tensors in them on the CPU.
    """
    rank, processes = place()
    if processes == 1:
        yield from map(function, items)
        return
    for begin in range(0, len(items), processes):
        here = begin + rank
        mine = function(items[here]) if here < len(items) else None
        found: list[Result | None] = [None] * processes
        dist.all_gather_object(found, mine)
        yield from found[: len(items) - begin]  # type: ignore[misc]
