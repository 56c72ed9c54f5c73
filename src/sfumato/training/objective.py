"""What the loop trains: turns that return losses, batches that depend on nothing but their place in the run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.training.settings import TrainingConfig


class Objective(ABC):
    """A training task. `turns` maps a name (`coder`, `critic` | `denoiser`) to a module whose `forward(batch)` returns
    means over the batch: `loss`, other numbers to be logged, and tensors of more dimensions that `settle` wants of the
    whole batch. Each turn is stepped by its own optimiser.
    `learned` names the modules that a turn changes and whose average is kept.
    """

    turns: Mapping[str, nn.Module]
    offset: int = 0  # of the first image of every step: not 0 where a run was made longer whose last batch was short
    uneven: ClassVar[bool] = False  # whether a part of a batch may leave some of the learned weights out

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the numbers in a batch: float32, or float64 where a run is a proof."""
        first = next(iter(self.turns))
        return next(p.dtype for m in self.learned(first) for p in m.parameters())

    @abstractmethod
    def learned(self, turn: str) -> Sequence[nn.Module]:
        """The modules whose weights this turn trains."""

    def through(self) -> Sequence[nn.Module]:
        """The modules that gradients go through, so that a step keeps their activations: those that it learns, and more."""
        return [module for turn in self.turns for module in self.learned(turn)]

    @abstractmethod
    def batch(self, positions: Sequence[int]) -> Any:
        """The examples at these global positions (counted in images): a pure function of the recipe and the positions."""

    def of(self) -> dict[str, str]:
        """What a run hangs on besides its recipe, by name: fingerprints. A run that goes on must have the same."""
        return {}

    def tuned(self, turn: str, training: TrainingConfig) -> TrainingConfig:
        """The optimiser's settings for this turn."""
        return training

    def rated(self, turn: str) -> str:
        """The recipe's setting from which this turn has its rate, as the command line names it."""
        return "training.rate"

    def active(self, turn: str, positions: Sequence[int]) -> bool:
        """Whether this turn has begun at the step of these positions."""
        return True

    def begin(self) -> None:
        """What is done once, before the first step of a run."""
        return

    def conclude(self) -> None:
        """What is done once, after the last step and with the averaged weights, by all processes together."""
        return

    def settle(self, turn: str, measured: Mapping[str, Tensor], positions: Sequence[int]) -> Mapping[str, Tensor]:
        """After a turn's optimiser step: take in what it measured over the whole batch; more numbers to be logged."""
        return {}

    def validate(self) -> dict[str, float]:
        """`held_out`, the lower the better, and more numbers, on pictures that are not trained on: always the same ones,
        with the same times and noise, by the weights as they are now. Nothing where no picture is held out."""
        return {}

    @abstractmethod
    def preview(self) -> Image.Image:
        """A picture of how things stand, from the weights as they are now."""

    @abstractmethod
    def publish(self, folder: Path) -> None:
        """Write the model folder from the weights as they are now; called after `conclude`, by one process."""
