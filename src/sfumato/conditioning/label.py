"""`kind: label`. A class as a learned vector, through the door that joins the time embedding, or as one token."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Sizes


class LabelConfig(ConditionerConfig):
    """`labels` are the classes' names; left empty, they are read from the training data."""

    field: str = "label"
    width: PositiveInt = 256
    labels: tuple[str, ...] = ()
    door: Literal["vector", "tokens"] = "vector"

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["LabelConfig", dict[str, str]]:
        if not self.labels and not labels:
            raise ValueError(f"the data have no {self.field!r}: sort the pictures into class folders, or name `labels`")
        return self.model_copy(update={"labels": self.labels or tuple(labels)}), {}

    def build(self, files: Mapping[str, str]) -> "Label":
        return Label(self)


class Label(Conditioner):
    """Labels by index or by name -> vector (B, width) or one token (B, 1, width)."""

    def __init__(self, config: LabelConfig) -> None:
        super().__init__()
        self.field, self.dropout, self.labels = config.field, config.dropout, config.labels
        self.tokens = config.door == "tokens"
        self.sizes = Sizes(tokens=config.width) if self.tokens else Sizes(vector=config.width)
        self.embedding = nn.Embedding(len(config.labels) + 1, config.width)  # the last row is the null

    def index(self, value: Any) -> int:
        """The class of a name or an index. Raises `ValueError` with the known labels."""
        if isinstance(value, str) and value in self.labels:
            return self.labels.index(value)
        if isinstance(value, int) and 0 <= value < len(self.labels):
            return value
        shown = ", ".join(self.labels[:20]) + (", ..." if len(self.labels) > 20 else "")
        raise ValueError(f"unknown {self.field} {value!r}; the model knows {shown}")

    def _conditions(self, indices: Tensor) -> Conditions:
        rows = self.embedding(indices.to(self.embedding.weight.device))
        if not self.tokens:
            return Conditions(vector=rows)
        return Conditions(tokens=rows[:, None], mask=torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device))

    def forward(self, values: Sequence[Any]) -> Conditions:
        return self._conditions(torch.tensor([self.index(v) for v in values]))

    def null(self, count: int) -> Conditions:
        return self._conditions(torch.full((count,), len(self.labels)))
