"""`kind: reference`. Embeddings of pictures (of CLIP, DINOv2, ...): for variations of one, or the nearest of many.

With one embedding through the vector the model makes variations of a picture; with the k nearest neighbours of it in a
large set as tokens, it is a retrieval-augmented model (Blattmann et al., 2022).

The data make the embeddings (`data.embed`) and say which feature network they had them of. The model names its file and
all that its numbers depend on, so that in sampling a picture can be shown to it; it is not part of the model's folder.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Latents, Setting, Sizes
from sfumato.features import network as networks
from sfumato.features.network import Description, FeatureNetwork


class ReferenceConfig(ConditionerConfig):
    """`embedding` is the width of the given vectors, `width` that of what the network sees."""

    field: str = "reference"
    embedding: PositiveInt | None = Field(None, description="from the data")
    usual: PositiveInt | None = Field(None, description="embeddings that an example had in training, from the data")
    network: Path | None = Field(None, description="the feature network that they are of, from the data")
    looks: Description | None = Field(None, description="how it looks at pictures, and its SHA-256, from the data")
    width: PositiveInt = 256
    door: Literal["vector", "tokens"] = "vector"
    most: PositiveInt = Field(20, description="embeddings an example may have; as vector their mean counts")
    unit: bool = Field(True, description="embeddings are scaled to the same length: only their direction counts")
    reads: ClassVar[bool] = False

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["ReferenceConfig", dict[str, str]]:
        if not values:
            return self, {}
        *count, width = np.shape(values[0])
        several = count[0] if count else 1
        if self.embedding not in (None, width):
            raise ValueError(
                f"{self.field}: the data have embeddings of width {width}, `embedding` says {self.embedding}"
            )
        return self.model_copy(update={"embedding": width, "usual": several, "most": max(self.most, several)}), {}

    def lone(self, values: Sequence[Any]) -> bool:
        return self.door == "tokens" and self.usual == 1

    def seen(self, network: Path, looks: Description) -> "ReferenceConfig":
        """This recipe, told the network that the embeddings are of. Raises `ValueError` where it knows another."""
        if self.looks not in (None, looks):
            raise ValueError(
                f"{self.field}: data.embed has {looks.name} ({looks.sha256}) and this model {self.looks}; use the same network"
            )
        return self.model_copy(update={"network": self.network or network.resolve(), "looks": looks})

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "Reference":
        if self.embedding is None:
            raise ValueError(f"{self.field}: give `embedding`, the width of the vectors, or let `data.embed` make them")
        return Reference(self)


@functools.lru_cache(maxsize=2)
def _opened(path: Path, sha256: str | None, device: str) -> FeatureNetwork:
    if not path.exists():
        raise ValueError(
            f"there is no feature network {path}; copy it there, or name its place as `network` of this conditioner in "
            "model.yaml"
        )
    return networks.opened(path, sha256).to(device)


class Reference(Conditioner):
    """Embeddings (D,) or (n, D) -> vector (B, width), or tokens (B, N, width) with their mask (B, N)."""

    role = "reference"

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        assert config.embedding is not None
        self.network, self.looks, self.usual = config.network, config.looks, config.usual or 1
        self.field, self.dropout, self.unit = config.field, config.dropout, config.unit
        self.embedding, self.most, self.tokens = config.embedding, config.most, config.door == "tokens"
        self.sizes = Sizes(tokens=config.width) if self.tokens else Sizes(vector=config.width)
        self.project = nn.Linear(config.embedding, config.width)
        self.nothing = nn.Parameter(0.02 * torch.randn(1, config.width))

    def opened(self) -> FeatureNetwork:
        """The feature network of training. Raises `ValueError` where none was named, or it is not there or is another."""
        if self.network is None or self.looks is None:
            raise ValueError(
                f"this model does not say which network its {self.field} is of; give embeddings to `model.conditions`, or "
                "train it with data.embed"
            )
        found = _opened(self.network, self.looks.sha256, str(self.nothing.device))
        if found.description != self.looks:
            raise ValueError(
                f"{self.network} is described as {found.description}, in training it was {self.looks}; mend its YAML file"
            )
        return found

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
