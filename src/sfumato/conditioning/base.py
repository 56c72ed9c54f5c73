"""The three doors by which a condition enters a backbone, and what a conditioner is.

`vector` joins the time embedding, `tokens` are attended to with a mask, `image` is laid beside the latent. A conditioner
declares which it uses and how wide, and has a learned null value for each: classifier-free guidance (Ho & Salimans,
2022) needs one that means «nothing was said», which is not the same as an empty text.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.config import Choice


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


class Conditioner(nn.Module, ABC):
    """Turns values of one field of the examples (`caption`, `label`, ...) into conditions."""

    sizes: Sizes
    field: str
    dropout: float

    @abstractmethod
    def forward(self, values: Sequence[Any]) -> Conditions:
        """Conditions of B values. Raises `ValueError` for a value that it cannot read."""

    @abstractmethod
    def null(self, count: int) -> Conditions:
        """`count` rows of «nothing was said»."""


class ConditionerConfig(Choice):
    """The recipe of a conditioner; `kind` is a file of `sfumato/conditioning/`."""

    home: ClassVar[str] = "sfumato.conditioning"
    field: str = ""
    dropout: float = 0.1

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["ConditionerConfig", dict[str, str]]:
        """This recipe completed by the training data, and texts to keep beside the weights (a tokenizer).

        `values` are the field's values over the training part, None where an example has none; `labels` the data
        set's class names. Raises `ValueError` where the data do not have what the conditioner reads.
        """
        return self, {}

    def build(self, files: Mapping[str, str]) -> Conditioner:
        """The conditioner with fresh weights. `files` are texts that it saved beside its weights (a tokenizer)."""
        raise TypeError(f"{type(self).__name__} does not say how it is built")
