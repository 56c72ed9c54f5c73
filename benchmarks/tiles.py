"""Squares of photographs of any size, for a set of small pictures as sharp as large ones are.

    python benchmarks/tiles.py PHOTOS... --out TILES [--side 128 --each 16]

Each photograph is cut at its own size, at half of it and at a quarter, as long as it is 300 to 1,500 pixels at its shorter side
there (larger ones are mostly soft, smaller ones have too few squares). Of the squares of a fixed grid the plainer half goes,
skies for the most part, and of the others so many of each photograph are drawn by its name.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SHORTER = (300, 1500)


def sizes(picture: Image.Image) -> list[Image.Image]:
    """The photograph at its own size, half and a quarter of it, where that is within bounds."""
    found = []
    for divisor in (1, 2, 4):
        sides = (picture.width // divisor, picture.height // divisor)
        if SHORTER[0] <= min(sides) <= SHORTER[1]:
            found.append(picture if divisor == 1 else picture.resize(sides, Image.Resampling.LANCZOS))
    return found


def squares(picture: Image.Image, side: int) -> list[Image.Image]:
    """All squares of a grid, centred."""
    columns, rows = picture.width // side, picture.height // side
    x, y = (picture.width - columns * side) // 2, (picture.height - rows * side) // 2
    corners = [(x + side * c, y + side * r) for r in range(rows) for c in range(columns)]
    return [picture.crop((a, b, a + side, b + side)) for a, b in corners]


def detail(square: Image.Image) -> float:
    """What is lost of its brightness where it is shrunk by four: root of the mean square, of 255."""
    gray = square.convert("L")
    small = gray.resize((gray.width // 4, gray.height // 4), Image.Resampling.BICUBIC)
    back = small.resize(gray.size, Image.Resampling.BICUBIC)
    return float(numpy.square(numpy.asarray(gray, float) - numpy.asarray(back, float)).mean() ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="+", help="folders, with all that lies in them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--each", type=int, default=16)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    files = [f for folder in asked.photos for f in sorted(folder.rglob("*")) if f.suffix.lower() in SUFFIXES]
    photographs = count = 0
    for number, file in enumerate(files):
        with Image.open(file) as opened:
            if opened.mode != "RGB" or min(opened.size) < SHORTER[0]:
                continue
            found = [(detail(s), s) for size in sizes(opened.convert("RGB")) for s in squares(size, asked.side)]
        found.sort(key=lambda one: -one[0])
        kept = found[: (len(found) + 1) // 2]
        kept = random.Random(file.name).sample(kept, min(asked.each, len(kept)))
        for k, (_, square) in enumerate(kept):
            square.save(asked.out / f"{number:05d}-{k:02d}.png")
        photographs, count = photographs + 1, count + len(kept)
    print(f"{count} squares of {photographs} photographs in {asked.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
