"""`kind: folder`. Any folder of pictures: class folders, a `metadata.jsonl`, or a `NAME.txt` beside each picture.

The layouts are those of Hugging Face's `imagefolder`, so a folder made for one serves the other. Pictures are decoded
when they are asked for, so memory stays flat; those that cannot be read are left out, counted and named.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from sfumato import image
from sfumato.data.base import Data, Part

log = logging.getLogger(__name__)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
HELD_OUT_FOLDERS = ("val", "validation", "test", "held_out")


class FolderData(Data):
    """Pictures under `path`, their largest centred square at `size` pixels.

    Folders named `train` and `val` or `test` make the parts; without them a share `held_out` of the pictures, chosen by
    the hash of their content, is held out.
    """

    path: Path
    held_out: float = Field(0.05, ge=0, lt=1)

    def open(self, part: str = "train") -> "FolderPart":
        self.check(part)
        if not self.path.is_dir():
            raise ValueError(f"there is no folder {self.path}; give the folder of your pictures as data.path")
        apart = [self.path / name for name in HELD_OUT_FOLDERS if (self.path / name).is_dir()]
        if (self.path / "train").is_dir():
            root = self.path / "train" if part == "train" or not apart else apart[0]
            rows = listed(root)
            return FolderPart(rows if apart or part == "train" else [], self.size, root)
        rows = [r for r in listed(self.path) if (held(r["file"], self.held_out) == (part == "held_out"))]
        return FolderPart(rows, self.size, self.path)


def held(path: Path, share: float) -> bool:
    """Whether the content's hash puts this file into the held-out share; equal files stay together."""
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def listed(root: Path) -> list[dict[str, Any]]:
    """The pictures under `root` with their captions and labels, sorted by name.

    Raises `ValueError` where there is none, or where `metadata.jsonl` is not what it should be.
    """
    rows = _from_metadata(root) if (root / "metadata.jsonl").is_file() else _from_names(root)
    if not rows:
        raise ValueError(
            f"there are no pictures in {root}; it may hold {', '.join(sorted(SUFFIXES))} files or class folders"
        )
    return rows


def _from_names(root: Path) -> list[dict[str, Any]]:
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    grouped = all(p.parent != root for p in files)
    rows = []
    for file in files:
        row: dict[str, Any] = {"file": file}
        if file.with_suffix(".txt").is_file():
            lines = file.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
            row["caption"] = [line.strip() for line in lines if line.strip()]
        if grouped:
            row["class"] = file.parent.relative_to(root).as_posix()
        rows.append(row)
    return rows


def _from_metadata(root: Path) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(table(root / "metadata.jsonl"), 1):
        name = row.get("file_name")
        if not isinstance(name, str):
            raise ValueError(f"{root / 'metadata.jsonl'}, line {number}: every line needs a `file_name`")
        entry: dict[str, Any] = {"file": root / name}
        text = next((row[key] for key in ("caption", "text", "prompt") if row.get(key)), None)
        if text:
            entry["caption"] = [text] if isinstance(text, str) else list(text)
        if row.get("label") is not None:
            entry["class"] = str(row["label"])
        rows.append(entry)
    return rows


def table(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file. Raises `ValueError` where one is not JSON."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON lines ({error}); one object a line, with `file_name` and `text`"
        ) from None


class FolderPart(Part):
    """Pictures decoded on demand; each family is one picture."""

    def __init__(self, rows: list[dict[str, Any]], size: int, root: Path) -> None:
        self.channels, self.size = 3, size
        self.rows, self.skipped = readable(rows)
        if rows and not self.rows:
            raise ValueError(
                f"none of the {len(rows)} pictures in {root} can be read; the first fault: {self.skipped[0]}"
            )
        if self.skipped:
            log.warning(
                "%d pictures of %s cannot be read and are left out: %s",
                len(self.skipped),
                root,
                self.skipped[0],
            )
        self.labels = tuple(sorted({row["class"] for row in self.rows if "class" in row}))
        self.families = [[k] for k in range(len(self.rows))]
        told = [
            (
                r["file"].relative_to(root).as_posix(),
                r["file"].stat().st_size,
                r.get("caption"),
                r.get("class"),
            )
            for r in self.rows
        ]
        self.fingerprint = hashlib.sha256(json.dumps([size, told]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Tensor:
        picture = image.fitted(image.read(self.rows[index]["file"]), self.size)
        return image.to_uint8(image.to_tensor(picture))

    def fields(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        found: dict[str, Any] = {"name": row["file"].name}
        if row.get("caption"):
            found["caption"] = row["caption"]
        if "class" in row:
            found["label"] = self.labels.index(row["class"])
        return found


def readable(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows whose pictures can be decoded to their end, and what is wrong with the others."""
    good, faults = [], []
    for row in rows:
        try:
            image.read(row["file"])
            good.append(row)
        except ValueError as error:
            faults.append(str(error))
    return good, faults
