"""`kind: label`. Classes as learned vectors, through the door that joins the time embedding, or as tokens.

An example may have several: their mean joins the time embedding, or each is a token of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Latents, Setting, Sizes, index


class LabelConfig(ConditionerConfig):
    """`labels` are the classes' names; left empty, they are read from the training data."""

    field: str = "label"
    width: PositiveInt = 256
    labels: tuple[str, ...] = ()
    door: Literal["vector", "tokens"] = "vector"

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["LabelConfig", dict[str, str]]:
        if not self.labels and not labels:
            raise ValueError(f"the data have no {self.field!r}: sort the pictures into class folders, or name `labels`")
        names = self.labels or tuple(labels)
        moved = [name for name, own in zip(labels, names, strict=False) if name != own and name in names]
        if moved:
            raise ValueError(
                f"`labels` of {self.field!r} names the data's classes in another order: {moved[0]!r} is number "
                f"{list(labels).index(moved[0])} of the data; leave `labels` out, or keep their order"
            )
        for one in {one for value in values if value is not None for one in several(value)}:
            index(one, names, self.field)
        return self.model_copy(update={"labels": names}), {}

    def lone(self, values: Sequence[Any]) -> bool:
        return self.door == "tokens" and all(len(set(several(v))) == 1 for v in values)

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "Label":
        return Label(self)


def several(value: Any) -> list[Any]:
    """The classes of an example that has one or more."""
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def named(word: str, labels: Sequence[str]) -> str | int:
    """What a word of a request means: the class of that name, else the one of that number."""
    return int(word) if word not in labels and word.isdecimal() else word


class Label(Conditioner):
    """Labels by number or by name, one or a list an example -> vector (B, width) or tokens (B, most, width)."""

    role = "label"

    def __init__(self, config: LabelConfig) -> None:
        super().__init__()
        self.field, self.dropout, self.labels = config.field, config.dropout, config.labels
        self.tokens = config.door == "tokens"
        self.sizes = Sizes(tokens=config.width) if self.tokens else Sizes(vector=config.width)
        self.embedding = nn.Embedding(len(config.labels) + 1, config.width)  # the last row is the null

    def index(self, value: Any) -> int:
        """The class of a name or a number. Raises `ValueError` with the known labels, and the nearest ones first."""
        return index(value, self.labels, self.field)

    def _conditions(self, rows: Sequence[Sequence[int]]) -> Conditions:
        longest, device = max(len(r) for r in rows), self.embedding.weight.device
        numbers = torch.tensor([[*r, *[len(self.labels)] * (longest - len(r))] for r in rows], device=device)
        mask = torch.tensor([[True] * len(r) + [False] * (longest - len(r)) for r in rows], device=device)
        found: Tensor = self.embedding(numbers)
        if self.tokens:
            return Conditions(tokens=found, mask=mask)
        weight = mask.to(found)[..., None]
        return Conditions(vector=(found * weight).sum(1) / weight.sum(1))

    def forward(self, values: Sequence[Any], setting: Setting | None = None) -> Conditions:
        return self._conditions([sorted({self.index(one) for one in several(v)}) for v in values])

    def null(self, count: int, setting: Setting | None = None) -> Conditions:
        return self._conditions([[len(self.labels)]] * count)
