"""Ctrl-C while a training runs."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from sfumato import distributed

EVERY = 3.0  # seconds; torchrun waits thirty for its processes, and a checkpoint is written in them


class Flag:
    """True once Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.set = False

    def __bool__(self) -> bool:
        return self.set


class Agreed:
    """Whether any of several processes was stopped, asked every few seconds, for asking costs a meeting: after so many steps
    as all of them count alike."""

    def __init__(self) -> None:
        self.steps, self.wanted, self.since = 0, 1, time.monotonic()

    def __call__(self, stopped: bool) -> bool:
        processes = distributed.place()[1]
        if processes == 1:
            return stopped
        self.steps += 1
        if self.steps < self.wanted:
            return False
        now = time.monotonic()
        told = torch.tensor([float(stopped), (now - self.since) / self.steps])  # and seconds a step
        distributed.total([told])
        self.steps, self.since = 0, now
        self.wanted = max(int(EVERY * processes / float(told[1])), 1)
        return bool(told[0])


@contextmanager
def interrupts() -> Iterator[Flag]:
    """Ctrl-C sets the flag, so that the step at hand ends well; a second one stops at once."""
    flag = Flag()

    def note(number: int, frame: FrameType | None) -> None:
        flag.set = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: whoever runs us there owns the signals
        yield flag
        return
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
