"""`kind: stride`. How long the step is that an estimate is for, told to the network (Frans et al., 2024, «One Step
Diffusion via Shortcut Models»).

A network that is told the time alone can only say where the path is heading. One that is told the stride too can say
where a step of that length ends, so that a few steps of it go where many of the other's would. The strides of its
training are powers of two; others are told as the next shorter one, for a longer one would reach beyond the step's end.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Latents, Setting, Sizes
from sfumato.nn.conv import zeroed
from sfumato.nn.embed import TimeEmbedding

FIELD = "stride"


class StrideConfig(ConditionerConfig):
    """Told by a vector; it is never dropped, for its null is the stride 0, which is the flow itself.

    `stage: distillation` with `how: shortcut` adds it to the teacher's conditions; no data have it.
    """

    field: str = FIELD
    dropout: float = Field(0.0, ge=0, le=0, description="never dropped: nothing said is the stride 0")
    width: PositiveInt = 64
    finest: int = Field(32, ge=2, le=1024, description="a power of two; steps of 1 / finest and shorter are the flow's")
    reads: ClassVar[bool] = False

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.finest & (self.finest - 1):
            raise ValueError(
                f"strides are halved down to the finest: it is a power of two, such as 32; got {self.finest}"
            )
        return self

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "Stride":
        return Stride(self)


class Stride(Conditioner):
    """Lengths of steps in [0, 1], as shares of the whole way from noise to clean -> vector (B, width).

    The vector is zero before training, whatever the stride.
    """

    whole = True
    held = True

    def __init__(self, config: StrideConfig) -> None:
        super().__init__()
        self.field, self.dropout, self.finest = config.field, config.dropout, config.finest
        self.sizes = Sizes(vector=config.width)
        self.tell = TimeEmbedding(config.width, config.width)
        last = self.tell.layers[-1]
        assert isinstance(last, nn.Linear)
        zeroed(last)

    def known(self, value: Any) -> float:
        """The stride that the network is told of a step of this length: the largest power of two that is no longer, and
        0 for one of 1 / finest or less. Raises `ValueError` for what is no number from 0 to 1."""
        try:
            length = float(value)
        except (TypeError, ValueError):
            length = math.nan
        if not 0 <= length <= 1:
            raise ValueError(f"{self.field} is how long a step is, a number from 0 to 1; got {value!r}")
        power = math.floor(math.log2(length) + 1e-6) if length else -math.inf
        return 0.0 if power <= -math.log2(self.finest) else 2.0**power

    def forward(self, values: Sequence[Any], setting: Setting | None = None) -> Conditions:
        told = torch.tensor([1000.0 * self.known(v) for v in values], device=next(self.parameters()).device)
        return Conditions(vector=self.tell(told))

    def null(self, count: int, setting: Setting | None = None) -> Conditions:
        return self.forward([0.0] * count)
