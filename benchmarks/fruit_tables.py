"""Photographs of several fruits on a table, with COCO boxes: a set for `photo-layout`, of cut-outs that do not touch.

    python benchmarks/fruit_tables.py FRUITS --out TABLES [--count 6000 --size 64]

FRUITS are photographs of Fruits-360 on white, named VARIETY_....jpg. Of fifteen varieties that people tell apart, one to four
fruits stand on a pale ground, 16 to 36 pixels of 64 large; white lets the ground through. Held-out tables (a tenth as many)
show photographs that the others do not: the last tenth of each variety's by name, which are the same fruits from other sides.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

VARIETIES = {
    "Apple-Golden-2": "golden apple", "Apple-Braeburn-1": "braeburn apple", "Apple-Pink-Lady-1": "pink lady apple",
    "Apple-23": "apple core", "Apple-12": "bruised apple", "Apple-Red-Yellow-2": "russet pear apple",
    "Cherry-Wax-Black-1": "black cherry", "Cherry-Rainier-2": "rainier cherry", "Cherry-Wax-Yellow-1": "yellow cherry",
    "Cherry-Sour-1": "sour cherry", "Tomato-11": "green tomato", "Tomato-Cherry-Orange-1": "orange tomato",
    "Tomato-2": "plum tomato", "Tomato-3": "beef tomato", "Tomato-Heart-1": "heart tomato",
}  # fmt: skip
SIDES = (0.25, 0.5625)  # of a fruit's longer side, as shares of the picture
APART = 2  # pixels between two boxes
PALE = 12  # levels below white that still are ground

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def photographs(folder: Path, held_out: bool) -> dict[str, list[Path]]:
    """Files of each variety, those of one part."""
    found = {}
    for variety in VARIETIES:
        files = sorted(folder.rglob(f"{variety}_*.jpg"))
        if not files:
            raise SystemExit(f"{folder} has no photographs of {variety}")
        first = len(files) - max(len(files) // 10, 1)
        found[variety] = files[first:] if held_out else files[:first]
    return found


@cache
def cut(path: Path) -> Image.Image:
    """The fruit, cropped to what is not white."""
    picture = Image.open(path).convert("RGB")
    off = 255 - np.asarray(picture).min(2)
    rows, columns = np.flatnonzero((off > PALE).any(1)), np.flatnonzero((off > PALE).any(0))
    return picture.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def ground(draws: np.random.Generator, size: int) -> np.ndarray:
    """A pale ground (size, size, 3) in [0, 1], a little lighter to one side."""
    colour = draws.uniform(0.84, 0.97) + draws.uniform(-0.04, 0.04, 3)
    angle, places = draws.uniform(0, 2 * np.pi), np.linspace(-1, 1, size)
    slope = places[None] * np.cos(angle) + places[:, None] * np.sin(angle)
    found: np.ndarray = np.clip(colour + draws.uniform(0, 0.04) * slope[..., None], 0, 1)
    return found


def free(box: Box, others: Sequence[Box]) -> bool:
    """Whether a box is apart from all others."""
    x0, y0, x1, y1 = box
    return all(x0 >= b[2] + APART or b[0] >= x1 + APART or y0 >= b[3] + APART or b[1] >= y1 + APART for b in others)


def table(
    known: dict[str, list[Path]], draws: np.random.Generator, size: int
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """One picture and its fruits."""
    pixels, told = ground(draws, size), list[tuple[str, Box]]()
    count, names = int(draws.integers(1, 5)), list(known)
    while len(told) < count:
        if draws.integers(12) == 0:  # a crowd that leaves no room begins anew
            pixels, told = ground(draws, size), []
        variety = names[int(draws.integers(len(names)))]
        fruit = cut(known[variety][int(draws.integers(len(known[variety])))])
        scale = size * draws.uniform(*SIDES) / max(fruit.size)
        wide, high = (max(round(n * scale), 1) for n in fruit.size)
        left, top = int(draws.integers(size - wide + 1)), int(draws.integers(size - high + 1))
        box = (left, top, left + wide, top + high)
        if free(box, [b for _, b in told]):
            small = np.asarray(fruit.resize((wide, high), Image.Resampling.LANCZOS), float) / 255
            pixels[top : top + high, left : left + wide] *= small
            told.append((variety, box))
    return Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8)), told


def written(known: dict[str, list[Path]], out: Path, count: int, size: int, seed: int) -> None:
    """So many tables, and the boxes of them all as COCO has them: corner, width and height in pixels."""
    if out.is_dir() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty; name another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    numbers = {variety: k + 1 for k, variety in enumerate(VARIETIES)}
    images, annotations = list[dict[str, object]](), list[dict[str, object]]()
    for number in range(count):
        picture, told = table(known, np.random.default_rng([seed, number]), size)
        name = f"{number:05d}.png"
        picture.save(out / name)
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for variety, (x0, y0, x1, y1) in told:
            where = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            annotations.append({"id": len(annotations), "image_id": number, "category_id": numbers[variety], **where})
    categories = [{"id": numbers[variety], "name": name} for variety, name in VARIETIES.items()]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (out / "annotations.json").write_text(json.dumps(whole), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fruits", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--size", type=int, default=64)
    asked = parser.parse_args()
    for part, count in (("train", asked.count), ("val", asked.count // 10)):
        written(
            photographs(asked.fruits, part == "val"), asked.out / part, count, asked.size, 0 if part == "train" else 1
        )
    print(f"{asked.count} tables to train on and {asked.count // 10} held out in {asked.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
