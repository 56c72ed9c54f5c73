"""`kind: map`. Semantic maps beside the latent (Rombach et al., 2022, section 4.3.2): what is where, of K classes.

Class numbers are never interpolated, for between grass 3 and sky 5 there is no river 4. Each class is a plane of its
own, made smaller by exact area averages, so that a place of the grid says which share of it is what; then a learned
rescaler brings the planes to the latent's grid.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sfumato import image
from sfumato.conditioning import pictures
from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Latents, Setting, Sizes
from sfumato.nn.rescale import Rescaler, area

AT_ONCE = 2**24  # values of planes that are made together


class MapConfig(ConditionerConfig):
    """`classes` is K, or `labels` names them; with neither, the training data's class names are taken."""

    field: str = "map"
    width: PositiveInt = Field(16, description="channels beside the latent")
    classes: PositiveInt | None = Field(None, description="numbers of the map go from 0 to one less")
    labels: tuple[str, ...] = ()
    ignore: int | None = Field(None, description="a number that means «unknown»: no class there, in no plane")
    palette: tuple[tuple[int, int, int], ...] = Field((), description="the classes' colours, for maps in colour")
    stages: int = Field(2, ge=0, le=5, description="halvings that the rescaler learns above the latent's grid")
    reads: ClassVar[bool] = False

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["MapConfig", dict[str, str]]:
        names = self.labels or (() if self.classes else tuple(labels))
        if self.classes and names and len(names) != self.classes:
            raise ValueError(f"{self.field}: {len(names)} labels for {self.classes} classes; leave one of them out")
        if not self.classes and not names:
            raise ValueError(f"{self.field}: give `classes`, how many the maps have, or their names as `labels`")
        return self.model_copy(update={"labels": names, "classes": self.classes or len(names)}), {}

    def check(self, values: Sequence[Any], files: Mapping[str, str]) -> None:
        for value in values:
            numbers = pictures.classes(value, self.field)
            try:
                self.known(numbers)
            except ValueError as error:
                most = int(numbers.max())
                raise ValueError(
                    f"{error}; give it `classes: {most + 1}`, or `ignore: {most}` where that means unknown"
                ) from None

    def known(self, numbers: Tensor) -> Tensor:
        """Where (H, W) class numbers are classes, and not `ignore`. Raises `ValueError` for unknown ones."""
        assert self.classes is not None
        known = (numbers >= 0) & (numbers < self.classes)
        kept = known if self.ignore is None else known | (numbers == self.ignore)
        if not bool(kept.all()):
            strange = ", ".join(map(str, sorted(set(numbers[~kept].tolist()))[:8]))
            named = ": " + ", ".join(f"{k} {n}" for k, n in enumerate(self.labels[:20])) if self.labels else ""
            more = ", ..." if len(self.labels) > 20 else ""
            also = "" if self.ignore is None else f", and {self.ignore} for unknown"
            raise ValueError(
                f"{self.field} has unknown classes {strange}; the model knows 0 to {self.classes - 1}{named}{more}{also}"
            )
        return known if self.ignore is None else known & (numbers != self.ignore)

    def coloured(self, palette: tuple[tuple[int, int, int], ...]) -> "MapConfig":
        return self.model_copy(update={"palette": self.palette or palette})

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "Map":
        return Map(self)


class Map(Conditioner):
    """Maps (H, W) of class numbers -> image (B, width, h, w)."""

    role = "map"

    def __init__(self, config: MapConfig) -> None:
        super().__init__()
        settled, _ = config.learn((), ())
        assert settled.classes is not None
        self.field, self.dropout, self.known = config.field, config.dropout, settled.known
        self.classes, self.labels, self.palette = settled.classes, settled.labels, settled.palette
        self.sizes = Sizes(image=config.width)
        self.rescale = Rescaler(self.classes, config.width, config.stages)
        self.nothing = nn.Parameter(torch.zeros(1, config.width, 1, 1))

    def mirrored(self, value: Any) -> Any:
        return pictures.classes(value, self.field).flip(-1)

    def value(self, shown: Image.Image) -> Tensor:
        """The class numbers (H, W) of a picture: those that it holds, or those of its colours, by the model's palette; a
        picture with a palette of its own is read by colours where the model knows all that it uses.

        Raises `ValueError` for unknown colours, and for colours where the model has no palette.
        """
        return torch.from_numpy(image.numbered(shown, self.palette, self.field, "the model").astype(np.int64))

    def planes(self, value: Any, size: tuple[int, int]) -> Tensor:
        """(K, *size) of one map: the share of each place that is each class. Raises `ValueError` for unknown classes."""
        numbers = pictures.classes(value, self.field)
        known = self.known(numbers)
        numbers = torch.where(known, numbers, -1).to(self.nothing.device)
        some = max(AT_ONCE // numbers.numel(), 1)  # classes at a time: all of a large map would take gigabytes
        planes = [
            area(
                (numbers == torch.arange(k, min(k + some, self.classes)).to(numbers)[:, None, None])[None].float(), size
            )[0]
            for k in range(0, self.classes, some)
        ]
        return torch.cat(planes)

    def forward(self, values: Sequence[Any], setting: Setting) -> Conditions:
        for value in values:
            pictures.fits(pictures.classes(value, self.field), setting.size, self.field)
        before = self.rescale.before(setting.size)
        return Conditions(image=self.rescale(torch.stack([self.planes(v, before) for v in values])))

    def null(self, count: int, setting: Setting) -> Conditions:
        return Conditions(image=self.nothing.expand(count, -1, *setting.size))
