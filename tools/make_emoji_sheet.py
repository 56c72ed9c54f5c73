"""Makes the emoji data set that ships: one sheet of pictures and a JSON file that says what each is.

Run on a machine with Debian's `fonts-noto-color-emoji`, `unicode-data`, `libraqm0` and `libfribidi0`:

    python tools/make_emoji_sheet.py

Every glyph is checked (see `sfumato.data.glyphs`); what fails is dropped and counted. Pictures that are equal at 16
pixels are merged and keep all their captions. The split is made here, once, and written down.
"""

import argparse
import hashlib
import json
import struct
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFont

from sfumato.data.emoji import Emoji
from sfumato.data.glyphs import STRIKE, Font, Glyph, Kind, kind, listed, resized

SIZE, COLUMNS = 64, 64
STEP = 7  # of the 8-bit values kept: the lossless sheet stays under 5 MB, at 43 dB to the rendered pictures
HELD_OUT, NEAR = 0.05, 24.0  # share of the bases; decibels within which two pictures count as twins
Pictures = np.ndarray[Any, np.dtype[Any]]


def merged(glyphs: list[Glyph], pictures: Pictures) -> list[list[int]]:
    """Numbers of glyphs whose pictures are equal at 16 pixels, together."""
    small = pictures.reshape(-1, 16, SIZE // 16, 16, SIZE // 16, 3).mean((2, 4)).round().astype(np.uint8)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number in range(len(glyphs)):
        groups[small[number].tobytes()].append(number)
    return list(groups.values())


def clusters(bases: list[str], pictures: Pictures) -> dict[str, str]:
    """Each base's cluster: bases that have a pair of pictures within `NEAR` decibels are in one (union by search)."""
    parent = {base: base for base in bases}

    def root(base: str) -> str:
        while parent[base] != base:
            base = parent[base]
        return base

    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    norms = (flat**2).sum(1)
    limit = flat.shape[1] * 255.0**2 / 10 ** (NEAR / 10)
    for begin in range(0, len(flat), 256):
        distances = norms[begin : begin + 256, None] + norms[None] - 2 * flat[begin : begin + 256] @ flat.T
        for i, j in zip(*np.nonzero(distances < limit * 1.001), strict=True):
            a, b = root(bases[begin + i]), root(bases[j])
            if a != b:
                parent[max(a, b)] = min(a, b)
    return {base: root(base) for base in bases}


def order(text: str) -> int:
    """A number that is fixed for a text and looks random."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_out(cluster: dict[str, str]) -> set[str]:
    """Bases of whole clusters, in a fixed order, until `HELD_OUT` of all bases is reached; no cluster above a tenth of that."""
    members: dict[str, list[str]] = defaultdict(list)
    for base, name in cluster.items():
        members[name].append(base)
    wanted = round(HELD_OUT * len(cluster))
    chosen: set[str] = set()
    for name in sorted(members, key=order):
        if len(members[name]) <= max(wanted // 10, 1) and len(chosen) + len(members[name]) <= wanted:
            chosen.update(members[name])
    return chosen


def combinations(kinds: list[Kind], out: set[str]) -> set[int]:
    """For each role with tones and genders, two (tone, gender) pairs, chosen so that training sees the role with that
    tone, the role with that gender, and the pair in other roles."""
    roles: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for number, k in enumerate(kinds):
        single = "," not in k.tone + k.gender and not k.direction
        if k.base not in out and single and k.gender in ("", "man", "woman"):
            roles[k.base][k.tone, k.gender] = number
    chosen: set[int] = set()
    for base, cells in sorted(roles.items()):
        tones, genders = {t for t, _ in cells}, {g for _, g in cells}
        if len(cells) < 12 or len(cells) != len(tones) * len(genders):
            continue
        toned = sorted((c for c in cells if c[0] and c[1]), key=lambda c: order(f"{base} {c}"))
        first = toned[0]
        second = next(c for c in toned if c[0] != first[0] and c[1] != first[1])
        chosen.update((cells[first], cells[second]))
    return chosen


def version(font: Path) -> str:
    """What a TrueType file says of its version: entry 5 of its `name` table (OpenType specification)."""
    content = font.read_bytes()
    tables = (struct.unpack_from(">4sLLL", content, 12 + 16 * k) for k in range(*struct.unpack_from(">H", content, 4)))
    start = next(offset for tag, _, offset, _ in tables if tag == b"name")
    _, count, strings = struct.unpack_from(">HHH", content, start)
    for k in range(count):
        platform, _, _, name, length, offset = struct.unpack_from(">6H", content, start + 6 + 12 * k)
        if name == 5:
            text = content[start + strings + offset :][:length]
            return text.decode("latin-1" if platform == 1 else "utf-16-be")
    raise ValueError(f"{font} does not say its version")


def main() -> None:
    """Render, check, merge, split, pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
    parser.add_argument("--list", type=Path, default=Path("/usr/share/unicode/emoji/emoji-test.txt"))
    parser.add_argument("--out", type=Path, default=Path("src/sfumato/data/sheet"))
    arguments = parser.parse_args()
    font = Font(arguments.font)
    every = list(listed(arguments.list))
    tried = [(g, *font.draw(g.text)) for g in every]
    glyphs = [g for g, _, fault in tried if not fault]
    pictures = np.stack([np.asarray(resized(picture, SIZE)) for _, picture, fault in tried if not fault])
    groups = merged(glyphs, pictures)
    kept = [group[0] for group in groups]
    kinds = [kind(glyphs[n].text) for n in kept]
    out = held_out(clusters([k.base for k in kinds], pictures[kept]))
    together = combinations(kinds, out)
    rows = []
    for number, (group, k) in enumerate(zip(groups, kinds, strict=True)):
        g = glyphs[group[0]]
        part = "held_out" if k.base in out else "combinations" if number in together else "train"
        captions = [glyphs[n].name for n in group]
        rows.append([g.code, captions, g.group, g.subgroup, *k, part])
    pack(arguments.out, pictures[kept], rows, arguments)
    dropped = dict(Counter(fault for _, _, fault in tried if fault))
    print(f"{len(every)} listed; dropped {dropped}; {len(glyphs) - len(kept)} merged")
    print(f"{len(rows)} pictures of {len({k.base for k in kinds})} bases; parts {dict(Counter(r[-1] for r in rows))}")


def pack(folder: Path, pictures: Pictures, rows: list[list[Any]], arguments: argparse.Namespace) -> None:
    """Write the sheet (lossless WebP, so that every machine decodes the same pixels) and the JSON beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = np.where(pictures > 255 - STEP, 255, (pictures.astype(np.int32) + STEP // 2) // STEP * STEP).astype(
        np.uint8
    )
    blank = np.full((-len(pictures) % COLUMNS, SIZE, SIZE, 3), 255, np.uint8)
    tiles = np.concatenate([pictures, blank]).reshape(-1, COLUMNS, SIZE, SIZE, 3)
    sheet = Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * SIZE, 3))
    sheet.save(folder / "emoji.webp", lossless=True, quality=100, method=6)
    facts = {
        "size": SIZE,
        "columns": COLUMNS,
        "font": " ".join(map(str, ImageFont.truetype(str(arguments.font), STRIKE).getname())),
        "font_version": version(arguments.font),
        "font_sha256": hashlib.sha256(arguments.font.read_bytes()).hexdigest(),
        "unicode": next(
            line.split(":")[1].strip()
            for line in arguments.list.read_text().splitlines()
            if line.startswith("# Version")
        ),
        "sheet_sha256": hashlib.sha256((folder / "emoji.webp").read_bytes()).hexdigest(),
        "columns_of_emoji": [*Emoji._fields],
    }
    body = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps(facts, ensure_ascii=False, indent=1)[:-2]
    (folder / "emoji.json").write_text(f'{head},\n "emoji": [\n{body}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
