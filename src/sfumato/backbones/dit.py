"""`kind: dit`. The diffusion transformer of Peebles & Xie (2023): patches as tokens, conditions by adaLN-zero.

The vector and the time scale, shift and gate every block; gates begin at 0, so each block begins as the identity.
Tokens of conditions are read by cross-attention after the self-attention (Chen et al., 2023, «PixArt»), whose output
begins at 0 too, and the image condition is laid beside the latent before it is cut into patches: the same three doors
as the U-Net's. By options it has the published sizes (S, B, L, XL); the defaults are a small one with normed queries
and keys (Henry et al., 2020) and rotary positions, which know no largest size.
"""

from collections.abc import Iterator
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.backbones.base import Backbone, BackboneConfig, Conditions, Sizes, beside
from sfumato.device import at_least_single
from sfumato.nn.attention import attend
from sfumato.nn.conv import zeroed
from sfumato.nn.embed import TimeEmbedding
from sfumato.nn.position import rotate, rotations, sines, stretched

CLOCK = 256  # width of the sinusoid of the time, as published


class DiTConfig(BackboneConfig):
    """Sizes of the transformer. DiT-XL/2 is width 1152, depth 28, heads 16, patch 2, positions sine, qk_norm false."""

    patch: PositiveInt = Field(2, description="latent places a token's side; sides it does not divide are padded")
    width: PositiveInt = 384
    depth: PositiveInt = 12
    heads: PositiveInt = 6
    expansion: PositiveInt = Field(4, description="width of the feed-forward over the tokens' width")
    positions: Literal["rotary", "sine", "learned"] = "rotary"
    side: PositiveInt = Field(16, description="tokens a side of the table of learned positions; stretched to others")
    qk_norm: bool = Field(True, description="queries and keys are normed, which keeps long trainings stable")
    dropout: float = Field(0.0, ge=0, lt=1)
    direct_vector: bool = Field(False, description="the vector is as wide as the tokens and added unprojected")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads; choose heads that divide it")
        if self.positions == "rotary" and self.width // self.heads % 4:
            raise ValueError(f"rotary positions need heads of a width that 4 divides; it is {self.width // self.heads}")
        if self.positions == "sine" and self.width % 4:
            raise ValueError(f"sine positions need a width that 4 divides; it is {self.width}")
        return self

    def build(self, channels: int, sizes: Sizes) -> "DiT":
        return DiT(self, channels, sizes)


Turn = tuple[Tensor, Tensor] | None


class HeadNorm(nn.RMSNorm):
    """RMS norm over a head's width, in the type of its input: under autocast a mixture of types would be slow."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class HeadAttention(nn.Module):
    """Attention of x (B, N, C) to itself, or to a context (B, M, W), with normed queries and keys where asked."""

    def __init__(self, width: int, heads: int, context: int | None, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width) if context else None
        self.to_qkv = nn.Linear(context or width, (2 if context else 3) * width)
        self.norm_q = HeadNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.norm_k = HeadNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.to_out = nn.Linear(width, width)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, turn: Turn = None
    ) -> Tensor:
        if self.to_q is None:
            q, k, v = (self._heads(part) for part in self.to_qkv(x).chunk(3, -1))
        else:
            k, v = (self._heads(part) for part in self.to_qkv(context).chunk(2, -1))
            q = self._heads(self.to_q(x))
        q, k = self.norm_q(q), self.norm_k(k)
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        result: Tensor = self.to_out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """Self-attention, cross-attention (where there are tokens) and feed-forward, steered by adaLN-zero."""

    def __init__(self, config: DiTConfig, context: int | None) -> None:
        super().__init__()
        c = config
        self.modulate = zeroed(nn.Linear(c.width, 6 * c.width))
        self.norm1 = nn.LayerNorm(c.width, 1e-6, elementwise_affine=False)
        self.attention = HeadAttention(c.width, c.heads, None, c.qk_norm)
        self.cross = HeadAttention(c.width, c.heads, context, c.qk_norm) if context else None
        if self.cross is not None:
            zeroed(self.cross.to_out)
        self.norm2 = nn.LayerNorm(c.width, 1e-6, elementwise_affine=False)
        self.feed = nn.Sequential(
            nn.Linear(c.width, c.expansion * c.width),
            nn.GELU("tanh"),
            nn.Dropout(c.dropout),
            nn.Linear(c.expansion * c.width, c.width),
        )

    def forward(self, x: Tensor, steer: Tensor, tokens: Tensor | None, mask: Tensor | None, turn: Turn) -> Tensor:
        """x (B, N, C), steer (B, C), tokens (B, M, W) with their mask (B, M)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(steer)[:, None].chunk(6, -1)
        x = torch.addcmul(x, gate1, self.attention(modulated(self.norm1(x), shift1, scale1), turn=turn))
        if self.cross is not None:
            x = x + self.cross(F.layer_norm(x, x.shape[-1:], eps=1e-6), tokens, mask)
        return torch.addcmul(x, gate2, self.feed(modulated(self.norm2(x), shift2, scale2)))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


class DiT(Backbone):
    """(x_t (B, C, h, w), clock (B,), conditions) -> (B, C, h, w); its output is exactly 0 before training."""

    def __init__(self, config: DiTConfig, channels: int, sizes: Sizes) -> None:
        super().__init__()
        c = self.config = config
        self.sizes, self.factor = sizes, c.patch
        if c.direct_vector and sizes.vector not in (0, c.width):
            raise ValueError(f"direct_vector wants a vector of {c.width}; the conditioners give {sizes.vector}")
        self.time = TimeEmbedding(CLOCK, c.width)
        self.vector = nn.Identity() if c.direct_vector else nn.Linear(sizes.vector, c.width) if sizes.vector else None
        self.into = nn.Linear((channels + sizes.image) * c.patch**2, c.width)
        if c.positions == "learned":
            self.table = nn.Parameter(0.02 * torch.randn(c.width, c.side, c.side))
        self.blocks = nn.ModuleList(Block(c, sizes.tokens or None) for _ in range(c.depth))
        self.modulate = zeroed(nn.Linear(c.width, 2 * c.width))
        self.norm = nn.LayerNorm(c.width, 1e-6, elementwise_affine=False)
        self.out = zeroed(nn.Linear(c.width, channels * c.patch**2))
        self._grids: dict[tuple[int, int, torch.device], Tensor | tuple[Tensor, Tensor]] = {}

    def _steer(self, clock: Tensor, cond: Conditions | None) -> Tensor:
        embedding: Tensor = self.time(clock)
        if self.sizes.vector and self.vector is not None:
            if cond is None or cond.vector is None:
                raise ValueError("this network needs a vector condition; give the bundle's null where nothing is said")
            embedding = embedding + self.vector(cond.vector)
        return F.silu(embedding)

    def _grid(self, size: tuple[int, int], device: torch.device) -> Tensor | tuple[Tensor, Tensor]:
        """Rotations, or sine positions, of a grid; those of the last few grids are kept."""
        if torch.compiler.is_compiling():
            # what a captured graph makes lies in its memory, which the next call writes to
            return self._made(size, device)
        key = (*size, device)
        found = self._grids.get(key)
        if found is None:
            with torch.inference_mode(False):  # or a training could not use what a sampling has left
                found = self._made(size, device)
            if len(self._grids) > 7:
                self._grids.clear()
            self._grids[key] = found
        return found

    def _made(self, size: tuple[int, int], device: torch.device) -> Tensor | tuple[Tensor, Tensor]:
        if self.config.positions == "rotary":
            cos, sin = rotations(size, self.config.width // self.config.heads)
            return cos.to(device), sin.to(device)
        return sines(size, self.config.width).to(device)

    def _placed(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Turn]:
        """Tokens (B, N, C) with their positions added, or the rotations that tell them."""
        if self.config.positions == "learned":
            return x + stretched(self.table, size).to(x.dtype), None
        found = self._grid(size, x.device)
        return (x, found) if isinstance(found, tuple) else (x + found.to(x.dtype), None)

    def levelled(self) -> Iterator[tuple[int, nn.Module]]:
        """Each block with its downsampling factor: that of the patches, for all."""
        yield from ((self.factor, block) for block in self.blocks)

    def forward(self, x_t: Tensor, clock: Tensor, cond: Conditions | None = None) -> Tensor:
        x, patch = beside(x_t, cond, self.sizes.image), self.config.patch
        high, wide = x_t.shape[-2:]
        if high % patch or wide % patch:
            x = F.pad(x, (0, -wide % patch, 0, -high % patch), mode="replicate")
        size = (x.shape[-2] // patch, x.shape[-1] // patch)
        steer = self._steer(clock, cond)
        tokens, mask = (None, None) if cond is None or not self.sizes.tokens else (cond.tokens, cond.mask)
        if self.sizes.tokens and tokens is None:
            raise ValueError("this network needs tokens; give the bundle's null where nothing is said")
        h, turn = self._placed(self.into(F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)), size)
        for block in self.blocks:
            h = block(h, steer, tokens, mask, turn)
        shift, scale = self.modulate(steer)[:, None].chunk(2, -1)
        h = self.out(modulated(self.norm(h), shift, scale))
        result = F.pixel_shuffle(h.transpose(1, 2).reshape(h.shape[0], -1, *size), patch)
        return at_least_single(result[..., :high, :wide])
