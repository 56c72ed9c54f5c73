"""Pages that show results: one HTML file with its pictures inside. Nothing in it is fetched from anywhere."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sfumato import files

NARROW, SHORT = 6, 18  # columns above which a table is set smaller; letters of a cell that is not broken
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #faf9f7; margin: 0 auto; max-width: 1080px;
       padding: 2rem 1.5rem 4rem; }
h1 { font-weight: 600; font-size: 2rem; margin: 0; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; } .soft { color: #666; }
figure { margin: .6rem 0 1rem; } img { max-width: 100%; display: block; border: 1px solid #e5e2dc; background: #fff; }
figcaption { color: #666; font-size: .9rem; margin-top: .25rem; }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(116px, 1fr)); }
.tiles figure { margin: 0; } .tiles img { width: 100%; image-rendering: auto; }
.tiles figcaption { font-size: .78rem; line-height: 1.25; }
table { border-collapse: collapse; margin: .6rem 0 1rem; } th, td { padding: .3rem .9rem .3rem 0; text-align: left;
        border-bottom: 1px solid #e5e2dc; font-variant-numeric: tabular-nums; } th { font-weight: 600; }
.wide { overflow-x: auto; } .wide table { font-size: .8rem; } td.short { white-space: nowrap; }
pre { background: #f0eeea; padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; border-radius: 4px; }
.live { background: #fff4d6; padding: .5rem .8rem; border-radius: 4px; }
"""


@dataclass
class Page:
    """What there is to show; every part may still be missing."""

    folder: Path
    status: str = ""  # a line above everything
    live: bool = True
    sections: list[str] = field(default_factory=list)
    title: str = "Sfumato"
    intro: str = ""
    file: str = "report.html"

    def heading(self, title: str, text: str = "") -> None:
        """A section's title and a paragraph on what one sees."""
        self.sections.append(f"<h2>{html.escape(title)}</h2>" + (f"<p>{text}</p>" if text else ""))

    def figure(self, picture: Image.Image | Path, caption: str, width: int | None = None) -> None:
        """One picture with its caption below."""
        size = f' style="width:{width}px"' if width else ""
        alt = html.escape(caption, quote=True)
        self.sections.append(
            f'<figure><img src="{data_url(picture)}" alt="{alt}"{size}><figcaption>{html.escape(caption)}</figcaption></figure>'
        )

    def tiles(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> None:
        """A grid of pictures, each under its own words."""
        cells = [
            f'<figure><img src="{data_url(p)}" alt="{html.escape(c, quote=True)}"><figcaption>{html.escape(c)}</figcaption></figure>'
            for p, c in zip(pictures, captions, strict=True)
        ]
        self.sections.append(f'<div class="tiles">{"".join(cells)}</div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of texts."""
        top = "".join(f"<th>{html.escape(h)}</th>" for h in head)
        body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
        whole = f"<table><tr>{top}</tr>{body}</table>"
        self.sections.append(f'<div class="wide">{whole}</div>' if len(head) > NARROW else whole)

    def command(self, text: str) -> None:
        """The command that made what stands above it."""
        self.sections.append(f"<pre>{html.escape(text)}</pre>")

    def write(self) -> Path:
        """Write the file, whole or not at all; while `live`, the page reloads itself every ten seconds."""
        refresh = '<meta http-equiv="refresh" content="10">' if self.live else ""
        said = " ".join([self.status, *(["This page reloads itself."] if self.live else [])]).strip()
        banner = f'<p class="live">{html.escape(said)}</p>' if said else ""
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style></head><body><h1>Sfumato</h1>"
            f'<p class="soft">{html.escape(self.intro)}</p>{banner}{"".join(self.sections)}</body></html>'
        )
        path = self.folder / self.file
        files.write(path, page)
        return path


def _cell(text: str) -> str:
    """Numbers with their spread stay on one line."""
    return f"<td{' class=short' if len(text) <= SHORT else ''}>{html.escape(text)}</td>"


def data_url(picture: Image.Image | Path) -> str:
    """A picture as a PNG inside the page."""
    if isinstance(picture, Path):
        content = picture.read_bytes()
    else:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        content = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode()


def enlarge(picture: Image.Image, factor: int) -> Image.Image:
    """The picture with sides `factor` times as long, interpolated smoothly as a browser would."""
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
