"""`kind: frame`. Which part of a picture is shown, and whether it is mirrored, told to the network.

Crops and mirrored copies make a small set larger, but a network that is not told of them learns to make pictures that
are cut off and mirrored. Told, it can be asked for whole ones (Podell et al., 2024, section 2.2; Karras et al., 2022,
section 5): where nothing is said in sampling, that is what it is asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Latents, Setting, Sizes
from sfumato.nn.embed import TimeEmbedding

WHOLE = (0.0, 0.0, 1.0, 0.0)  # the largest centred square, not mirrored


class FrameConfig(ConditionerConfig):
    """Told by a vector; it is never dropped, for its null is the whole picture."""

    field: str = "frame"
    dropout: float = Field(0.0, ge=0, le=1)
    width: PositiveInt = 128
    reads: ClassVar[bool] = False

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "Frame":
        return Frame(self)


class Frame(Conditioner):
    """(x, y, side, mirrored): how far the square's middle is from the picture's, over the shorter side, to the right and
    down; its side over the shorter one; 1 where it is mirrored -> vector (B, width)."""

    role = "frame"
    whole = True
    held = True

    def __init__(self, config: FrameConfig) -> None:
        super().__init__()
        self.field, self.dropout = config.field, config.dropout
        self.sizes = Sizes(vector=config.width)
        self.tell = nn.ModuleList(TimeEmbedding(config.width, config.width) for _ in WHOLE)

    def mirrored(self, value: Any) -> Any:
        x, y, side, turned = self.read(value)
        return (-x, y, side, 1.0 - turned)

    def read(self, value: Any) -> tuple[float, float, float, float]:
        """The four numbers. Raises `ValueError`."""
        try:
            x, y, side, turned = (float(v) for v in value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.field} is (x, y, side, mirrored), four numbers; got {value!r}") from None
        if not 0 < side <= 1 or turned not in (0.0, 1.0):
            raise ValueError(f"{self.field}: the side lies above 0 and at most at 1, mirrored is 0 or 1; got {value!r}")
        return x, y, side, turned

    def forward(self, values: Sequence[Any], setting: Setting | None = None) -> Conditions:
        device = next(self.parameters()).device
        rows = 1000.0 * torch.tensor([self.read(v) for v in values], device=device)
        told: Tensor = torch.stack([tell(rows[:, k]) for k, tell in enumerate(self.tell)]).sum(0)
        return Conditions(vector=told)

    def null(self, count: int, setting: Setting | None = None) -> Conditions:
        return self.forward([WHOLE] * count)
