"""Emoji as pictures: which there are, what each is a variant of, and drawing one from a colour font, checked.

A sequence such as «woman, joiner, fire engine» is one picture only if the text layout joins it: Pillow needs Raqm for
that and Raqm needs FriBiDi, and without either the parts are silently drawn side by side. So every glyph is checked
before it is used: it has the advance of one emoji, it is not blank, and it is not the font's sign for a missing one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

FONT = "NotoColorEmoji.ttf"
FOLDERS = ("~/.local/share/fonts", "~/.fonts", "~/Library/Fonts", "/usr/local/share/fonts", "/usr/share/fonts")
STRIKE, CANVAS = 109, 136  # the one size of Noto Color Emoji's bitmaps, and the square that holds them
TONES = {
    0x1F3FB: "light",
    0x1F3FC: "medium-light",
    0x1F3FD: "medium",
    0x1F3FE: "medium-dark",
    0x1F3FF: "dark",
}
JOINER, VARIATION, RIGHT = 0x200D, 0xFE0F, 0x27A1
QUOTES = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}  # as a keyboard types them
SIGNS = {0x2640: "woman", 0x2642: "man"}
PERSON, CHILD, FAMILY = 0x1F9D1, 0x1F9D2, 0x1F46A
# The person that stands for each gendered one, so that the variants of one role share a base.
PERSONS = {
    0x1F468: (PERSON, "man"),
    0x1F469: (PERSON, "woman"),
    0x1F466: (CHILD, "boy"),
    0x1F467: (CHILD, "girl"),
    0x1F474: (0x1F9D3, "man"),
    0x1F475: (0x1F9D3, "woman"),
    0x1F478: (0x1FAC5, "woman"),  # princess, prince: person with crown
    0x1F934: (0x1FAC5, "man"),
    0x1F930: (0x1FAC4, "woman"),  # pregnant woman, pregnant man: pregnant person
    0x1FAC3: (0x1FAC4, "man"),
    0x1F57A: (0x1F483, "man"),  # man dancing, woman dancing
    0x1F483: (0x1F483, "woman"),
    0x1F385: (0x1F385, "man"),  # Santa Claus, Mrs. Claus
    0x1F936: (0x1F385, "woman"),
    0x1F46B: (0x1F46B, "woman,man"),  # holding hands
    0x1F46C: (0x1F46B, "man"),
    0x1F46D: (0x1F46B, "woman"),
}
# Sequences of the same meaning as one code point: couples, Mx Claus, a handshake of two tones.
SAME = {
    (PERSON, 0x1F91D, PERSON): 0x1F46B,
    (PERSON, 0x2764, 0x1F48B, PERSON): 0x1F48F,
    (PERSON, 0x2764, PERSON): 0x1F491,
    (PERSON, 0x1F384): 0x1F385,
    (0x1FAF1, 0x1FAF2): 0x1F91D,
}


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
    tone: str = ""  # several are joined by a comma, in the picture's order
    gender: str = ""  # "man", "woman", "boy", "girl", several joined by a comma; "" for a person or a thing
    direction: str = ""  # "right" where it faces against its habit


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
            yield Glyph(text, name.translate(QUOTES), group, subgroup)


def kind(text: str) -> Kind:
    """The base of a sequence and what was taken away from it: skin tones, genders and direction."""
    points = [ord(c) for c in text if ord(c) not in (JOINER, VARIATION)]
    tones = [TONES[p] for p in points if p in TONES]
    plain = [p for p in points if p not in TONES]
    facing = len(plain) > 1 and plain[-1] == RIGHT
    plain = plain[:-1] if facing else plain
    signs = [p for p in plain[1:] if p in SIGNS]  # alone, the sign of a gender is an emoji of its own
    genders = [PERSONS[p][1] for p in plain if p in PERSONS] + [SIGNS[p] for p in signs]
    parts = tuple(PERSONS[p][0] if p in PERSONS else p for p in plain if p not in signs)
    if len(parts) > 1 and set(parts) <= {PERSON, CHILD}:
        parts = (FAMILY,)
    base = "-".join(f"{p:x}" for p in ((SAME[parts],) if parts in SAME else parts))
    return Kind(base, _listed(tones), _listed(genders), "right" if facing else "")


def _listed(names: list[str]) -> str:
    return ",".join(dict.fromkeys(names))


def installed() -> Path:
    """Noto Color Emoji where this machine's system or user keeps it. Raises `ValueError` with what to install."""
    for folder in FOLDERS:
        for path in Path(folder).expanduser().rglob(FONT):
            return path
    raise ValueError(
        f"{FONT} is not installed, which sizes other than 8, 16, 32 and 64 are drawn with; install it (Debian: "
        "fonts-noto-color-emoji), or give the path of a colour emoji font as `font`"
    )


class Font:
    """A colour emoji font, drawn through Raqm and FriBiDi. Raises `ValueError` with what to install."""

    def __init__(self, path: Path) -> None:
        for feature, package in (("raqm", "libraqm0"), ("fribidi", "libfribidi0")):
            if not features.check(feature):
                raise ValueError(
                    f"drawing emoji needs Pillow with {feature}, without which sequences fall apart into their pieces; "
                    f"install it (Debian: {package}), or use the emoji that ship, at size 8, 16, 32 or 64 and without `font`"
                )
        if not path.is_file():
            raise ValueError(
                f"there is no font {path}; install one (Debian: fonts-noto-color-emoji) and give its path as `font`, "
                "or use the emoji that ship, at size 8, 16, 32 or 64 and without `font`"
            )
        try:
            self.font = ImageFont.truetype(str(path), STRIKE, layout_engine=ImageFont.Layout.RAQM)
        except OSError as error:
            raise ValueError(
                f"{path} is not a font with bitmaps of {STRIKE} pixels ({error}); use NotoColorEmoji.ttf"
            ) from None
        self.advance = self.font.getlength("\U0001f600")
        self.missing = self._drawn("\U0010fffe").tobytes()

    def _drawn(self, text: str) -> Image.Image:
        canvas = Image.new("RGB", (CANVAS, CANVAS), "white")
        ImageDraw.Draw(canvas).text((0, 4), text, font=self.font, embedded_color=True)
        return canvas

    def draw(self, text: str) -> tuple[Image.Image, str]:
        """The glyph on white, `CANVAS` pixels a side, and why it is not one good picture; "" where it is."""
        picture = self._drawn(text)
        if self.font.getlength(text) != self.advance:
            return picture, "does not join"
        if picture.getextrema() == ((255, 255),) * 3:
            return picture, "blank"
        return picture, "missing" if picture.tobytes() == self.missing else ""


def resized(picture: Image.Image, size: int) -> Image.Image:
    """A drawn glyph at `size` pixels a side."""
    return picture.resize((size, size), Image.Resampling.LANCZOS)
