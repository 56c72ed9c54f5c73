"""Emoji as pictures: which there are, what each is a variant of, and drawing one from a colour font, checked.

A sequence such as «woman, joiner, fire engine» is one picture only if the text layout joins it: Pillow needs Raqm for
that and Raqm needs FriBiDi, and without either the parts are silently drawn side by side. So every glyph is checked
before it is used: it has the advance of one emoji, it is not blank, and it is not the font's sign for a missing one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

STRIKE, CANVAS = 109, 136  # the one size of Noto Color Emoji's bitmaps, and the square that holds them
TONES = {
    0x1F3FB: "light",
    0x1F3FC: "medium-light",
    0x1F3FD: "medium",
    0x1F3FE: "medium-dark",
    0x1F3FF: "dark",
}
JOINER, VARIATION, RIGHT = 0x200D, 0xFE0F, 0x27A1
SIGNS = {0x2640: "woman", 0x2642: "man"}
# The person that stands for each gendered one, so that the variants of one role share a base.
PERSONS = {
    0x1F468: 0x1F9D1,
    0x1F469: 0x1F9D1,
    0x1F466: 0x1F9D2,
    0x1F467: 0x1F9D2,
    0x1F474: 0x1F9D3,
    0x1F475: 0x1F9D3,
}
SAME = {
    0x1F930: 0x1FAC4,
    0x1FAC3: 0x1FAC4,
    0x1F57A: 0x1F483,
    0x1F936: 0x1F385,
    0x1F478: 0x1FAC5,
    0x1F934: 0x1FAC5,
}
GENDERS = {
    0x1F468: "man",
    0x1F469: "woman",
    0x1F466: "boy",
    0x1F467: "girl",
    0x1F474: "man",
    0x1F475: "woman",
}
COUPLES = {
    0x1F46B: (0x1F91D,),
    0x1F46C: (0x1F91D,),
    0x1F46D: (0x1F91D,),
    0x1F48F: (0x2764, 0x1F48B),
    0x1F491: (0x2764,),
}
FAMILY = 0x1F46A


class Glyph(NamedTuple):
    """One line of Unicode's emoji-test.txt."""

    text: str
    name: str  # its CLDR short name, lower-cased
    group: str
    subgroup: str

    @property
    def code(self) -> str:
        """The code points in hexadecimal, joined by hyphens."""
        return "-".join(f"{ord(c):x}" for c in self.text)


class Kind(NamedTuple):
    """What a sequence is a variant of."""

    base: str
    tone: str  # "" where it has none; two tones are joined by a comma
    gender: str  # "man", "woman", "boy", "girl", several joined by a comma, or "" for a person or a thing


def listed(path: Path) -> Iterator[Glyph]:
    """The fully-qualified emoji of an emoji-test.txt, in its order."""
    group = subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.split(":", 1)[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        elif "; fully-qualified" in line:
            codes, rest = line.split(";", 1)
            text = "".join(chr(int(c, 16)) for c in codes.split())
            name = rest.split("#", 1)[1].split(maxsplit=2)[2].strip().lower()
            yield Glyph(text, name.translate({0x2019: "'", 0x201C: None, 0x201D: None}), group, subgroup)


def kind(text: str) -> Kind:
    """The base, tone and gender of a sequence: its skin tones, genders and direction taken away."""
    points = [ord(c) for c in text]
    tones = list(dict.fromkeys(TONES[p] for p in points if p in TONES))
    genders = list(dict.fromkeys({**GENDERS, **SIGNS}[p] for p in points if p in GENDERS or p in SIGNS))
    plain = [p for p in points if p not in TONES and p != VARIATION]
    parts = [part for part in _split(plain) if part not in ([p] for p in (*SIGNS, RIGHT))]
    kept = [tuple(SAME.get(PERSONS.get(p, p), PERSONS.get(p, p)) for p in part) for part in parts]
    flat = [p for part in kept for p in part]
    people = {0x1F9D1, 0x1F9D2}
    if flat == [FAMILY] or (len(flat) > 1 and set(flat) <= people):
        base = [FAMILY]
    elif len(flat) == 1 and flat[0] in COUPLES:
        base = [0x1F9D1, *COUPLES[flat[0]], 0x1F9D1]
    else:
        base = flat
    return Kind("-".join(f"{p:x}" for p in base), ",".join(tones), ",".join(genders))


def _split(points: list[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for point in points:
        if point == JOINER:
            parts.append([])
        else:
            parts[-1].append(point)
    return parts


class Font:
    """A colour emoji font, drawn through Raqm and FriBiDi. Raises `ValueError` with what to install."""

    def __init__(self, path: Path) -> None:
        for feature, package in (("raqm", "libraqm0"), ("fribidi", "libfribidi0")):
            if not features.check(feature):
                raise ValueError(
                    f"drawing emoji needs Pillow with {feature}, without which sequences fall apart into their pieces; "
                    f"install it (Debian: {package}), or use the emoji that ship, at size 64 and without `font`"
                )
        if not path.is_file():
            raise ValueError(
                f"there is no font {path}; install one (Debian: fonts-noto-color-emoji) and give its path as `font`, "
                "or use the emoji that ship, at size 64 and without `font`"
            )
        try:
            self.font = ImageFont.truetype(str(path), STRIKE, layout_engine=ImageFont.Layout.RAQM)
        except OSError as error:
            raise ValueError(
                f"{path} is not a font with bitmaps of {STRIKE} pixels ({error}); use NotoColorEmoji.ttf"
            ) from None
        self.advance = self.font.getlength("\U0001f600")
        self.missing = self._draw("\U0010fffe").tobytes()

    def _draw(self, text: str) -> Image.Image:
        canvas = Image.new("RGB", (CANVAS, CANVAS), "white")
        ImageDraw.Draw(canvas).text((0, 4), text, font=self.font, embedded_color=True)
        return canvas

    def fault(self, text: str) -> str:
        """Why this sequence is not one good picture in this font; "" where it is."""
        if self.font.getlength(text) != self.advance:
            return "does not join"
        picture = self._draw(text)
        if all(low == 255 for low, _ in picture.getextrema()):  # type: ignore[misc]
            return "blank"
        return "missing" if picture.tobytes() == self.missing else ""

    def picture(self, text: str, size: int) -> Image.Image:
        """The glyph on white, `size` pixels a side."""
        return self._draw(text).resize((size, size), Image.Resampling.LANCZOS)
