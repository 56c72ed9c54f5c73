"""Some examples of a part, as a part of their own."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato import streams
from sfumato.data.base import Part, Singles
from sfumato.image import Stored


class Picked(Part):
    """The examples of a part at these indices, each a family of its own unless `families` are given."""

    def __init__(self, part: Part, indices: Sequence[int], families: Sequence[Sequence[int]] | None = None) -> None:
        self.part, self.indices = part, indices if isinstance(indices, range) else list(indices)
        self.channels, self.size, self.labels = part.channels, part.size, part.labels
        self.class_names, self.palettes = part.class_names, part.palettes
        self.derivations, self.embeddings = part.derivations, part.embeddings
        self.shapes = None if part.shapes is None else [part.shapes[k] for k in self.indices]
        self.families = Singles(len(self.indices)) if families is None else families
        self.fingerprint = hashlib.sha256(f"{part.fingerprint} {self.indices}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Tensor:
        return self.part.image(self.indices[index])

    def fields(self, index: int) -> dict[str, Any]:
        return self.part.fields(self.indices[index])

    def field(self, index: int, name: str) -> Any:
        return self.part.field(self.indices[index], name)

    def few(self, index: int, read: Collection[str]) -> dict[str, Any]:
        return self.part.few(self.indices[index], read)

    def told(
        self, index: int, seed: int = 0, position: int | None = None, read: Collection[str] | None = None
    ) -> dict[str, Any]:
        return self.part.told(self.indices[index], seed, position, read)

    def every(self, field: str) -> bool | None:
        return self.part.every(field)

    def numbers(self, field: str) -> Mapping[int, str]:
        return self.part.numbers(field)

    def alike(self) -> str:
        return self.part.alike()

    def stored(self, index: int) -> Stored | Path | None:
        return self.part.stored(self.indices[index])

    def besides(self, index: int) -> Mapping[str, Path]:
        return self.part.besides(self.indices[index])

    def mirrors(self, index: int) -> bool:
        return self.part.mirrors(self.indices[index])


def uncropped(part: Part) -> Part:
    """The part without the squares of a picture that are told as its `frame`: whole pictures alone."""
    kept = [k for k in range(len(part)) if part.field(k, "frame") is None]
    return part if len(kept) == len(part) else Picked(part, kept)


def one_each(part: Part) -> Part:
    """One example of each family, the same every time, in the part's order: the balance in which training shows them."""
    if len(part.families) == len(part):
        return part
    draws = (streams.generator(0, "one of a family", k) for k in range(len(part.families)))
    return Picked(part, sorted(f[int(d.integers(len(f)))] for f, d in zip(part.families, draws, strict=True)))
