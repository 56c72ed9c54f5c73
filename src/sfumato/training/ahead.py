"""Batches made ahead of the training step, in threads.

A batch is a pure function of its positions, so that who makes it, and when, changes no bit of it. Threads suffice: the
decoders of pictures and NumPy's draws let others run meanwhile. What comes next is told by the same functions that the
loop steps by.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch

from sfumato import distributed
from sfumato.device import processors
from sfumato.lanes import threads

MOST = 8  # workers that `auto` takes: Python's own part of a batch is made one at a time


def next_step(images: int, batch: int, whole: int) -> range:
    """Positions of the step after so many images, of a run of `whole`; empty after the last."""
    return range(images, min(images + batch, whole))


def parts(positions: Sequence[int], count: int) -> list[Sequence[int]]:
    """This process's parts of a step whose positions all processes share, `count` of them in all."""
    rank, processes = distributed.place()
    return [part for part in (positions[k::count] for k in range(rank, count, processes)) if part]


def workers(asked: int | str, device: torch.device) -> int:
    """How many threads make batches ahead: `auto` takes none on the CPU, whose cores the step itself needs."""
    if asked != "auto":
        return int(asked)
    return 0 if device.type == "cpu" else min(MOST, max(processors() // distributed.place()[1], 1))


class Ahead:
    """Within its context, the parts of the next steps are made by `count` threads, of `each` torch threads.

    `make` is called with a part, `split` gives the parts of a step, and `after` the step that follows. Outside of the
    context, or without workers, a part is made when it is first asked for, and kept while its step asks for it again.
    """

    def __init__(
        self,
        make: Callable[[Sequence[int]], Any],
        split: Callable[[Sequence[int]], Sequence[Sequence[int]]],
        after: Callable[[Sequence[int]], Sequence[int]],
        count: int,
        each: int,
    ) -> None:
        self.make, self.split, self.after, self.count, self.each = make, split, after, count, each
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[tuple[int, int, int], Future[Any]] = {}
        self._kept: dict[tuple[int, int, int], Any] = {}  # parts of the step at hand that a later turn asks for

    def __enter__(self) -> Self:
        if self.count:
            self._pool = threads(self.count, self.each, "ahead")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wait for the parts that are being made; those that are not yet begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._begun, self._kept = None, {}, {}

    def begin(self, step: Sequence[int]) -> list[Sequence[int]]:
        """The parts of the step that is now trained on: what came before is forgotten, what follows is started."""
        mine, self._kept = list(self.split(step)), {}
        if self._pool is None:
            return mine
        wanted: dict[tuple[int, int, int], Future[Any]] = {}
        while step and len(wanted) < len(mine) + max(self.count, len(mine)):
            for part in self.split(step):
                key = _key(part)
                wanted[key] = self._begun.pop(key) if key in self._begun else self._pool.submit(self.make, part)
            step = self.after(step)
        for unwanted in self._begun.values():
            unwanted.cancel()
        self._begun = wanted
        return mine

    def batch(self, part: Sequence[int], again: bool = False) -> Any:
        """A part of the step at hand; `again` where the step asks for it once more. Raises what making it raised."""
        key = _key(part)
        if key in self._begun:
            return self._begun[key].result()
        made = self._kept.pop(key) if key in self._kept else self.make(part)
        if again:
            self._kept[key] = made
        return made


def _key(part: Sequence[int]) -> tuple[int, int, int]:
    return part[0], part[-1], len(part)
