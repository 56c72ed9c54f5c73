"""Attention over tokens and over the positions of a map (Vaswani et al., 2017; Rombach et al., 2022, section 3.3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.nn import choose
from sfumato.nn.conv import Conv2d, zeroed
from sfumato.nn.norm import norm


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """softmax(q k' / sqrt(d)) v for (B, H, N, d) queries and (B, H, M, d) keys; `mask` (B, M) is True where a key counts, as at
    least one of each example's does, for what an average of nothing is differs by kernel.
    Where `causal` a query sees the keys up to its own place; with a mask too, that is a `ValueError`."""
    if causal and mask is not None:
        raise ValueError("causal attention takes no mask; pad at the end, where no earlier query looks")
    if not choose.products(q, k, v) or (causal and choose.scores(q, k) > choose.KEPT):
        shown = None if mask is None else mask[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=shown, is_causal=causal)
    with torch.autocast("cpu", enabled=False):  # which would have the softmax read and write float32
        q = q * q.shape[-1] ** -0.5
        if causal:
            later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
            return _products(q, k.transpose(-1, -2), v, later)
        if torch.is_grad_enabled() or choose.scores(q, k) <= choose.SCORES:
            return _products(q, k.transpose(-1, -2), v, None if mask is None else ~mask[:, None, None, :])
        return _by_parts(q, k.transpose(-1, -2), v, mask)


def _products(q: Tensor, keys: Tensor, v: Tensor, shut: Tensor | None) -> Tensor:
    """(..., N, d) scaled queries, (..., d, M) keys, (..., M, d) values; `shut` is True where a key does not count."""
    scores = q @ keys
    if shut is not None:
        scores = scores.masked_fill(shut, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def _by_parts(q: Tensor, keys: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same for some heads, or some queries of one head, at a time: fresh memory costs more than the products."""
    batch, heads, rows, _ = q.shape
    shut = None if mask is None else ~mask[:, None, None, :].expand(-1, heads, 1, -1).flatten(0, 1)
    q, keys, v = q.flatten(0, 1), keys.flatten(0, 1), v.flatten(0, 1)
    each = rows * keys.shape[-1] * q.element_size()  # bytes of a head
    at_once, fewer = max(choose.SCORES // each, 1), max(rows * choose.SCORES // each, 1)
    found = torch.empty(*q.shape[:-1], v.shape[-1], dtype=v.dtype)
    for k in range(0, len(q), at_once):
        part = slice(k, k + at_once)
        for n in range(0, rows, fewer):
            some = None if shut is None else shut[part]
            found[part, n : n + fewer] = _products(q[part, n : n + fewer], keys[part], v[part], some)
    return found.reshape(batch, heads, rows, -1)


class Attention(nn.Module):
    """Queries from x (B, N, C); keys and values from `context` (B, M, W), or from x itself."""

    def __init__(self, width: int, heads: int, context: int | None = None, *, bias: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads; choose heads that divide it")
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context or width, width, bias=bias)
        self.to_v = nn.Linear(context or width, width, bias=bias)
        self.to_out = nn.Linear(width, width)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = self._heads(self.to_q(x)), self._heads(self.to_k(source)), self._heads(self.to_v(source))
        result: Tensor = self.to_out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return result


class GatedFeedForward(nn.Module):
    """GEGLU (Shazeer, 2020): (B, N, C) -> (B, N, C) through `expansion` times the width."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        self.into = nn.Linear(width, 2 * expansion * width)
        self.out = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.into(x).chunk(2, -1)
        result: Tensor = self.out(value * F.gelu(gate))
        return result


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention (where there is a context) and feed-forward, each after a layer norm."""

    def __init__(self, width: int, heads: int, context: int | None = None, expansion: int = 4) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width) if context else None
        self.attn2 = Attention(width, heads, context) if context else None
        self.norm3, self.feed = nn.LayerNorm(width), GatedFeedForward(width, expansion)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, own: Tensor | None = None
    ) -> Tensor:
        """x (B, N, C), context (B, M, W) with its mask (B, M); `own` (B, N) masks x itself (padding of a text)."""
        x = x + self.attn1(self.norm1(x), mask=own)
        if self.norm2 is not None and self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context, mask)
        result: Tensor = x + self.feed(self.norm3(x))
        return result


def spread(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W), with the sides of `like`."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *like.shape[-2:])


class SpatialTransformer(nn.Module):
    """(B, C, H, W) -> (B, C, H, W): positions as tokens through `depth` transformer blocks, added to the input."""

    def __init__(
        self,
        channels: int,
        heads: int,
        context: int | None = None,
        *,
        depth: int = 1,
        expansion: int = 4,
        groups: int | None = 32,
        linear: bool = True,
    ) -> None:
        super().__init__()
        self.norm = norm(channels, groups, eps=1e-6)
        self.linear = linear
        self.into = nn.Linear(channels, channels) if linear else Conv2d(channels, channels, 1)
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, context, expansion) for _ in range(depth))
        self.out = zeroed(nn.Linear(channels, channels) if linear else Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h = self.norm(x)
        tokens = self.into(h.flatten(2).transpose(1, 2)) if self.linear else self.into(h).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, context, mask)
        if self.linear:
            return x + spread(self.out(tokens), x)
        result: Tensor = x + self.out(spread(tokens, x))
        return result


class MapAttention(nn.Module):
    """Self-attention over the positions of a map with one norm before it: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, heads: int = 1, *, groups: int | None = 32, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = norm(channels, groups, eps)
        self.attention = Attention(channels, heads, bias=True)
        zeroed(self.attention.to_out)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        return x + spread(self.attention(tokens), x)
