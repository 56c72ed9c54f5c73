"""The objective of the other families: their turns on pictures and classes, with nothing of diffusion in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from sfumato import image
from sfumato.data import loader
from sfumato.data.base import Part
from sfumato.families.base import Drawn, Family, save, single
from sfumato.streams import Stream
from sfumato.training.likelihood import over
from sfumato.training.objective import Objective
from sfumato.training.recipe import FamilyRecipe
from sfumato.training.settings import TrainingConfig

FIRST = 512  # pictures that a family may look at before it begins


class Modelling(Objective):
    """Trains a family on one part of a data set."""

    def __init__(
        self,
        family: Family,
        recipe: FamilyRecipe,
        train: Part,
        device: torch.device,
        card: str = "",
        held_out: Part | None = None,
    ) -> None:
        self.family, self.recipe, self.train, self.device, self.card = family, recipe, train, device, card
        self.held_out = held_out
        self.turns: Mapping[str, nn.Module] = family.turns

    def of(self) -> dict[str, str]:
        first = {f"the {name}": codec.fingerprint() for name, codec in self.family.parts().items()}
        return {"the pictures": self.train.fingerprint, **first}

    def learned(self, turn: str) -> Sequence[nn.Module]:
        return self.family.learned(turn)

    def tuned(self, turn: str, training: TrainingConfig) -> TrainingConfig:
        return training.model_copy(update=dict(self.family.tuned(turn)))

    def rated(self, turn: str) -> str:
        return "family.rate" if "rate" in self.family.tuned(turn) else "training.rate"

    def batch(self, positions: Sequence[int]) -> Drawn:
        t = self.recipe.training
        rows = loader.batch(self.train, t.seed, positions, t.flip, ("label",))
        labels, classes = rows.fields.get("label", [None] * len(positions)), len(self.family.labels)
        known = torch.tensor([single(k, classes) for k in labels], device=self.device)
        return Drawn(rows.images.to(self.device, self.dtype), known, tuple(positions), t.seed)

    def begin(self) -> None:
        count = min(FIRST, len(self.train))
        self.family.begin(self.batch(range(count)).images)

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Sixteen pictures, always of the same noise, class after class."""
        count = 16
        labels = torch.arange(count, device=self.device) % max(len(self.family.labels), 1)
        return image.sheet(self.family.sample(Stream(range(count)), labels).cpu(), 8)

    def validate(self) -> dict[str, float]:
        found = None if self.held_out is None else over(self.family, self.held_out, self.family.told)
        return {} if found is None else {"held_out": float(found.mean())}

    def publish(self, folder: Path) -> None:
        save(self.family, self.recipe.family, folder, self.card)
