"""What recipes say of critics: networks that learn, beside what makes the pictures, to tell them from real ones."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from sfumato.config import Config
from sfumato.training.settings import Images, Moment, TrainingConfig


class PatchCriticConfig(Config):
    """An adversarial term: a patch critic that learns beside what makes the pictures (Isola et al., 2017)."""

    weight: float = Field(0.5, ge=0, description="of the adversarial term")
    start: Moment = Field(0, description="images after which the critic begins to learn; before, it costs nothing")
    ramp: Images = Field(
        20_000, description="images over which, from `start`, its weight on what it judges rises from 0"
    )
    loss: Literal["hinge", "logistic", "non_saturating"] = "hinge"
    r1: float = Field(0.0, ge=0, description="weight of the gradient penalty at real pictures; 0: none")
    width: PositiveInt = 64
    layers: PositiveInt = Field(3, description="strided convolutions; a patch of three is 70 pixels wide")
    rate: PositiveFloat = Field(4e-4, description="peak learning rate of the critic (AdamW)")
    betas: tuple[float, float] = (0.5, 0.9)

    def since(self, position: int, offset: int, batch: int) -> int:
        """Images since the critic began, at the start of this position's step: one answer for all parts of a step."""
        return position - (position - offset) % batch - self.start

    def heed(self, since: int) -> float:
        """In [0, 1]: how much is listened to the critic so many images after it began."""
        return min(max(since / self.ramp, 0.0), 1.0)

    def tuned(self, training: TrainingConfig) -> TrainingConfig:
        """The settings of the critic's optimiser."""
        return training.model_copy(update={"optimizer": "adamw", "rate": self.rate, "betas": self.betas})


class CriticConfig(PatchCriticConfig):
    """The adversarial term of a first stage (Esser et al., 2021; Rombach et al., 2022)."""

    weight: float = Field(0.5, ge=0, description="of the adversarial term; where `adaptive`, of its gradient's length")
    adaptive: bool = Field(
        True, description="scale by the ratio of both terms' gradients at the decoder's last weights"
    )
    largest: PositiveFloat = Field(100.0, description="bound of that ratio")


class EstimateCriticConfig(PatchCriticConfig):
    """The adversarial term of decoded estimates: what a denoiser makes of noise is to look like a picture."""

    weight: float = Field(0.05, ge=0, description="of the adversarial term")
    matching: float = Field(
        1.0, ge=0, description="of the distance of the critic's own maps of what is made and of the picture"
    )
    width: PositiveInt = 32
