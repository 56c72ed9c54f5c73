"""`kind: reference`. Embeddings of pictures (of CLIP, DINOv2, ...): for variations of one, or the nearest of many.

With one embedding through the vector the model makes variations of a picture; with the k nearest neighbours of it, or
of a text, in a large set as tokens, it is a retrieval-augmented model (Blattmann et al., 2022).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Latents, Setting, Sizes


class ReferenceConfig(ConditionerConfig):
    """`embedding` is the width of the given vectors, `width` that of what the network sees."""

    field: str = "reference"
    embedding: PositiveInt = 512
    width: PositiveInt = 256
    door: Literal["vector", "tokens"] = "vector"
    most: PositiveInt = Field(20, description="embeddings an example may have; as vector their mean counts")
    unit: bool = Field(True, description="embeddings are scaled to the same length: only their direction counts")
    reads: ClassVar[bool] = False

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "Reference":
        return Reference(self)


class Reference(Conditioner):
    """Embeddings (D,) or (n, D) -> vector (B, width), or tokens (B, N, width) with their mask (B, N)."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.field, self.dropout, self.unit = config.field, config.dropout, config.unit
        self.embedding, self.most, self.tokens = config.embedding, config.most, config.door == "tokens"
        self.sizes = Sizes(tokens=config.width) if self.tokens else Sizes(vector=config.width)
        self.project = nn.Linear(config.embedding, config.width)
        self.nothing = nn.Parameter(0.02 * torch.randn(1, config.width))

    def read(self, value: Any) -> Tensor:
        """(n, D) float32 of one value. Raises `ValueError` for another width, too many, or what is not finite."""
        try:
            rows = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value, np.float32)).float()
        except (TypeError, ValueError):
            raise ValueError(f"{self.field} is an embedding, or several; got {str(value)[:40]!r}") from None
        shape, rows = tuple(rows.shape), rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != self.embedding or not len(rows):
            raise ValueError(
                f"{self.field} has shape {shape}, this model reads embeddings ({self.embedding},) or "
                f"(n, {self.embedding}); use the network that it was trained with"
            )
        if len(rows) > self.most:
            raise ValueError(f"{len(rows)} embeddings as {self.field}, this model reads {self.most}; leave some out")
        if not bool(rows.isfinite().all()):
            raise ValueError(f"{self.field} holds values that are not finite; compute the embedding again")
        return F.normalize(rows, dim=-1) * self.embedding**0.5 if self.unit else rows

    def forward(self, values: Sequence[Any], setting: Setting | None = None) -> Conditions:
        several = [self.read(v) for v in values]
        longest = max(map(len, several))
        rows = torch.stack([F.pad(r.cpu(), (0, 0, 0, longest - len(r))) for r in several]).to(self.nothing)
        counts = torch.tensor([len(r) for r in several], device=rows.device)
        mask = torch.arange(longest, device=rows.device) < counts[:, None]
        if self.tokens:
            return Conditions(tokens=self.project(rows), mask=mask)
        return Conditions(vector=self.project(rows.sum(1) / counts[:, None].to(rows)))

    def null(self, count: int, setting: Setting | None = None) -> Conditions:
        rows = self.nothing.expand(count, -1)
        if not self.tokens:
            return Conditions(vector=rows)
        return Conditions(tokens=rows[:, None], mask=torch.ones(count, 1, dtype=torch.bool, device=rows.device))


def neighbours(
    queries: Tensor, bank: Tensor, count: int, *, chunk: int = 65_536, apart: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The `count` nearest rows of bank (N, D) to each query (Q, D) by cosine: similarities and indices, both (Q, count).

    By matrix products over `chunk` rows at a time, so the bank may be a memory map much larger than memory. `apart` (Q,)
    names for each query a row that is not looked at: itself, where the bank holds it. Best first; equal ones in the
    bank's order. Raises `ValueError` where the widths differ or the bank has too few rows.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} must be rows of one width")
    if not 1 <= count <= len(bank) - (apart is not None):
        raise ValueError(f"{count} neighbours of a bank of {len(bank)} rows; ask for fewer, at least 1")
    wanted = F.normalize(queries.float(), dim=-1)
    best = wanted.new_full((len(queries), 0), 0.0)
    where = torch.empty(len(queries), 0, dtype=torch.long, device=wanted.device)
    for begin in range(0, len(bank), chunk):
        rows = F.normalize(bank[begin : begin + chunk].to(wanted), dim=-1)
        scores, places = wanted @ rows.T, torch.arange(begin, begin + len(rows), device=wanted.device)
        if apart is not None:
            scores = scores.masked_fill(places == apart.to(places)[:, None], -torch.inf)
        best = torch.cat([best, scores], 1)
        where = torch.cat([where, places.expand(len(queries), -1)], 1)
        order = best.sort(dim=1, descending=True, stable=True).indices[:, :count]
        best, where = best.gather(1, order), where.gather(1, order)
    return best, where
