"""What a network will see of a data set: a contact sheet with boxes and maps drawn in, and what was found and changed.

Most trainings that fail, fail here: upright pictures that lie on their side, captions of other pictures, classes of one
picture. Looking costs a minute.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sfumato import image
from sfumato.data import loader
from sfumato.data.base import Part
from sfumato.image import Stored

CELL, COLUMNS, SHOWN = 128, 8, 40
LINES, LINE = 3, 14  # of the words below a picture, and pixels from one to the next
WORDS = LINES * LINE + 4
RED, PLATE = (210, 20, 20), 11  # of boxes, and pixels of their names' height
LOOKED = 20_000  # pictures whose files are looked at for what is changed on the way
MAPPED = 0.45  # how much of a map's colour lies over its picture
CLEAR, TURNED, FIRST = "transparent, seen over white", "turned as EXIF says", "first frame of an animation"
DAMAGED = "damaged, where training would stop"
SQUARE = "cut to their centred square"  # which data are, and what is handed in is not
UNSEEN = "transparent, read as if it were not"  # of a map
BESIDE = ("pair", "lowres", "masked")  # fields that are pictures, each drawn to the right of its own


def sheet(part: Part, seed: int = 0, flip: float = 0.0, count: int = SHOWN) -> Image.Image:
    """The first `count` pictures that training with this seed is shown, mirrored where it would, with what is said of them."""
    plan = loader.plan(part, seed, range(count), flip)
    cells = []
    for k, (index, flipped) in enumerate(zip(plan.indices, plan.flips, strict=True)):
        picture = part.image(index).float() / 127.5 - 1.0
        said = {name: values[k] for name, values in plan.fields.items()}
        cells.append(_cell(image.to_pil((picture.flip(-1) if flipped else picture)[None])[0], said, flipped, part))
    wide = max(cell.width for cell in cells) + 4
    columns = max(COLUMNS * (CELL + 4) // wide, 1)
    rows = -(-len(cells) // columns)
    high = CELL + WORDS + 4
    whole = Image.new("RGB", (columns * wide, rows * high), "white")
    for k, cell in enumerate(cells):
        whole.paste(cell, (k % columns * wide, k // columns * high))
    return whole


def _cell(picture: Image.Image, said: dict[str, Any], flipped: bool, part: Part) -> Image.Image:
    """One picture with its boxes, its map over it, what is made of it beside it, and its words below."""
    shown = _scaled(picture)
    if (numbers := said.get("map")) is not None:
        colours = Image.fromarray(hues(np.asarray(numbers))).resize(shown.size, Image.Resampling.NEAREST)
        shown = Image.blend(shown, colours.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else colours, MAPPED)
    pen, taken = ImageDraw.Draw(shown), list[tuple[float, float, float]]()
    for label, x0, y0, x1, y1 in said.get("boxes") or ():
        x0, x1 = (1 - x1, 1 - x0) if flipped else (x0, x1)
        left, upper = x0 * shown.width, y0 * shown.height
        right, lower = max(x1 * shown.width - 1, left), max(y1 * shown.height - 1, upper)
        _plate(pen, str(label), left, (upper - PLATE, lower + 1, upper + 1, lower - PLATE), shown.size, taken)
        pen.rectangle([left, upper, right, lower], outline=RED)
    several = [shown, *(_other(said[field], flipped) for field in BESIDE if said.get(field) is not None)]
    cell = Image.new("RGB", (len(several) * (CELL + 2) - 2, CELL + WORDS), "white")
    for k, one in enumerate(several):
        cell.paste(one, (k * (CELL + 2), 0))
    words = str(said.get("caption") or ", ".join(_named(part, said.get("label"))))
    font, pen = ImageFont.load_default(11), ImageDraw.Draw(cell)
    for k, line in enumerate(wrapped(("(mirrored) " if flipped else "") + words, cell.width, font)):
        pen.text((0, CELL + 2 + k * LINE), line, fill=(60, 60, 60), font=font)
    return cell


def _plate(
    pen: ImageDraw.ImageDraw,
    words: str,
    left: float,
    rows: Sequence[float],
    size: tuple[int, int],
    taken: list[tuple[float, float, float]],
) -> None:
    """A box's name in red on white, in the first of these rows where it is inside and on no other name, as far as there is
    one, and moved left so that as much as can be of it is seen; it joins those `taken`: left, right, top."""
    font = ImageFont.load_default(10)
    wide = font.getlength(words) + 2
    x = max(min(left, size[0] - wide), 0)

    def free(y: float) -> bool:
        apart = all(x >= right or x + wide <= begin or abs(y - top) >= PLATE for begin, right, top in taken)
        return 0 <= y <= size[1] - PLATE and apart

    y = next((row for row in rows if free(row)), max(rows[0], 0))
    taken.append((x, x + wide, y))
    pen.rectangle([x, y, x + wide - 1, y + PLATE - 1], fill="white")
    pen.text((x + 1, y - 1), words, fill=RED, font=font)


def wrapped(words: str, width: int, font: Any) -> list[str]:
    """Words as at most `LINES` lines of a width in pixels; what does not fit ends with dots."""
    lines, rest = list[str](), " ".join(words.split())
    while rest and len(lines) < LINES:
        fits = next((n for n in range(len(rest), 1, -1) if font.getlength(rest[:n]) <= width), 1)
        if fits < len(rest) and len(lines) == LINES - 1:
            while fits and font.getlength(f"{rest[:fits].rstrip()}…") > width:
                fits -= 1
            return [*lines, f"{rest[:fits].rstrip()}…"]
        if fits < len(rest) and rest[fits] != " " and (space := rest.rfind(" ", 1, fits)) > 0:
            fits = space
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    return lines


def _scaled(picture: Image.Image) -> Image.Image:
    """The picture, its longer side as long as a cell's."""
    wide, high = (max(round(CELL * n / max(picture.size)), 1) for n in picture.size)
    return image.over_white(picture).convert("RGB").resize((wide, high), Image.Resampling.NEAREST)


def _other(value: Any, flipped: bool) -> Image.Image:
    """A picture as conditions are given it, or one with its mask (H, W), whose hole is gray."""
    whole, hole = value if isinstance(value, tuple) else (value, None)
    shown: Tensor = whole if whole.is_floating_point() else whole.float() / 127.5 - 1.0
    shown = shown if hole is None else shown * (1 - hole)
    return _scaled(image.to_pil((shown.flip(-1) if flipped else shown)[None])[0])


def _named(part: Part, label: Any) -> list[str]:
    """The names of a picture's classes: of none, one or several."""
    numbers = label if isinstance(label, list) else [] if label is None else [label]
    return [part.labels[k] for k in numbers] if part.labels else []


def hues(numbers: "np.ndarray[Any, Any]") -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Class numbers (H, W) -> colours (H, W, 3) uint8 that differ from class to class."""
    angle = np.asarray(numbers, np.float32)[:, :, None] * 2.399963 + np.array([0.0, 2.0944, 4.1888], np.float32)
    found: np.ndarray[Any, np.dtype[np.uint8]] = (127.5 + 110 * np.cos(angle)).astype(np.uint8)
    return found


def facts(part: Part) -> list[tuple[str, str]]:
    """What a part holds, as pairs of a name and a text."""
    count = len(part)
    seen = f"{part.size}x{part.size}" if part.shapes is None else "in shapes of their own"
    rows = [("pictures", f"{count:,} of {part.channels} channels, {seen} as the network sees them")]
    if part.shapes is not None:
        shapes = Counter(part.shapes).most_common()
        rows.append(("shapes", ", ".join(f"{w}x{h} {n:,}" for (h, w), n in shapes)))
    looked, counts, having = range(0, count, max(count // 2000, 1)), Counter[str](), Counter[str]()
    for k in looked:  # one after the other: maps and pairs are large
        said = part.fields(k)
        counts.update(_named(part, said.get("label")))
        having.update(f for f in ("caption", "boxes", "map", "pair") if said.get(f) is not None and len(said[f]))
    if part.labels:
        told = ", ".join(f"{name} {n:,}" for name, n in counts.most_common(12))
        rows.append(("classes", f"{len(part.labels)}: {told}{', ...' if len(counts) > 12 else ''}"))
    for field in ("caption", "boxes", "map", "pair"):
        if having[field]:
            named = part.class_names.get(field, ())
            known = f" ({', '.join(named[:12])}{', ...' if len(named) > 12 else ''})" if named else ""
            rows.append((field, f"{100 * having[field] / len(looked):.0f} %{known}"))
    if part.derivations:
        rows.append(("made as they are shown", ", ".join(derive.field for derive in part.derivations)))
    if alike := part.alike():
        rows.append(("look alike", alike))
    return [*rows, *_converted(part)]


def _converted(part: Part) -> Iterator[tuple[str, str]]:
    """What is changed on the way of a part's pictures, and of the maps and pairs beside them."""
    places = range(0, len(part), max(-(-len(part) // LOOKED), 1))
    among = "" if len(places) == len(part) else f" (of {len(places):,} that were looked at)"
    sources: dict[str, list[Path | Stored | None]] = {"converted": [part.stored(k) for k in places]}
    for k in places:
        for field, path in part.besides(k).items():
            sources.setdefault(f"converted, {field}", []).append(path)
    for title, several in sources.items():
        changed = conversions(source for source in several if source is not None)
        if part.shapes is not None:  # which are told themselves
            changed.pop(SQUARE, None)
        if told := noticed(changed, title.removeprefix("converted, "), part.channels):
            yield title, ", ".join(f"{name}: {n:,}" for name, n in told.most_common()) + among


def noticed(changed: Mapping[str, int], field: str, channels: int) -> "Counter[str]":
    """What of these changes is done to a picture of so many channels, or to what a `map` holds."""
    if field == "map":
        return Counter(
            {UNSEEN if n == CLEAR else n: count for n, count in changed.items() if n in (CLEAR, TURNED, FIRST)}
        )
    return Counter({n: count for n, count in changed.items() if n != CLEAR or channels != 4})


def conversions(sources: Iterable[Path | Stored]) -> "Counter[str]":
    """How many pictures are changed on the way, by what is done to them; each file or row counts once."""
    found, seen = Counter[str](), set[str]()
    for source in sources:
        if str(source) in seen or image.arrayed(source):
            continue
        seen.add(str(source))
        try:
            with Image.open(io.BytesIO(source.content) if isinstance(source, Stored) else source) as opened:
                found.update(changes(opened))
        except Exception:  # decoders raise anything; of a table: a folder's were tried on opening
            found[DAMAGED] += 1
    return found


def changes(opened: Image.Image) -> list[str]:
    """What is done to an opened picture. One with an alpha channel counts as transparent, whatever that holds."""
    cut = ";16" in str(getattr(opened, "tile", ()))  # empty as soon as it is decoded, which reading EXIF may do
    profile, deep = opened.info.get("icc_profile"), opened.mode in image.DEEP
    told = {
        "colour or transparency of 16 bits, cut to 8": cut and not deep,
        TURNED: opened.getexif().get(0x0112, 1) not in (0, 1),
        "from another colour profile to sRGB": bool(profile) and not deep and image.recoloured(profile, opened.mode),
        f"{opened.mode} made RGB": opened.mode in ("CMYK", "YCbCr", "LAB", "HSV") and not profile,
        CLEAR: opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info,
        "of more than 8 bits, which are kept": deep,
        "colour profile of more than 8 bits, left out": deep and bool(profile),
        FIRST: getattr(opened, "n_frames", 1) > 1,
        SQUARE: opened.width != opened.height,
    }
    return [name for name, done in told.items() if done]
