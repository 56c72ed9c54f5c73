"""Which device to run on, and in which precision: by what the machine can do, measured where names mislead."""

import functools
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato import distributed

ASSUMED = 1 << 32  # bytes of memory that are free where the system does not say


def pick(name: str = "auto") -> torch.device:
    """`auto` takes cuda, then mps where the process is alone, then cpu; the CPU's threads are settled too. Raises
    `ValueError` where it is not there."""
    settle_threads()
    several = distributed.place()[1] > 1
    # processes cannot meet on mps, which gloo does not know
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available() and not several, "cpu": True}
    if name == "auto":
        name = next(n for n, there in found.items() if there)
    kind, numbered, number = name.partition(":")
    if kind not in found:
        raise ValueError(f"unknown device {name!r}; known: auto, {', '.join(found)}")
    if not found[kind]:
        raise ValueError(
            f"device {name!r} is not there; this machine has {', '.join(n for n, y in found.items() if y)}"
        )
    if name == "cuda" and several:
        if distributed.local() >= (there := torch.cuda.device_count()):
            raise ValueError(
                f"there are more processes on this machine than GPUs, of which it has {there}: start {there}, or give "
                "--device cpu"
            )
        return torch.device("cuda", distributed.local())
    if not numbered:
        return torch.device(kind)
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not number.isdecimal() or int(number) >= count:
        raise ValueError(
            f"there is no device {name!r}: of {kind} this machine has {count}, numbered from 0; give {kind}:0, or {kind} alone"
        )
    return torch.device(kind, int(number))


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def precision(name: str, device: torch.device) -> torch.dtype:
    """The type that convolutions and products run in: `fp32`, `bf16`, `auto`, the faster of the two; `fp64` for proofs."""
    if name == "auto":
        return torch.bfloat16 if fast_bfloat16(device.type) else torch.float32
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; known: auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def named(dtype: torch.dtype) -> str:
    """The name of a type of `precision`."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


@functools.cache
def fast_bfloat16(kind: str) -> bool:
    """Whether training in bfloat16 pays on this kind of device.

    On CPUs the answer is measured, in half a second: processors with AMX gain threefold, while others that
    announce bfloat16 lose tenfold to slow weight gradients.
    """
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu":
        return False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for one another where the cores are not free, in bfloat16 for half a second
    try:
        single, half = _seconds(torch.float32, torch.bfloat16)
    finally:
        torch.set_num_threads(threads)
    return 1.25 * half < single


def _seconds(*dtypes: torch.dtype) -> list[float]:
    """The time of a few convolutions there and back in each type: the best of rounds that take turns, so that what else
    the machine does in the meantime slows none of them alone."""
    totals = [0.0] * len(dtypes)
    for channels, side in ((64, 16), (128, 8), (256, 4)):
        best = [math.inf] * len(dtypes)
        pairs = [
            (
                torch.ones(64, channels, side, side, dtype=dtype, requires_grad=True),
                torch.ones(channels, channels, 3, 3, dtype=dtype, requires_grad=True),
            )
            for dtype in dtypes
        ]
        for _ in range(8):
            for k, (x, w) in enumerate(pairs):
                begin = time.perf_counter()
                F.conv2d(x, w, padding=1).sum().backward()  # type: ignore[no-untyped-call]
                best[k] = min(best[k], time.perf_counter() - begin)
        totals = [t + one for t, one in zip(totals, best, strict=True)]
    return totals


def wait(device: torch.device) -> None:
    """Until what was asked of the device is done, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def at_least_single(x: Tensor) -> Tensor:
    """In float32, or in float64 where it is that: for what half precision cannot hold."""
    return x if x.dtype == torch.float64 else x.float()


def finest(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices that have none: of Apple's, to ask for it is an error."""
    return torch.float32 if device.type == "mps" else torch.float64


def fine(x: Tensor) -> Tensor:
    """x as finely as its device can hold it: for sums and differences that single precision would blur."""
    return x.to(finest(x.device))


@contextmanager
def cast(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Autocast to `dtype` on the device; nothing happens for float32 and float64. Weights stay as they are."""
    if dtype in (torch.float32, torch.float64):
        yield
    else:
        # the cache of cast weights is one for all threads, and the first that leaves would clear it for the lanes beside it:
        # a weight that is used twice would have its gradient added now in half precision, now not
        with torch.autocast(device.type, dtype, cache_enabled=device.type != "cpu"):
            yield


def processors(root: Path = Path("/")) -> int:
    """Processors that this process may use: of the machine, its affinity and its container's quotas; at least 1."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for group in _groups("cpu", root):
        second, first = (
            _read(group / "cpu.max").split(),
            [_read(group / f"cpu.cfs_{n}_us") for n in ("quota", "period")],
        )
        numbers = [int(t) for t in second or first if t.isdecimal()]  # `max` and -1: none
        if len(numbers) == 2 and all(numbers):
            count = min(count, numbers[0] / numbers[1])
    return max(round(count), 1)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the control groups that hold this process, of both versions, innermost first.

    Any of them may have a limit. A container that sees its own part of the tree only finds its group at the top of it.
    """
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        inner = [part for part in path.split("/") if part not in ("", "..")]
        for mount in (top / names, top / controller) if names else (top, top / "unified"):
            yield from (mount.joinpath(*inner[:depth]) for depth in range(len(inner), -1, -1))


def _read(path: Path) -> str:
    """The text of a small file of the system's; nothing where there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def settle_threads() -> None:
    """Give torch as many threads as there are processors to use, where the user has not said how many.

    torch counts the machine's cores: in a container with a quota of two on a machine of 64 they would wait for one
    another.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > processors():
        torch.set_num_threads(processors())


def free(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take on the device: of the machine, or of its containers."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = _read(root / "proc/meminfo").splitlines()
    if not lines:  # not Linux: half of what pages there are
        pages = getattr(os, "sysconf", None)  # which Windows has not
        return ASSUMED if pages is None else int(pages("SC_PAGE_SIZE") * pages("SC_PHYS_PAGES") // 2)
    found = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0)
    for group in _groups("memory", root):
        for names in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, used = (_read(group / name) for name in names)
            if limit.isdecimal() and used.isdecimal():
                found = min(found, int(limit) - int(used) + _files(group))
    return max(found, 0)


def _files(group: Path) -> int:
    """Bytes of read files that a control group keeps while nobody wants the memory: it counts them as used."""
    kept = dict(line.split()[:2] for line in _read(group / "memory.stat").splitlines() if line)
    names = (
        ("total_inactive_file", "total_active_file")
        if "total_inactive_file" in kept
        else ("inactive_file", "active_file")
    )
    return sum(int(kept.get(name, 0)) for name in names)
