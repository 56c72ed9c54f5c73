"""`kind: emoji`. About 3,600 captioned emoji that come with the package: pictures to learn on, without a download.

They are Noto Color Emoji, drawn once at 64 pixels by `tools/make_emoji_sheet.py` and packed losslessly, so every machine
trains on the same pixels; sizes that do not divide 64 are drawn from a font of the machine, as is any size with `font`.
Half of them are skin tones, so families (a base and its variants) are drawn uniformly. Labels are Unicode's nine groups
(its hundred subgroups hold thirty pictures each, too few to learn a class from). Three parts: `held_out` has bases of
which no picture is within 24 dB of a training picture; `combinations` has roles with a tone and a gender that training
shows apart, but never together; `train` is the rest.
"""

import hashlib
import json
import re
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato.data.base import Data, Part
from sfumato.data.glyphs import Font, installed, resized

# Pictures that are another emoji, or wrong letters and digits, when mirrored, though their captions name no side.
TURNED = re.compile(
    r"o'clock|thirty|arrow|quarter moon|waxing|waning|place medal|calendar|chart|hundred points|zzz|symbols on mouth"
    r"|banknote|\b(flag|pager|newspaper|receipt|map of japan|slot machine|e-mail|bus stop|musical)\b"
)
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Emoji(NamedTuple):
    """One picture's row of `emoji.json`."""

    code: str
    captions: list[str]
    group: str
    subgroup: str
    base: str
    tone: str
    gender: str
    direction: str
    part: str

    @property
    def text(self) -> str:
        """The sequence itself."""
        return "".join(chr(int(c, 16)) for c in self.code.split("-"))


class EmojiData(Data):
    """Sizes that divide 64 come from the sheet; other sizes, and all with `font`, from a colour emoji font of this machine."""

    font: Path | None = None  # its path; Noto Color Emoji is looked for where a size needs it and this is left out

    @property
    def parts(self) -> tuple[str, ...]:
        return ("train", "held_out", "combinations", "all")

    def read(self, part: str) -> "EmojiPart":
        facts, rows, pictures = shipped()
        if self.font is None and facts["size"] % self.size == 0:
            pictures = shrunk(pictures, self.size)
        else:
            rows, pictures = drawn(self.font or installed(), self.size)
        chosen = [k for k, row in enumerate(rows) if part in (row.part, "all")]
        return EmojiPart([rows[k] for k in chosen], pictures[chosen])


class EmojiPart(Part):
    """Emoji held as one uint8 array (N, 3, size, size)."""

    def __init__(self, rows: list[Emoji], pictures: Pixels) -> None:
        self.rows, self.pictures = (
            rows,
            torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))),
        )
        self.channels, self.size = 3, int(pictures.shape[1])
        self.labels = tuple(sorted({row.group for row in shipped()[1]}))
        bases: dict[str, list[int]] = {}
        for k, row in enumerate(rows):
            bases.setdefault(row.base, []).append(k)
        self.families = list(bases.values())
        digest = hashlib.sha256(json.dumps(rows).encode() + pictures.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Tensor:
        return self.pictures[index]

    def fields(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        label = self.labels.index(row.group)
        return {"caption": row.captions, "label": label, "group": row.group, "name": row.code}

    def mirrors(self, index: int) -> bool:
        row = self.rows[index]
        plain = row.group not in ("Flags", "Symbols") and "," not in row.tone  # two tones: who stands on which side
        return plain and super().mirrors(index) and not any(TURNED.search(c) for c in row.captions)


@lru_cache(maxsize=1)
def shipped() -> tuple[dict[str, Any], list[Emoji], Pixels]:
    """Facts, rows and pictures (N, 64, 64, 3) of the sheet that ships. Raises `ValueError` where it is damaged."""
    folder = resources.files("sfumato") / "data" / "sheet"
    facts: dict[str, Any] = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    rows = [Emoji(*row) for row in facts.pop("emoji")]
    content = (folder / "emoji.webp").read_bytes()
    if hashlib.sha256(content).hexdigest() != facts["sheet_sha256"]:
        raise ValueError("the emoji sheet of this installation is damaged; install Sfumato again")
    with (folder / "emoji.webp").open("rb") as file, Image.open(file) as opened:
        sheet = np.asarray(opened.convert("RGB"))
    size, columns = facts["size"], facts["columns"]
    tiles = sheet.reshape(-1, size, columns, size, 3).transpose(0, 2, 1, 3, 4).reshape(-1, size, size, 3)
    return facts, rows, tiles[: len(rows)]


def shrunk(pictures: Pixels, size: int) -> Pixels:
    """(N, S, S, 3) uint8 -> (N, size, size, 3): means over blocks, rounded; `size` divides S."""
    factor = pictures.shape[1] // size
    if factor == 1:
        return pictures
    blocks = pictures.reshape(len(pictures), size, factor, size, factor, 3)
    means: Pixels = (blocks.mean((2, 4), dtype=np.float32) + 0.5).astype(np.uint8)
    return means


@lru_cache(maxsize=1)
def drawn(path: Path, size: int) -> tuple[list[Emoji], Pixels]:
    """The emoji of the sheet that a font of this machine draws well, at any size."""
    font = Font(path)
    tried = [(row, *font.draw(row.text)) for row in shipped()[1]]
    rows = [row for row, _, fault in tried if not fault]
    if not rows:
        raise ValueError(
            f"{path} draws none of the emoji as one picture; use a colour emoji font such as NotoColorEmoji.ttf"
        )
    return rows, np.stack([np.asarray(resized(picture, size)) for _, picture, fault in tried if not fault])
