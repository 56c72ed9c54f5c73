"""A study by its name, from its budget to its page."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato.studies.desk import Desk
from sfumato.studies.names import HOURS
from sfumato.studies.result import Result


def study(name: str, desk: Desk, command: str, **more: Any) -> tuple[Result, Path]:
    """Run a study and write its page; returns what it found and where. Raises `ValueError` for an unknown name."""
    if name not in HOURS:
        raise ValueError(f"there is no study {name!r}; known: {', '.join(HOURS)}")
    run: Callable[..., Result] = importlib.import_module(f"sfumato.studies.{name}").study
    agreed(desk, name)
    result = run(desk, **more)
    return result, result.write(desk.folder / name, command)


def agreed(desk: Desk, name: str) -> None:
    """Note the study's hours. Raises `ValueError` where it was begun with others: what is trained already hangs on them."""
    kept = desk.plan("hours")
    if kept.get(name, desk.hours) != desk.hours:
        raise ValueError(
            f"{desk.folder} holds this study with --hours {kept[name]:g}; go on with that, or choose another folder with --out"
        )
    desk.keep_plan("hours", {**kept, name: desk.hours})
