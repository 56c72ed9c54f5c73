"""Lanes: parts of a batch side by side, each on threads of its own.

Small networks are thousands of short operations. Splitting every one of them over all cores costs two meetings an
operation; splitting the batch instead costs two a step. On two cores both recipes of the demo train 1.25 times faster
so, and more on an idle machine (`docs/experiments.md`). Accelerators queue their work themselves and have one lane.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

MOST = 4  # Python's own part of a step runs one lane at a time, so more lanes would wait for one another
Given = TypeVar("Given")
Made = TypeVar("Made")


def lanes(device: torch.device) -> int:
    """How many parts of a batch run side by side on this device: one, or on the CPU up to four of equal threads."""
    threads = torch.get_num_threads()
    return next(n for n in range(MOST, 0, -1) if threads % n == 0) if device.type == "cpu" else 1


def side_by_side(function: Callable[[Given], Made], items: Sequence[Given], count: int) -> list[Made]:
    """`[function(item) for item in items]`, `count` at a time; the first error is raised."""
    if count == 1 or len(items) == 1:
        return [function(item) for item in items]
    return list(_pool(count, torch.get_num_threads()).map(function, items))


@functools.cache
def _pool(count: int, whole: int) -> ThreadPoolExecutor:
    return threads(count, max(whole // count, 1), "lane")


def threads(count: int, each: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads whose operations run on `each` threads of torch; the caller's number stays."""
    all_there, own = Barrier(count + 1), torch.get_num_threads()

    def begin() -> None:
        torch.set_num_threads(each)
        torch.get_num_threads()  # a thread that has not yet asked would take what is set below
        all_there.wait()

    pool = ThreadPoolExecutor(count, name, begin)
    for _ in range(count):
        pool.submit(int)
    all_there.wait()
    torch.set_num_threads(own)
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not cross a fork
