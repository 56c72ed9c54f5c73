"""What a study found: tables, plots, sheets and a verdict for each claim; as a page, as markdown, as JSON."""

import html
import json
import os
from collections import Counter
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
FEW = 6  # values that an axis names each; and the ratio from which its ticks are those of a logarithm
DASHES = ("-", "--", ":")  # of lines that share a colour


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
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    drawing = Drawing(figsize=(8.4, 4.6), dpi=110, layout="constrained")
    canvas, axis = FigureCanvasAgg(drawing), drawing.subplots()
    colours: dict[str, int] = {}
    seen = Counter[str]()
    for title, x, y in lines:
        kin = title.split(",")[0]  # kin share a colour and differ in dashes: «LDM-4, kl» and «LDM-4, vq»
        colour = f"C{colours.setdefault(kin, len(colours)) % 10}"
        axis.plot(x, y, DASHES[seen[kin] % len(DASHES)], color=colour, marker="o" if dots else None, markersize=4,
                  linewidth=1.4, label=title)  # fmt: skip
        seen[kin] += 1
    axis.set(xlabel=across, ylabel=up, xscale="log" if log[0] else "linear", yscale="log" if log[1] else "linear")
    sides = (axis.xaxis, {v for _, x, _ in lines for v in x}), (axis.yaxis, {v for _, _, y in lines for v in y})
    for (one, found), is_log in zip(sides, log, strict=True):
        if is_log:  # plain numbers: «200» and not «2 x 10²»
            values = sorted(found)
            wide = values[-1] > FEW * values[0]
            one.set_major_locator(
                FixedLocator(values)
                if len(values) <= FEW and one is axis.xaxis
                else LogLocator(subs=(1, 2, 5))
                if wide
                else MaxNLocator(5 if one is axis.xaxis else 8)  # to the right of a narrow logarithm ticks crowd
            )
            one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            one.set_minor_locator(NullLocator())
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    files.write(path, lambda part: picture.save(part, "PNG"))
    return path
