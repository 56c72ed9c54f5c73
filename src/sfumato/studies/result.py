"""What a study found: tables, plots, sheets and a verdict for each claim; as a page, as markdown, as JSON."""

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato import files
from sfumato.page import Page
from sfumato.studies.verdict import Claim

Line = tuple[str, Sequence[float], Sequence[float]]  # a title, x, y


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A picture with what one sees."""

    path: Path
    caption: str


@dataclass
class Result:
    """One study's findings."""

    name: str
    title: str
    intro: str
    protocol: Mapping[str, Any] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    hours: float = 0.0  # that it took, all calls together

    def write(self, folder: Path, command: str) -> Path:
        """Write `study.json`, `study.md` and the page in the study's folder; returns the page's path."""
        facts = {
            "study": self.name, "command": command, "hours": round(self.hours, 3), "protocol": self.protocol, "claims": [c.told() for c in self.claims],
            "tables": [{"title": t.title, "head": list(t.head), "rows": [list(r) for r in t.rows]} for t in self.tables],
        }  # fmt: skip
        files.write(folder / "study.json", json.dumps(facts, indent=1, ensure_ascii=False))
        files.write(folder / "study.md", self.markdown(command, folder))
        return self.page(command, folder)

    def page(self, command: str, folder: Path) -> Path:
        """The page."""
        page = Page(folder, live=False, title=self.title, intro=self.title)
        page.heading("What is compared", html.escape(self.intro))
        page.command(command)
        page.heading("What the paper says, and what is seen here")
        page.table(["claim", "verdict", "measured"], [[c.text, c.outcome, c.measured] for c in self.claims])
        for table in self.tables:
            page.heading(table.title)
            page.table(table.head, table.rows)
        for figure in self.figures:
            page.figure(figure.path, figure.caption)
        page.heading("Protocol")
        page.command(self.took())
        page.command(json.dumps(self.protocol, indent=1, ensure_ascii=False))
        return page.write()

    def took(self) -> str:
        """How long it took, in words."""
        return f"{self.hours:.2f} hours on this machine, all calls together"

    def markdown(self, command: str, folder: Path) -> str:
        """The same for the docs."""
        parts = [f"## {self.title}", self.intro, f"    {command}"]
        parts.append(
            marked(["claim", "verdict", "measured"], [[c.text, f"**{c.outcome}**", c.measured] for c in self.claims])
        )
        for table in self.tables:
            parts += [f"**{table.title}**", marked(table.head, table.rows)]
        parts += [f"![{figure.caption}]({_beside(figure.path, folder)})" for figure in self.figures]
        facts = json.dumps(self.protocol, ensure_ascii=False)
        return "\n\n".join([*parts, f"Took {self.took()}. Protocol: `{facts}`"]) + "\n"


def _beside(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def marked(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def plot(
    path: Path,
    lines: Sequence[Line],
    across: str,
    up: str,
    *,
    log: tuple[bool, bool] = (False, False),
    dots: bool = True,
) -> Path:
    """Lines in one plot; dots where they were measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(7.2, 4.2), dpi=110, layout="constrained")
    canvas, axis = FigureCanvasAgg(drawing), drawing.subplots()
    for title, x, y in lines:
        axis.plot(x, y, marker="o" if dots else None, markersize=4, linewidth=1.4, label=title)
    axis.set(xlabel=across, ylabel=up, xscale="log" if log[0] else "linear", yscale="log" if log[1] else "linear")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    files.write(path, lambda part: picture.save(part, "PNG"))
    return path
