"""What a network will see of a data set: a contact sheet with boxes and maps drawn in, and what was found and changed.

Most trainings that fail, fail here: upright pictures that lie on their side, captions of other pictures, classes of one
picture. Looking costs a minute.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sfumato import image
from sfumato.data import loader
from sfumato.data.base import Part

CELL, COLUMNS, SHOWN = 128, 8, 40
MAPPED = 0.45  # how much of a map's colour lies over its picture


def sheet(part: Part, seed: int = 0, flip: float = 0.0, count: int = SHOWN) -> Image.Image:
    """The first `count` pictures that training with this seed is shown, mirrored where it would, with what is said of them."""
    batch = loader.batch(part, seed, range(count), flip)
    flips = loader.plan(part, seed, range(count), flip).flips
    cells = []
    for k, picture in enumerate(image.to_pil(batch.images)):
        said = {name: values[k] for name, values in batch.fields.items()}
        cells.append(_cell(picture, said, flips[k], part))
    rows = -(-len(cells) // COLUMNS)
    whole = Image.new("RGB", (COLUMNS * (CELL + 4), rows * (CELL + 26)), "white")
    for k, cell in enumerate(cells):
        whole.paste(cell, (k % COLUMNS * (CELL + 4), k // COLUMNS * (CELL + 26)))
    return whole


def _cell(picture: Image.Image, said: dict[str, Any], flipped: bool, part: Part) -> Image.Image:
    """One picture with its boxes, its map over it, and its words below."""
    shown = image.over_white(picture).convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST)
    if (numbers := said.get("map")) is not None:
        colours = Image.fromarray(hues(np.asarray(numbers))).resize((CELL, CELL), Image.Resampling.NEAREST)
        shown = Image.blend(shown, colours.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else colours, MAPPED)
    pen = ImageDraw.Draw(shown)
    for label, x0, y0, x1, y1 in said.get("boxes") or ():
        x0, x1 = (1 - x1, 1 - x0) if flipped else (x0, x1)
        pen.rectangle([x0 * CELL, y0 * CELL, x1 * CELL - 1, y1 * CELL - 1], outline=(230, 30, 30))
        pen.text((x0 * CELL + 2, y0 * CELL), str(label), fill=(230, 30, 30))
    cell = Image.new("RGB", (CELL, CELL + 22), "white")
    cell.paste(shown, (0, 0))
    words = said.get("caption") or (part.labels[said["label"]] if part.labels and said.get("label") is not None else "")
    ImageDraw.Draw(cell).text((0, CELL + 2), str(words)[:24] + ("  mirrored" if flipped else ""), fill=(60, 60, 60))
    return cell


def hues(numbers: "np.ndarray[Any, Any]") -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Class numbers (H, W) -> colours (H, W, 3) uint8 that differ from class to class."""
    angle = np.asarray(numbers, np.float32)[:, :, None] * 2.399963 + np.array([0.0, 2.0944, 4.1888], np.float32)
    found: np.ndarray[Any, np.dtype[np.uint8]] = (127.5 + 110 * np.cos(angle)).astype(np.uint8)
    return found


def facts(part: Part) -> list[tuple[str, str]]:
    """What a part holds, as pairs of a name and a text."""
    count = len(part)
    rows = [("pictures", f"{count:,} of {part.channels} channels, {part.size}x{part.size} as the network sees them")]
    known = [part.fields(k) for k in range(0, count, max(count // 2000, 1))]
    if part.labels:
        counts = Counter(part.labels[f["label"]] for f in known if f.get("label") is not None)
        told = ", ".join(f"{name} {n:,}" for name, n in counts.most_common(12))
        rows.append(("classes", f"{len(part.labels)}: {told}{', ...' if len(counts) > 12 else ''}"))
    for field in ("caption", "boxes", "map", "pair"):
        having = sum(1 for f in known if f.get(field) is not None and len(f[field]))
        if having:
            named = part.class_names.get(field, ())
            rows.append(
                (field, f"{100 * having / len(known):.0f} %" + (f" ({', '.join(named[:12])})" if named else ""))
            )
    if changed := conversions([p for k in range(count) if isinstance(p := part.stored(k), Path)]):
        rows.append(("converted", ", ".join(f"{name}: {n:,}" for name, n in changed.most_common())))
    return rows


def conversions(files: list[Path]) -> "Counter[str]":
    """How many pictures are changed on the way, by what is done to them."""
    found: Counter[str] = Counter()
    for path in dict.fromkeys(files):
        if path.suffix.lower() == ".npy":
            continue
        with Image.open(path) as opened:
            cut = ";16" in str(getattr(opened, "tile", ()))  # empty as soon as it is decoded, which reading EXIF may do
            found["colour or transparency of 16 bits, cut to 8"] += cut and opened.mode not in image.DEEP
            found["turned as their EXIF says"] += opened.getexif().get(0x0112, 1) not in (0, 1)
            profile = opened.info.get("icc_profile")
            found["from another colour profile to sRGB"] += (
                bool(profile) and opened.mode not in image.DEEP and image.recoloured(profile, opened.mode)
            )
            found["transparent, seen over white"] += (
                opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info
            )
            found["deeper than 8 bits"] += opened.mode in image.DEEP
            found["first frame of an animation"] += getattr(opened, "n_frames", 1) > 1
            found["cut to their centred square"] += opened.width != opened.height
    return +found
