"""Ctrl-C while a training runs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Flag:
    """True once Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.set = False

    def __bool__(self) -> bool:
        return self.set


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
