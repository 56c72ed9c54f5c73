"""How minutes become numbers of pictures: measured once, at the start, and stored.

Nothing later looks at the clock, so a demo that is stopped and resumed ends where an uninterrupted one would.
"""

import json
from pathlib import Path

from pydantic import PositiveInt

from sfumato import files
from sfumato.config import Config
from sfumato.training import recipe
from sfumato.training.recipe import AutoencoderRecipe, DiffusionRecipe

AUTOENCODER, DENOISER = "emoji-autoencoder", "emoji"
# Shares of the budget. What is left pays for starting, encoding, previews, sampling and measuring.
FIRST_STAGE_SHARE, DENOISER_SHARE, SPARE_SECONDS = 0.20, 0.62, 20.0


class Plan(Config):
    """The numbers that a demo runs by."""

    minutes: float
    first_stage_images: PositiveInt
    denoiser_images: PositiveInt
    captions: PositiveInt  # samples a part in the caption match
    rates: dict[str, float]  # measured images a second

    def save(self, folder: Path) -> None:
        """Write `plan.json`."""
        files.write(folder / "plan.json", self.model_dump_json(indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Plan | None":
        """The plan stored in a demo's folder, None where there is none."""
        path = folder / "plan.json"
        return cls.model_validate(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def budget(minutes: float, first_stage: float, denoiser: float) -> Plan:
    """The plan for so many minutes at these rates (images a second)."""
    seconds = max(60.0 * minutes - SPARE_SECONDS, 20.0)
    return Plan(
        minutes=minutes,
        first_stage_images=_whole(FIRST_STAGE_SHARE * seconds * first_stage, 64),
        denoiser_images=_whole(DENOISER_SHARE * seconds * denoiser, 128),
        captions=512 if minutes >= 5 else 64,
        rates={"first_stage": round(first_stage, 1), "denoiser": round(denoiser, 1)},
    )


def _whole(images: float, batch: int) -> int:
    return max(round(images / batch), 4) * batch


def recipes(plan: Plan, folder: Path) -> tuple[AutoencoderRecipe, DiffusionRecipe]:
    """Both stages' recipes with the plan's numbers and the demo's folders in them."""
    first = recipe.read(AUTOENCODER, _spread(plan.first_stage_images, 6))
    second = recipe.read(DENOISER, _spread(plan.denoiser_images, 8))
    assert isinstance(first, AutoencoderRecipe)
    assert isinstance(second, DiffusionRecipe)
    # not by an override, which is YAML: a folder may be called [x]
    return first, second.model_copy(update={"autoencoder": folder / "first-stage" / "model"})


def _spread(images: int, previews: int) -> list[str]:
    """Overrides that spread reports, previews and checkpoints over a run."""
    every = {"report": images // 80, "preview": images // previews, "checkpoint": images // 4}
    return [
        f"training.images={images}",
        *(f"training.{name}={max(count, 64)}" for name, count in every.items()),
    ]
