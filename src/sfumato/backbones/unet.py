"""`kind: unet`. The U-Net of Rombach et al. (2022): residual blocks, self-attention, cross-attention to the conditions.

One network, whose options express every published one (numbers of heads or their width, scale-shift norm, up- and
downsampling inside residual blocks, transformer depth, linear or convolutional projections). The defaults are those
that train best on small machines: pixels move into channels and back between resolutions instead of strided
convolutions, and every attention is a transformer block with its feed-forward.
"""

from collections.abc import Iterator
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.backbones.base import Backbone, BackboneConfig, Conditions, Sizes, beside
from sfumato.device import at_least_single
from sfumato.nn.attention import MapAttention, SpatialTransformer
from sfumato.nn.conv import Change, Conv2d, Down, Downsample, ResBlock, Up, Upsample, zeroed
from sfumato.nn.embed import TimeEmbedding
from sfumato.nn.norm import norm
from sfumato.nn.recompute import levels


class UNetConfig(BackboneConfig):
    """Sizes of the U-Net. `attention` lists downsampling factors of the latent (1 is its full size)."""

    width: PositiveInt = 128
    multipliers: tuple[PositiveInt, ...] = Field((1, 2, 2), min_length=1)
    blocks: PositiveInt = Field(2, description="residual blocks a level on the way down; one more on the way up")
    attention: tuple[PositiveInt, ...] = (2, 4)
    attend: Literal["transformer", "self"] = Field(
        "transformer", description="self: no cross-attention, no feed-forward"
    )
    heads: PositiveInt | None = Field(None, description="heads of every attention; None: width over `head_width`")
    head_width: PositiveInt = 32
    depth: PositiveInt = Field(1, description="transformer blocks an attention")
    expansion: PositiveInt = Field(4, description="width of the feed-forward over the tokens' width")
    linear: bool = Field(True, description="linear projections around the transformer; False: 1x1 convolutions")
    scale_shift: bool = True
    resample: Literal["layer", "block"] = Field("layer", description="block: up and down inside residual blocks")
    down: Down = "unshuffle"
    up: Up = "shuffle"
    groups: PositiveInt | None = Field(
        32, description="of the group norms; null: layer norm over channels and channels-last maps, fast in bfloat16"
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    direct_vector: bool = Field(False, description="the vector is as wide as the time embedding and added unprojected")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        factors = [2**i for i in range(len(self.multipliers))]
        strange = sorted(set(self.attention) - set(factors))
        if strange:
            raise ValueError(f"attention {strange} is at no level; the levels' downsampling factors are {factors}")
        return self

    def build(self, channels: int, sizes: Sizes) -> "UNet":
        return UNet(self, channels, sizes)

    def heads_of(self, width: int) -> int:
        """Heads of an attention over `width` channels."""
        return self.heads or max(width // self.head_width, 1)


class Stage(nn.Module):
    """A residual block, perhaps followed by attention: one step of the way down or up."""

    def __init__(self, block: ResBlock, attention: nn.Module | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, embedding: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.block(x, embedding)
        if isinstance(self.attention, SpatialTransformer):
            return self.attention(x, tokens, mask)  # type: ignore[no-any-return]
        return self.attention(x) if self.attention is not None else x


class UNet(Backbone):
    """(x_t (B, C, h, w), clock (B,), conditions) -> (B, C, h, w); its output is exactly 0 before training."""

    def __init__(self, config: UNetConfig, channels: int, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.factor = 2 ** (len(config.multipliers) - 1)
        self.embedding = 4 * config.width
        self.time = TimeEmbedding(config.width, self.embedding)
        self.vector: nn.Module | None = None
        if sizes.vector:
            if config.direct_vector and sizes.vector != self.embedding:
                raise ValueError(
                    f"direct_vector wants a vector of {self.embedding}; the conditioners give {sizes.vector}"
                )
            self.vector = nn.Identity() if config.direct_vector else nn.Linear(sizes.vector, self.embedding)
        self.into = Conv2d(channels + sizes.image, config.width, 3, padding=1)
        skips = self._way_down()
        width = config.width * config.multipliers[-1]
        middle = (self._block(width, width), self._attention(width), self._block(width, width))
        self.middle = nn.ModuleList([Stage(middle[0], middle[1]), Stage(middle[2], None)])
        self._way_up(width, skips)
        self.norm = norm(config.width * config.multipliers[0], config.groups)
        self.out = zeroed(Conv2d(config.width * config.multipliers[0], channels, 3, padding=1))

    def _block(self, channels: int, out: int, change: Change = "none") -> ResBlock:
        c = self.config
        return ResBlock(
            channels,
            out,
            self.embedding,
            groups=c.groups,
            scale_shift=c.scale_shift,
            change=change,
            dropout=c.dropout,
        )

    def _attention(self, width: int) -> nn.Module:
        c, heads = self.config, self.config.heads_of(width)
        if c.attend == "self":
            return MapAttention(width, heads, groups=c.groups)
        context = self.sizes.tokens or None
        return SpatialTransformer(
            width, heads, context, depth=c.depth, expansion=c.expansion, groups=c.groups, linear=c.linear
        )

    def _attends(self, level: int) -> bool:
        return 2**level in self.config.attention

    def _way_down(self) -> list[int]:
        c, width, skips = self.config, self.config.width, [self.config.width]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(c.multipliers):
            for _ in range(c.blocks):
                wide = c.width * multiplier
                self.down.append(
                    Stage(self._block(width, wide), self._attention(wide) if self._attends(level) else None)
                )
                width = wide
                skips.append(width)
            if level < len(c.multipliers) - 1:
                block = c.resample == "block"
                self.down.append(self._block(width, width, "down") if block else Downsample(width, width, c.down))
                skips.append(width)
        return skips

    def _way_up(self, width: int, skips: list[int]) -> None:
        c = self.config
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(c.multipliers))):
            wide = c.width * multiplier
            for _ in range(c.blocks + 1):
                block = self._block(width + skips.pop(), wide)
                self.up.append(Stage(block, self._attention(wide) if self._attends(level) else None))
                width = wide
            if level:
                block_up = c.resample == "block"
                self.up.append(self._block(width, width, "up") if block_up else Upsample(width, width, c.up))

    def levelled(self) -> Iterator[tuple[int, nn.Module]]:
        """Each block with the downsampling factor of its level."""
        yield from levels(self.down, 1)
        yield from ((self.factor, block) for block in self.middle)
        yield from levels(self.up, self.factor)

    def _embed(self, clock: Tensor, cond: Conditions | None) -> Tensor:
        embedding: Tensor = self.time(clock)
        if self.vector is None:
            return embedding
        if cond is None or cond.vector is None:
            raise ValueError("this network needs a vector condition; give the bundle's null where nothing is said")
        result: Tensor = embedding + self.vector(cond.vector)
        return result

    def forward(self, x_t: Tensor, clock: Tensor, cond: Conditions | None = None) -> Tensor:
        x = beside(x_t, cond, self.sizes.image)
        if any(n % self.factor for n in x.shape[-2:]):
            x, (top, left) = _grow(x, self.factor)
            return self._whole(x, clock, cond)[..., :top, :left]
        return self._whole(x, clock, cond)

    def _whole(self, x: Tensor, clock: Tensor, cond: Conditions | None) -> Tensor:
        embedding = self._embed(clock, cond)
        tokens, mask = (None, None) if cond is None else (cond.tokens, cond.mask)
        if self.sizes.tokens and tokens is None and self.config.attend != "self":
            raise ValueError("this network needs tokens; give the bundle's null where nothing is said")
        if self.config.groups is None:
            x = x.contiguous(memory_format=torch.channels_last)
        h: Tensor = self.into(x)
        skips = [h]
        for layer in self.down:
            h = self._step(layer, h, embedding, tokens, mask)
            skips.append(h)
        for layer in self.middle:
            h = self._step(layer, h, embedding, tokens, mask)
        for layer in self.up:
            if isinstance(layer, Stage):
                h = torch.cat([h, skips.pop()], 1)
            h = self._step(layer, h, embedding, tokens, mask)
        result: Tensor = self.out(F.silu(self.norm(h)))
        return at_least_single(result)

    @staticmethod
    def _step(layer: nn.Module, h: Tensor, embedding: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        if isinstance(layer, Stage):
            return layer(h, embedding, tokens, mask)  # type: ignore[no-any-return]
        result: Tensor = layer(h, embedding) if isinstance(layer, ResBlock) else layer(h)
        return result


def _grow(x: Tensor, factor: int) -> tuple[Tensor, tuple[int, int]]:
    """Sides grown to multiples of `factor` by repeating the edge; and the sides as they were."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % factor, 0, -height % factor), mode="replicate"), (height, width)
