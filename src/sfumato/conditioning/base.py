"""The three doors by which a condition enters a backbone, and what a conditioner is.

`vector` joins the time embedding, `tokens` are attended to with a mask, `image` is laid beside the latent. A conditioner
declares which it uses and how wide, and has a learned null value for each: classifier-free guidance (Ho & Salimans,
2022) needs one that means «nothing was said», which is not the same as an empty text.

What a conditioner must know besides its values is a `Setting`: the latent's grid, which an image condition fills, the
window of the canvas that is worked on, and the randomness of what it does in training.
"""

import difflib
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato import streams
from sfumato.config import Choice
from sfumato.windows import Window


@dataclass(frozen=True)
class Conditions:
    """Conditions of B examples; None where a door is not used."""

    vector: Tensor | None = None  # (B, V)
    tokens: Tensor | None = None  # (B, N, W)
    mask: Tensor | None = None  # (B, N), True where a token counts
    image: Tensor | None = None  # (B, K, h, w)

    def parts(self) -> tuple[Tensor | None, ...]:
        """The four fields in order."""
        return self.vector, self.tokens, self.mask, self.image


def join(several: Sequence[Conditions]) -> Conditions:
    """Conditions of several batches as one batch; token rows of different lengths are padded and masked."""
    longest = max((c.tokens.shape[1] for c in several if c.tokens is not None), default=0)
    padded = [_pad(c, longest) for c in several]
    columns = zip(*(c.parts() for c in padded), strict=True)
    return Conditions(*(None if any(p is None for p in column) else torch.cat(column) for column in columns))


def _pad(c: Conditions, length: int) -> Conditions:
    if c.tokens is None or c.mask is None or c.tokens.shape[1] == length:
        return c
    extra = length - c.tokens.shape[1]
    tokens, mask = nn.functional.pad(c.tokens, (0, 0, 0, extra)), nn.functional.pad(c.mask, (0, extra))
    return Conditions(c.vector, tokens, mask, c.image)


def choose(keep: Tensor, given: Conditions, otherwise: Conditions) -> Conditions:
    """Row by row, `given` where keep (B,) is True, else `otherwise`."""
    given, otherwise = _same_length(given, otherwise)
    rows: list[Tensor | None] = []
    for a, b in zip(given.parts(), otherwise.parts(), strict=True):
        if a is None or b is None:
            rows.append(None)
        else:
            rows.append(torch.where(keep.reshape(-1, *[1] * (a.ndim - 1)), a, b.to(a.dtype)))
    return Conditions(*rows)


def _same_length(a: Conditions, b: Conditions) -> tuple[Conditions, Conditions]:
    length = max((c.tokens.shape[1] for c in (a, b) if c.tokens is not None), default=0)
    return _pad(a, length), _pad(b, length)


class Sizes(NamedTuple):
    """Widths of the three doors; 0 where one is shut."""

    vector: int = 0
    tokens: int = 0
    image: int = 0


@dataclass(frozen=True)
class Draws:
    """Randomness of a batch, row by row: row k depends on its key (seed, image) and the purpose alone."""

    keys: tuple[tuple[int, int], ...]
    name: str = ""  # of the conditioner that draws, so that two of a kind draw apart

    @classmethod
    def training(cls, seed: int, positions: Sequence[int]) -> "Draws":
        """Those of the examples at these global positions of a run."""
        return cls(tuple((seed, p) for p in positions))

    @classmethod
    def request(cls, seeds: Sequence[int]) -> "Draws":
        """Those of a request's images, each with its own seed."""
        return cls(tuple((s, 0) for s in seeds))

    def pick(self, places: Sequence[int]) -> "Draws":
        """Those of some rows."""
        return replace(self, keys=tuple(self.keys[k] for k in places))

    def named(self, name: str) -> "Draws":
        """Those of one conditioner."""
        return replace(self, name=name)

    def normal(self, row: int, shape: Sequence[int], purpose: str) -> Tensor:
        """Standard normal draws of this shape, float32, on the CPU."""
        seed, image = self.keys[row]
        return streams.normal(shape, seed, f"{purpose}/{self.name}", [image])[0]

    def uniform(self, row: int, purpose: str) -> float:
        """A draw in [0, 1)."""
        seed, image = self.keys[row]
        return float(streams.uniform((), seed, f"{purpose}/{self.name}", [image]))


@dataclass(frozen=True)
class Setting:
    """Where and how conditions are used."""

    size: tuple[int, int]  # (h, w) of the latent, the whole canvas
    draws: Draws
    augment: bool = False  # training: conditions are made worse on purpose where their conditioner does that
    window: Window | None = None  # the part of the canvas that is worked on, in latent places

    def pick(self, places: Sequence[int]) -> "Setting":
        """The setting of some rows."""
        return replace(self, draws=self.draws.pick(places))


class Latents(Protocol):
    """What a conditioner may know of the first stage."""

    @property
    def factor(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def image_channels(self) -> int: ...
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> whitened latents (B, channels, h, w)."""


class Conditioner(nn.Module, ABC):
    """Turns values of one field of the examples (`caption`, `label`, ...) into conditions."""

    sizes: Sizes
    field: str
    dropout: float
    always: bool = False  # it was told in every example of the training: its null means nothing
    beside: str = ""  # a second field: with it `lesson` learns to say what a request left unsaid
    role: ClassVar[str] = ""  # what a request calls what it reads, whatever the field: caption, label, boxes, map, ...
    local: ClassVar[bool] = False  # it tells a window of the canvas in the window's own coordinates
    whole: ClassVar[bool] = False  # saying nothing to it means something, also where it never was dropped in training
    held: ClassVar[bool] = False  # guidance leaves it on both sides: it is given, and not to be amplified

    @abstractmethod
    def forward(self, values: Sequence[Any], setting: Setting) -> Conditions:
        """Conditions of B values; an image covers the whole canvas. Raises `ValueError` for a value it cannot read."""

    @abstractmethod
    def null(self, count: int, setting: Setting) -> Conditions:
        """`count` rows of «nothing was said»."""

    def mirrored(self, value: Any) -> Any:
        """The value of the mirrored picture."""
        return value

    def unknown(self, value: Any) -> Tensor | None:
        """Where the picture is to be made, (1, H, W) in [0, 1], 0 where the value gives it; None where it gives none."""
        return None

    def lesson(self, values: Sequence[Any], beside: Sequence[Any], draws: Draws) -> Tensor:
        """What is added to the loss, (B,), of values and what `beside` says of the same examples."""
        raise TypeError(f"{type(self).__name__} learns nothing beside")

    def imagined(self, beside: Sequence[Any], draws: Draws) -> Sequence[Any]:
        """Values that fit what `beside` says, each of its own draws."""
        raise TypeError(f"{type(self).__name__} imagines nothing")


def crop(conditions: Conditions, window: Window) -> Conditions:
    """The conditions of a window of the canvas: the image is cut, the rest stays (`Bundle.forward` cuts boxes too)."""
    return conditions if conditions.image is None else replace(conditions, image=window.crop(conditions.image))


def index(value: Any, names: Sequence[str], what: str) -> int:
    """The place of a name, or of its number, among `names`. Raises `ValueError` that offers the nearest names."""
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    if isinstance(value, str):
        if value in names:
            return names.index(value)
        offer = f"; nearest: {', '.join(near)}" if (near := nearest(value, names)) else ""
        raise ValueError(f"unknown {what} {value!r}{offer}; the model knows {shown}")
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        raise ValueError(f"a {what} is a name or a number; got {value!r}, the model knows {shown}") from None
    if not 0 <= number < len(names):
        raise ValueError(
            f"{what} {value!r} is out of range: numbers go from 0 to {len(names) - 1}; the model knows {shown}"
        )
    return number


def nearest(word: str, names: Sequence[str], most: int = 3) -> list[str]:
    """The names that look most like a word, however either is capitalised, best first."""
    spelt: dict[str, list[str]] = {}
    for name in names:
        spelt.setdefault(name.casefold(), []).append(name)
    return [name for key in difflib.get_close_matches(word.casefold(), spelt, most, 0.5) for name in spelt[key]][:most]


def different(values: Sequence[Any], field: str) -> list[str]:
    """The different texts of a field over the training part, sorted. An example has a text, several, or None.

    Raises `ValueError` for a value that is no text; empty ones say nothing and are left out.
    """
    found = set()
    for value in values:
        for text in [value] if isinstance(value, str) or value is None else value:
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{field} must be a text that says something; got {text!r}")
            if text is not None and text.strip():
                found.add(text)
    return sorted(found)


def short_enough(texts: Sequence[str], counts: Sequence[int], length: int, field: str, most: int | None = None) -> None:
    """Raise `ValueError` where texts have more tokens than are read: training would stop when one is first shown.

    `counts` are the tokens of each text, `most` what `length` could be at most.
    """
    largest = max(counts, default=0)
    if largest <= length:
        return
    many = sum(count > length for count in counts)
    remedy = "shorten them" if most is not None and largest > most else f"give it `length: {largest}`, or shorten them"
    raise ValueError(
        f"{many} of {len(texts)} different texts of {field!r} are too long: {texts[list(counts).index(largest)][:60]!r}"
        f"... has {largest} tokens and this conditioner reads {length}; {remedy}"
    )


class ConditionerConfig(Choice):
    """The recipe of a conditioner; `kind` is a file of `sfumato/conditioning/`."""

    home: ClassVar[str] = "sfumato.conditioning"
    field: str = ""
    dropout: float = Field(0.1, ge=0, le=1, description="share of the examples that are trained without it")
    always: bool | None = Field(None, description="whether every training example says it, from the data")
    reads: ClassVar[bool] = True  # whether `learn` looks at all values; where not, it is shown the first example's

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["ConditionerConfig", dict[str, str]]:
        """This recipe completed by the training data, and texts to keep beside the weights (a tokenizer).

        `values` are the field's values over the training part, None where an example has none, of the first example
        alone where `reads` is False; `labels` the data set's class names. Raises `ValueError` where the data do not have what the conditioner reads.
        """
        return self, {}

    def check(self, values: Sequence[Any], files: Mapping[str, str]) -> None:
        """Raise `ValueError` where one of these values, of another part of the data, cannot be read.

        This recipe is one that `learn` completed, `files` are the texts that came with it. Where `reads` is False, only
        what the data say of all their values is asked.
        """
        self.learn(values, ())

    @property
    def beside(self) -> str:
        """A second field that is read in training, "" where there is none."""
        return ""

    def heard(self, values: Sequence[Any]) -> dict[str, str]:
        """Texts to keep beside the weights, learned from the values of `beside` over the training part."""
        return {}

    def check_heard(self, values: Sequence[Any], files: Mapping[str, str]) -> None:
        """Raise `ValueError` where one of these values of `beside`, of another part of the data, cannot be read."""

    def lone(self, values: Sequence[Any]) -> bool:
        """Whether each of these values is one token and no more: cross-attention to one is the same at every place."""
        return False

    def coloured(self, palette: tuple[tuple[int, int, int], ...]) -> "ConditionerConfig":
        """This recipe, told the colours of the field's classes where the data have them."""
        return self

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> Conditioner:
        """The conditioner with fresh weights, for a model whose first stage is `latents`.

        `files` are texts that it saved beside its weights (a tokenizer).
        """
        raise TypeError(f"{type(self).__name__} does not say how it is built")
