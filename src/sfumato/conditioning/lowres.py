"""`kind: lowres`. The small picture beside the latent, for super-resolution (Rombach et al., 2022, section 4.4).

In training noise is added to it, of a level drawn for each example, and the network is told the level (Ho et al., 2022,
«Cascaded diffusion models», section 4.2): it learns not to believe every detail of the small picture. In sampling the
level is chosen: 0 trusts the picture, more invents more.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sfumato.conditioning import pictures
from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Latents, Setting, Sizes
from sfumato.nn.embed import TimeEmbedding
from sfumato.nn.rescale import Rescaler


class LowresConfig(ConditionerConfig):
    """`noise` is the highest level in training; the small picture x becomes sqrt(1 - s²) x + s eps at level s."""

    field: str = "lowres"
    width: PositiveInt = Field(16, description="channels beside the latent")
    channels: PositiveInt | None = Field(None, description="of the small pictures, from the data")
    noise: float = Field(0.5, ge=0, le=1, description="highest level of noise in training, drawn uniformly from 0")
    level: float = Field(0.0, ge=0, le=1, description="level in sampling where none is asked for")
    told: PositiveInt = Field(64, description="width of the vector that tells the level")
    stages: int | None = Field(
        None, ge=0, le=5, description="halvings that the rescaler learns above the latent's grid; from the data"
    )
    side: PositiveInt | None = Field(None, description="of the small pictures in training, from the data")
    plain: bool | None = Field(
        None, description="whether those are the large ones made small and nothing else, from the data"
    )
    reads: ClassVar[bool] = False

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["LowresConfig", dict[str, str]]:
        shape = next((v.shape for v in values if isinstance(v, Tensor)), None)
        if shape is None:
            return self, {}
        return self.model_copy(
            update={"side": self.side or max(shape[-2:]), "channels": self.channels or shape[-3]}
        ), {}

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "Lowres":
        if self.level > self.noise:
            raise ValueError(f"{self.field}: level {self.level} was never trained; at most `noise`, {self.noise}")
        return Lowres(self)


class Lowres(Conditioner):
    """Small pictures, or {picture, level} -> image (B, width, h, w), and the level as vector (B, told)."""

    role = "lowres"
    held = True

    def __init__(self, config: LowresConfig) -> None:
        super().__init__()
        self.field, self.dropout, self.channels = config.field, config.dropout, config.channels or 3
        self.noise, self.level, self.side = config.noise, config.level, config.side
        self.plain = config.plain is not False  # older models did not say, and have been upscaled as if it were so
        self.sizes = Sizes(vector=config.told, image=config.width)
        self.rescale = Rescaler(self.channels, config.width, config.stages or 0)  # older models did not say
        self.tell = TimeEmbedding(config.told, config.told)
        self.nothing = nn.Parameter(torch.zeros(1, config.width, 1, 1))
        self.untold = nn.Parameter(torch.zeros(1, config.told))

    def mirrored(self, value: Any) -> Any:
        small, level = self.read(value)
        return {"picture": small.flip(-1), "level": level}

    def read(self, value: Any) -> tuple[Tensor, float | None]:
        """The small picture (C, H, W) in [-1, 1] and the level that goes with it. Raises `ValueError`."""
        level: Any = None
        if isinstance(value, Mapping):
            if not {"picture"} <= set(value) <= {"picture", "level"}:
                raise ValueError(f"{self.field} is a picture or {{picture, level}}; got {', '.join(map(str, value))}")
            value, level = value["picture"], value.get("level")
        if level is not None and not 0 <= float(level) <= self.noise:
            raise ValueError(f"level {level} of {self.field} was not trained; give 0 to {self.noise:g}")
        return pictures.picture(value, self.channels, self.field), None if level is None else float(level)

    def noised(self, value: Any, row: int, setting: Setting) -> tuple[Tensor, float]:
        """The small picture with its noise, and the level of it."""
        small, level = self.read(value)
        if setting.augment:
            level = self.noise * setting.draws.uniform(row, "level")
        level = self.level if level is None else level
        if level > 0:
            eps = setting.draws.normal(row, small.shape, "noise").to(small)
            small = (1 - level**2) ** 0.5 * small + level * eps
        return pictures.fits(small, setting.size, self.field), level

    def forward(self, values: Sequence[Any], setting: Setting) -> Conditions:
        rows = [self.noised(v, k, setting) for k, v in enumerate(values)]
        # resized where the values are, so that the pictures of a batch may have several sizes
        small = pictures.resized([r[0] for r in rows], self.rescale.before(setting.size)).to(self.nothing)
        levels = torch.tensor([1000.0 * r[1] for r in rows], device=self.nothing.device)
        return Conditions(vector=self.tell(levels), image=self.rescale(small))

    def null(self, count: int, setting: Setting) -> Conditions:
        return Conditions(vector=self.untold.expand(count, -1), image=self.nothing.expand(count, -1, *setting.size))
