"""What a run tells: metrics.jsonl and TensorBoard for machines and plots, one live line for whoever watches.

`metrics.jsonl` holds only what the recipe determines (images, losses, learning rate), so that a resumed run's file
equals that of an uninterrupted one byte for byte; what the clock says goes to `times.jsonl`.
"""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sfumato import distributed, files


class Log:
    """The metrics of one run in `folder`; a context manager that also draws the progress line unless `quiet`.

    Of several processes only the first writes and draws.
    """

    def __init__(self, folder: Path, title: str, total: int, images: int, quiet: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.metrics, self.times = folder / "metrics.jsonl", folder / "times.jsonl"
        self.board: SummaryWriter | None = None
        if distributed.chief():
            folder.mkdir(parents=True, exist_ok=True)
            cut(self.metrics, images)
            cut(self.times, images)
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=images + 1 if images else 0)
        self.last, self.since = images, time.perf_counter()
        self.seconds = 0.0
        self.steps, self.first, self.mark = 0, 0.0, self.since
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=quiet or not distributed.chief(),
        )
        self.task = self.progress.add_task(title, total=total, completed=images, facts="")
        self.preview = ""

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.board is not None:
            self.board.close()

    def report(self, images: int, values: dict[str, float]) -> None:
        """One line of metrics after `images` images."""
        if self.board is None:
            return
        _append(self.metrics, {"images": images, **values})
        speed = self.timed(images)
        for name, value in values.items():
            self.board.add_scalar(name, value, images)
        self.board.add_scalar("images_per_second", speed, images)
        facts = f"{speed:.0f} images/s, loss {values.get('loss', float('nan')):.4f}"
        self.progress.update(self.task, completed=images, facts=f"{facts}{self.preview}")

    def timed(self, images: int) -> float:
        """One line of times after `images` images, with or without one of metrics; returns images a second."""
        elapsed = time.perf_counter() - self.since
        speed = (images - self.last) / max(elapsed, 1e-9)
        if self.board is not None and images > self.last:
            self.seconds += elapsed
            _append(self.times, {"images": images, "images_per_second": round(speed, 2), "seconds": round(elapsed, 4)})
        self.last, self.since = images, time.perf_counter()
        return speed

    def note(self, images: int, values: dict[str, float]) -> None:
        """One more line of metrics, which is no report of the training itself."""
        if self.board is None:
            return
        _append(self.metrics, {"images": images, **values})
        for name, value in values.items():
            self.board.add_scalar(name, value, images)

    def advance(self, images: int) -> None:
        """A step was taken: move the progress line. A session's first step, in which networks are compiled, counts as long
        as its second."""
        self.steps, now = self.steps + 1, time.perf_counter()
        if self.steps == 1:
            self.first, self.mark = now - self.since, now
        elif self.steps == 2 and self.since < self.mark:  # else the first was told already
            self.since += max(self.first - (now - self.mark), 0.0)
        self.progress.update(self.task, completed=images)

    def pictured(self, path: Path, seconds: float) -> None:
        """A preview was written; its seconds do not count as training."""
        self.preview = f", {path}"
        self.since += seconds


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise files.full(error, path) from error


def cut(path: Path, images: int) -> None:
    """Keep only the lines up to `images`; a last line that was not written whole goes too. The rest is never at risk."""
    if not path.exists():
        return
    kept, told = [], path.read_bytes().decode(errors="replace")  # half a line may end within a letter
    for line in told.splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["images"] <= images:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    if (whole := "".join(kept)) != told:
        files.write(path, whole)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, [] where there is none yet."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
