"""`kind: masked`. What is kept of a picture, for inpainting (Rombach et al., 2022, section 4.5).

The hole is painted gray, or filled smoothly from what is around it, what is left goes through the model's own first
stage, and the latent with the mask, averaged over each of its places, lies beside the noisy latent: C + 1 channels. The
first stage is handed over at `build`; it stays the model's, and is neither trained nor saved here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.conditioning import pictures
from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Latents, Setting, Sizes
from sfumato.nn.fill import smooth
from sfumato.nn.rescale import area


class MaskedConfig(ConditionerConfig):
    """Its sizes are those of the first stage's latents."""

    field: str = "masked"
    fill: Literal["gray", "smooth"] = Field(
        "gray", description="what the network sees in the hole: gray, as published, or what is around it, smoothly"
    )
    reads: ClassVar[bool] = False

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "Masked":
        if latents is None:
            raise ValueError("a masked picture goes through the first stage; give `build` the model's codec")
        return Masked(self, latents)


class Masked(Conditioner):
    """{picture, mask} or (picture, mask), the mask 1 where there is a hole -> image (B, C + 1, h, w)."""

    role = "masked"
    whole = True
    held = True

    def __init__(self, config: MaskedConfig, latents: Latents) -> None:
        super().__init__()
        self.field, self.dropout, self.fill = config.field, config.dropout, config.fill
        self.factor, self.channels = latents.factor, latents.image_channels
        self.encode: Callable[[Tensor], Tensor] = latents.encode  # a method, not a module: its weights are not ours
        self.sizes = Sizes(image=latents.channels + 1)
        self.nothing = nn.Parameter(torch.zeros(1, latents.channels + 1, 1, 1))
        nn.init.ones_(self.nothing[:, -1:])  # nothing said is nothing kept: all of it is a hole

    def mirrored(self, value: Any) -> Any:
        return tuple(part.flip(-1) for part in self.read(value))

    def read(self, value: Any) -> tuple[Tensor, Tensor]:
        """The picture (C, H, W) in [-1, 1] and its mask (1, H, W) in [0, 1]. Raises `ValueError`."""
        if isinstance(value, Mapping) and set(value) == {"picture", "mask"}:
            value = (value["picture"], value["mask"])
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ValueError(f"{self.field} is {{picture, mask}} or (picture, mask); got {type(value).__name__}")
        whole, hole = pictures.picture(value[0], self.channels, self.field), pictures.mask(value[1], self.field)
        if whole.shape[-2:] != hole.shape[-2:]:
            sides = [f"{p.shape[-1]}x{p.shape[-2]}" for p in (whole, hole)]
            raise ValueError(f"the mask of {self.field} is {sides[1]} and its picture {sides[0]}; make them equal")
        return whole, hole

    def unknown(self, value: Any) -> Tensor | None:
        return self.read(value)[1]

    def forward(self, values: Sequence[Any], setting: Setting) -> Conditions:
        sides = (self.factor * setting.size[0], self.factor * setting.size[1])
        rows = [self.read(v) for v in values]
        for whole, _ in rows:
            if tuple(whole.shape[-2:]) != sides:
                raise ValueError(
                    f"{self.field} is {whole.shape[-1]}x{whole.shape[-2]} and the picture to be made "
                    f"{sides[1]}x{sides[0]}; resize or crop it to that"
                )
        whole, hole = (torch.stack(column).to(self.nothing) for column in zip(*rows, strict=True))
        with torch.no_grad():
            kept = self.encode(smooth(whole, hole) if self.fill == "smooth" else whole * (1 - hole))
        return Conditions(image=torch.cat([kept.to(self.nothing), area(hole, setting.size)], 1))

    def null(self, count: int, setting: Setting) -> Conditions:
        """What it learned for nothing said; where it was never dropped in training, a picture that is all hole."""
        if self.dropout:
            return Conditions(image=self.nothing.expand(count, -1, *setting.size))
        gray = self.nothing.new_zeros(1, self.channels, self.factor * setting.size[0], self.factor * setting.size[1])
        with torch.no_grad():
            kept = self.encode(gray).to(self.nothing)
        return Conditions(image=torch.cat([kept, torch.ones_like(kept[:, :1])], 1).expand(count, -1, -1, -1))
