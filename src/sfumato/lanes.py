"""Lanes: parts of a batch side by side, each on threads of its own.

Small networks are thousands of short operations. Splitting every one of them over all cores costs two meetings an
operation; splitting the batch instead costs two a step. On two cores both recipes of the demo train 1.25 times faster
so, and more on an idle machine (`docs/experiments.md`); sampling gains as much. Accelerators queue their work themselves and have one lane.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from sfumato import paths
from sfumato.device import processors

NAME = "lane"
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


def rows_side_by_side(function: Callable[[slice], Tensor], rows: int, device: torch.device) -> Tensor:
    """`function(slice)` of some rows each, joined: how a batch goes through a network where no gradient is wanted.

    The lanes work in the caller's modes (inference, autocast). Inside a lane, with gradients, or with one row, the
    function is called once for all rows.
    """
    count = min(lanes(device), rows)
    if count < 2 or not paths.fast() or torch.is_grad_enabled() or threading.current_thread().name.startswith(NAME):
        return function(slice(0, rows))
    inference, half = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def one(part: slice) -> Tensor:
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", dtype, enabled=half):
            return function(part)

    cuts = [rows * k // count for k in range(count + 1)]
    parts = [slice(begin, end) for begin, end in pairwise(cuts)]
    return torch.cat(side_by_side(one, parts, count))


def one_thread_each(function: Callable[[Given], Made], items: Sequence[Given]) -> list[Made]:
    """`[function(item) for item in items]`, each on one thread, as many at a time as there are processors; without gradients."""

    def alone(item: Given) -> Made:
        with torch.no_grad():
            return function(item)

    return list(_singles(processors()).map(alone, items))


@functools.cache
def _singles(count: int) -> ThreadPoolExecutor:
    return threads(count, 1, f"{NAME}-single")


@functools.cache
def _pool(count: int, whole: int) -> ThreadPoolExecutor:
    return threads(count, max(whole // count, 1), NAME)


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
    for _made in (_pool, _singles):
        os.register_at_fork(after_in_child=_made.cache_clear)  # threads do not cross a fork
