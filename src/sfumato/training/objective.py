"""What the loop trains: turns that return losses, batches that depend on nothing but their place in the run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn


class Objective(ABC):
    """A training task. `turns` maps a name (`coder`, `denoiser`; later `critic`) to a module whose `forward(batch)`
    returns a mapping of mean losses, `loss` among them; each turn is stepped by its own optimiser and may be wrapped
    for several processes. `learned` names the modules that a turn changes and whose average is kept.
    """

    turns: Mapping[str, nn.Module]

    @abstractmethod
    def learned(self, turn: str) -> Sequence[nn.Module]:
        """The modules whose weights this turn trains."""

    @abstractmethod
    def batch(self, positions: Sequence[int]) -> Any:
        """The examples at these global positions (counted in images): a pure function of the recipe and the positions."""

    @abstractmethod
    def preview(self) -> Image.Image:
        """A picture of how things stand, from the weights as they are now."""

    @abstractmethod
    def publish(self, folder: Path) -> None:
        """Write the model folder from the weights as they are now."""
