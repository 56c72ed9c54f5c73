"""What every family is: turns that the one loop trains, a way to draw pictures, and bits per dimension where defined.

A family is told the shape of the pictures, the classes' names (none: unconditional) and, where it works on codes, a
first stage. Its folder is sealed as all model folders are: tensors without pickle, hashes, a format.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sfumato import files, streams
from sfumato.autoencoder.codec import Codec
from sfumato.config import Choice, explain, trusting
from sfumato.nn import draws
from sfumato.streams import Stream

WEIGHTS = "weights.safetensors"


class Shape(NamedTuple):
    """Of the pictures."""

    channels: int
    size: int


class Drawn(NamedTuple):
    """A batch: pictures (B, C, S, S) in [-1, 1], their classes (B,) int64 (those of none the number of classes), and where
    it stands in the run, from which all its randomness comes."""

    images: Tensor
    labels: Tensor
    positions: tuple[int, ...]
    seed: int

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Standard normal draws (B, *shape), one row a position."""
        return streams.normal(shape, self.seed, purpose, self.positions).to(self.images)

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Uniform draws in [0, 1), (B, *shape), one row a position."""
        return streams.uniform(shape, self.seed, purpose, self.positions).to(self.images)


def single(label: Any, classes: int) -> int:
    """The class that a family of so many reads of a picture: the first of several; `classes`, which is none, where there
    is none, or the family has no classes."""
    first = next(iter(label), None) if isinstance(label, list | tuple) else label
    return classes if first is None or not classes else int(first)


def chosen(seeds: Sequence[int], classes: int) -> list[int]:
    """A class for each picture, each as likely, by the picture's own seed; 0, none, where there are no classes."""
    return [int(streams.generator(seed, "class").integers(classes)) if classes else 0 for seed in seeds]


class Family(nn.Module, ABC):
    """A generative model of pictures."""

    shape: Shape
    labels: tuple[str, ...]
    turns: Mapping[str, nn.Module]  # as an objective's: `forward(Drawn)` gives means over the batch, `loss` among them
    evaluations: int = 1  # passes through the network that a picture takes
    unnamed: bool = False  # whether it learns, beside classes, what pictures of any class are like
    scored: bool = True  # whether held-out pictures have a loss

    @abstractmethod
    def learned(self, turn: str) -> Sequence[nn.Module]:
        """The modules whose weights this turn trains, those that draw pictures in the first."""

    def tuned(self, turn: str) -> Mapping[str, Any]:
        """Settings of the training that are this turn's own."""
        return {}

    def begin(self, images: Tensor) -> None:
        """What is done once, before the first step, with some training pictures (N, C, S, S)."""
        return

    @abstractmethod
    def sample(self, noise: Stream, labels: Tensor, guidance: float = 1.0) -> Tensor:
        """Pictures (B, C, S, S) in [-1, 1] of these classes (B,); picture k depends on the k-th seed alone."""

    def bits(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """An upper bound on -log2 p(x) over the number of values, (B,), of pictures of 8 bits; None where undefined."""
        return None

    def told(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """The loss (B,) of held-out pictures, in bits: the lower, the better they are told; None where `scored` is False."""
        return self.bits(images, labels)

    def parts(self) -> Mapping[str, Codec]:
        """First stages that the folder must hold too."""
        return {}


class FamilyConfig(Choice):
    """The recipe of a family; `kind` is a file of `sfumato/families/`."""

    home: ClassVar[str] = "sfumato.families"

    @property
    def coded(self) -> bool:
        """Whether it works on a first stage's codes."""
        return False

    def build(self, shape: Shape, labels: tuple[str, ...], codec: Codec | None) -> Family:
        """The family with fresh weights. Raises `ValueError` where shape or first stage do not fit."""
        raise TypeError(f"{type(self).__name__} does not say how it is built")


def save(family: Family, config: FamilyConfig, folder: Path, card: str = "") -> None:
    """Write the model folder; a first stage's is copied inside it."""
    for name, codec in family.parts().items():
        codec.save(folder / name)
    files.save_tensors(folder / WEIGHTS, family.state_dict())
    if card:
        files.write(folder / "README.md", card)
    shape = {"channels": family.shape.channels, "size": family.shape.size}
    facts = {"stage": "family", "family": config.model_dump(mode="json"), "shape": shape, "labels": list(family.labels)}
    files.seal(folder, facts)


def load(folder: Path, device: str | torch.device = "cpu", trust: bool = False) -> Family:
    """Open a model folder. Raises `ValueError` where a file is missing, damaged or foreign."""
    fields = files.opened(folder, "family")
    try:
        with trusting(trust):
            config = FamilyConfig.model_validate(fields["family"])
    except ValidationError as error:
        raise ValueError(explain(error, str(folder / "model.yaml"))) from None
    codec = Codec.load(folder / "autoencoder", trust) if (folder / "autoencoder" / "model.yaml").is_file() else None
    with draws.skipped():
        family = config.build(Shape(**fields["shape"]), tuple(fields["labels"]), codec)
    try:
        family.load_state_dict(files.load_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its model.yaml: {str(error).splitlines()[-1]}") from None
    return family.eval().to(device)


def classes(labels: tuple[str, ...], width: int) -> nn.Embedding | None:
    """Learned vectors of the classes and, last, of none; None where there are no classes."""
    return nn.Embedding(len(labels) + 1, width) if labels else None
