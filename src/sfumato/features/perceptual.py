"""Perceptual distances for losses: differentiable, frozen, deterministic, and made from files that the user has."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.config import Choice
from sfumato.device import at_least_single
from sfumato.features.fetch import remedy


class PerceptualConfig(Choice):
    """A distance between pictures; `kind` is a file of `sfumato/features/`."""

    home: ClassVar[str] = "sfumato.features"

    network: Path = Field(description="the file with the network's weights")
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="what the file must be")

    def build(self) -> "Perceptual":
        """The distance with its weights. Raises `ValueError` where a file is missing or another than expected."""
        raise TypeError(f"{type(self).__name__} does not say how it is built")

    def present(self, without: str) -> None:
        """Raise `ValueError` where the network's file is missing, and say what gets it, or what does `without`."""
        if not self.network.is_file():
            ways = f"{remedy(self.network)}give the path of the file, or do without: {without}"
            raise ValueError(f"the perceptual network {self.network} is not there; {ways}")


class Perceptual(nn.Module, ABC):
    """How far pictures are from one another for a network that looks at them.

    The weights are frozen but gradients reach both pictures. Training mode changes nothing: dropout inside the network
    would make the loss random.
    """

    smallest: int = 16  # pixels a side below which the network's maps vanish

    def train(self, mode: bool = True) -> Self:
        """Nothing changes."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, C, H, W) and the like, in [-1, 1] -> (B,), in float32 whatever the precision around (float64 in proofs).

        One channel counts as gray, of more than three the first three are looked at. Raises `ValueError` for two
        channels and for pictures that are too small for the network.
        """
        if min(a.shape[2:]) < self.smallest:
            raise ValueError(
                f"the perceptual network needs pictures of {self.smallest} pixels a side; these are "
                f"{a.shape[3]}x{a.shape[2]}: take larger ones, another network, or none"
            )
        with torch.autocast(a.device.type, enabled=False):
            return self.distance(colour(at_least_single(a)), colour(at_least_single(b)))

    @abstractmethod
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) of at least float32 in [-1, 1], twice -> (B,)."""


def frozen(network: nn.Module) -> nn.Module:
    """The network with weights that do not learn, in evaluation mode."""
    for weight in network.parameters():  # scripted networks know no `requires_grad_`
        weight.requires_grad_(False)
    return network.eval()


def colour(pictures: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 3, H, W)."""
    channels = pictures.shape[1]
    if channels == 1:
        return pictures.expand(-1, 3, -1, -1)
    if channels < 3:
        raise ValueError(f"a perceptual distance needs 1, 3 or more channels; the pictures have {channels}")
    return pictures[:, :3]
