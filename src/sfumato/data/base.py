"""What every data set is: parts of indexable examples, each a picture and what is known of it."""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, overload

import numpy as np
from pydantic import Field, PositiveInt
from torch import Tensor

from sfumato import streams
from sfumato.config import Choice
from sfumato.data.buckets import Steps
from sfumato.data.degrade import DegradeConfig
from sfumato.data.embed import EmbedConfig, Embeddings
from sfumato.data.masks import MasksConfig
from sfumato.image import Stored
from sfumato.shape import Shape

SIDED = re.compile(
    r"(?<![a-z])((left|right)(wards?|most|hand(ed)?|side)?|clockwise|counterclockwise|anticlockwise)(?![a-z])",
    re.IGNORECASE,
)
HUMPS = re.compile(r"(?<=[a-z])(?=[A-Z])")  # of TurnLeft


class Derivation(Protocol):
    """What is made of a picture each time it is shown: a small copy, a hole in it."""

    @property
    def field(self) -> str: ...
    def __call__(self, picture: Tensor, draws: np.random.Generator) -> Any: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Its settings."""


class Part(ABC):
    """One part of a data set (`train`, `held_out`, ...)."""

    channels: int
    size: int  # pixels a side
    fingerprint: str  # changes with any picture, caption, size or order
    labels: tuple[str, ...]  # names of the classes, () where there are none
    class_names: Mapping[str, tuple[str, ...]] = {}  # of the classes of a field, where these are not `labels`
    palettes: Mapping[str, tuple[tuple[int, int, int], ...]] = {}  # colours of the classes of a field, as `class_names`
    shapes: Sequence[Shape] | None = None  # that each example is shown in, where these are not all squares of `size`
    steps: Steps | None = None  # which family is shown when, where a step shows one shape alone
    families: Sequence[Sequence[int]]  # drawn uniformly first, then an example inside one: twins do not crowd the rest
    derivations: Sequence[Derivation] = ()
    embeddings: Embeddings | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """The picture, (channels, size, size) or in its own of `shapes`: uint8, or float32 in [0, 255] where it is deeper than 8 bits."""

    @abstractmethod
    def fields(self, index: int) -> dict[str, Any]:
        """What is known: `caption` (a list of texts), `label` (an index into `labels`), `group`, `name`; absent where unknown."""

    def field(self, index: int, name: str) -> Any:
        """One of `fields`, None where it is unknown: quicker where others are read from files of their own."""
        return self.fields(index).get(name)

    def telling(self, field: str) -> Sequence[int]:
        """Examples that between them show all that a field holds: what is learned of it is learned from them."""
        return range(len(self))

    @property
    def derived(self) -> frozenset[str]:
        """Fields that are made of a picture, by a derivation or by a network."""
        return frozenset(d.field for d in self.derivations) | {*(self.embeddings.fields if self.embeddings else ())}

    def every(self, field: str) -> bool | None:
        """Whether every example has a field, as far as that is known without reading them all; else None."""
        return True if field in self.derived else None

    def irregular(self, field: str) -> str:
        """Why the pictures of a field are not all as many times smaller as those that they stand beside; empty where they
        are."""
        return ""

    def numbers(self, field: str) -> Mapping[int, str]:
        """The class numbers in the maps of a field, each with what shows it; {} where they are not known ahead."""
        return {}

    def alike(self) -> str:
        """Which pictures of the data set look like another one, for people; empty where none does, or none is compared."""
        return ""

    def few(self, index: int, read: Collection[str]) -> dict[str, Any]:
        """`fields`, of which those in files of their own may be left out where they are not among those `read`."""
        return self.fields(index)

    def told(
        self, index: int, seed: int = 0, position: int | None = None, read: Collection[str] | None = None
    ) -> dict[str, Any]:
        """`fields`, what a network says of the picture, and what is derived of it as it is shown at this position, which is
        its index where None. What costs a file or a picture is left out where it is not among the fields that are `read`,
        all of them where None."""
        found = self.fields(index) if read is None else self.few(index, read)
        wanted = self.derived if read is None else self.derived & {*read}
        if self.embeddings is not None and wanted & {*self.embeddings.fields}:
            found = {**found, **self.embeddings(index)}
        if made := [derive for derive in self.derivations if derive.field in wanted]:
            picture = self.image(index)
            at = index if position is None else position
            for derive in made:
                found = {**found, derive.field: derive(picture, streams.generator(seed, f"derived/{derive.field}", at))}
        return found

    def stored(self, index: int) -> Stored | Path | None:
        """The picture file, or its content, that `image` decodes; None where pictures are drawn rather than read."""
        return None

    def besides(self, index: int) -> Mapping[str, Path]:
        """The files of the fields of an example that are decoded as pictures are: its map, its pair."""
        return {}

    def mirrors(self, index: int) -> bool:
        """Whether the mirrored picture still is what is said of it: no caption and no class, of the picture, of a box or of
        the maps, names a side."""
        said = [*(self.field(index, "caption") or ()), *self.class_names.get("map", ())]
        groups = self.field(index, "group") or ()
        said += [groups] if isinstance(groups, str) else groups
        said += [name for name, *_ in self.field(index, "boxes") or () if isinstance(name, str)]
        return not any(SIDED.search(HUMPS.sub(" ", one)) for one in said)


class Singles(Sequence[Sequence[int]]):
    """Families of one example each, without a list of them."""

    def __init__(self, count: int) -> None:
        self.total = count

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, place: int) -> Sequence[int]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Sequence[int]]: ...
    def __getitem__(self, place: int | slice) -> Any:
        found = range(self.total)[place]
        return [(k,) for k in found] if isinstance(found, range) else (found,)


class Data(Choice):
    """The recipe of a data set; `kind` is a file of `sfumato/data/`."""

    home: ClassVar[str] = "sfumato.data"
    paths: ClassVar[str] = "; a folder of pictures is given as data.kind=folder data.path={}"
    size: PositiveInt = 64
    degrade: DegradeConfig | None = Field(None, description="makes the field `lowres`: each picture, smaller and worse")
    masks: MasksConfig | None = Field(None, description="makes the field `masked`: each picture, and a hole in it")
    embed: EmbedConfig | None = Field(None, description="makes the fields `reference` and `near` by a feature network")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its parts."""
        return ("train", "held_out")

    def squares(self) -> "Data":
        """The same data with every picture a square of `size`, as what is measured has to be."""
        return self

    def open(self, part: str = "train") -> Part:
        """One part. Raises `ValueError` for an unknown name, with the known ones."""
        self.check(part)
        found = self.read(part)
        if self.embed is not None:
            squares = self.squares()  # what a reference is seen as in sampling
            train = partial(squares.read, "train") if part != "train" else None
            found.embeddings = Embeddings(self.embed, found if squares is self else squares.read(part), train)
        found.derivations = [derive for derive in (self.degrade, self.masks) if derive is not None]
        return found

    def read(self, part: str) -> Part:
        """One part, of a known name, without what is derived."""
        raise TypeError(f"{type(self).__name__} does not say how it is read")

    def check(self, part: str) -> None:
        """Raise `ValueError` where there is no such part."""
        if part not in self.parts:
            raise ValueError(f"unknown part {part!r} of the data set; it has {', '.join(self.parts)}")
