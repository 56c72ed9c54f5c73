"""Where a word is looked at: the cross-attention of single tokens over the picture (Hertz et al., 2022; Tang et al., 2023).

Queries and keys of every cross-attention are seen as they go in, so the network itself knows nothing of it. Maps are means
over heads, layers and steps, each layer's enlarged to the picture.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import image, paths
from sfumato.conditioning.text import Text
from sfumato.model import LatentDiffusion
from sfumato.nn.attention import Attention, TransformerBlock
from sfumato.streams import Stream
from sfumato.tasks.requests import Generate
from sfumato.tasks.walk import walk

MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # with which the tokenizer begins a word
SIDE, GAP, TITLE = 96, 4, 18  # of what is drawn, in pixels: a map at the least, between maps, a word's line


class Watch:
    """Sums of attention maps (B, N, S, S) over layers and steps."""

    def __init__(self, side: int) -> None:
        self.side, self.total, self.count = side, torch.zeros(()), 0

    def add(self, attention: Attention, x: Tensor, context: Tensor, mask: Tensor | None) -> None:
        """One call: x (B, h * w, C) looks at a context (B, N, W)."""
        q, k = (
            t.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for t in (attention.to_q(x), attention.to_k(context))
        )
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        maps = scores.float().softmax(-1).mean(1).transpose(1, 2)  # (B, N, h * w)
        side = round(maps.shape[-1] ** 0.5)
        large = F.interpolate(
            maps.unflatten(-1, (side, side)), size=(self.side, self.side), mode="bicubic", align_corners=False
        )
        self.total, self.count = self.total + large, self.count + 1

    @property
    def maps(self) -> Tensor:
        """Their means."""
        return self.total / max(self.count, 1)


@contextmanager
def watching(network: nn.Module, side: int) -> Iterator[Watch]:
    """While within, what the network's cross-attentions look at, in maps of `side` places."""
    watch = Watch(side)

    def hook(module: nn.Module, given: Sequence[Any]) -> None:
        x, context, *rest = given
        if context is not None:
            assert isinstance(module, Attention)
            watch.add(module, x, context, rest[0] if rest else None)

    crossed = [b.attn2 for b in network.modules() if isinstance(b, TransformerBlock) and b.attn2 is not None]
    handles = [attention.register_forward_pre_hook(hook) for attention in crossed]
    try:
        with paths.plain():  # lanes would split the batch
            yield watch
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def words(
    model: LatentDiffusion, prompt: str, seed: int, steps: int = 25, guidance: float = 3.0
) -> tuple[Tensor, list[str], Tensor]:
    """A picture (C, S, S) of a prompt, its words, and the map of each over the picture (N, S, S).

    Guidance runs both branches in one batch: the maps are those of the given words. Raises `ValueError` where the
    model reads no text.
    """
    reader = next((c for c in model.conditions.modules() if isinstance(c, Text)), None)
    if reader is None:
        raise ValueError("attention to words needs a model that reads text; train one with a conditioner of kind text")
    noise = Stream([seed])
    request = Generate(steps=steps, guidance=guidance, seed=0)
    with watching(model.denoiser.network, model.size) as watch:
        latents = walk(
            model, noise.normal(model.latent_shape(), 0).to(model.device), request, {"caption": [prompt]}, noise
        )
    pieces = reader.tokenizer.encode(prompt).tokens
    said, maps = merged(pieces, watch.maps[0, : len(pieces)].cpu())
    return model.pictures(latents)[0].cpu(), said, maps


def strip(picture: Tensor, said: Sequence[str], maps: Tensor) -> Image.Image:
    """A picture (C, S, S) and beside it each word's map (N, S, S) over it, the word above."""
    scale = max(SIDE // picture.shape[-1], 1)
    plain = image.to_pil(picture[None])[0].convert("RGB")
    tiles = [plain.resize((scale * plain.width, scale * plain.height), Image.Resampling.BICUBIC)]
    tiles += overlaid(picture, maps, scale)
    width, height = tiles[0].size
    whole = Image.new("RGB", ((width + GAP) * len(tiles) - GAP, height + TITLE), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.truetype(findfont("DejaVu Sans"), TITLE - 5)
    for k, (tile, word) in enumerate(zip(tiles, ["", *said], strict=True)):
        whole.paste(tile, (k * (width + GAP), TITLE))
        draw.text((k * (width + GAP) + width / 2, TITLE - 3), word, "black", font, anchor="ms")
    return whole


def overlaid(picture: Tensor, maps: Tensor, scale: int = 2) -> list[Image.Image]:
    """Each map (S, S) as a heat over the picture (C, S, S).

    A map is told beside its own mean, for words get unlike shares of the whole, and all on one scale: a word that is
    looked at from everywhere alike stays flat.
    """
    base = np.asarray(image.to_pil(picture[None])[0].convert("L"), dtype=np.float32)[..., None] / 255.0
    heat = maps / maps.mean((-2, -1), keepdim=True).clamp(min=1e-9)
    heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-9)
    found = []
    for one in heat:
        colour = matplotlib.colormaps["inferno"](one.numpy())[..., :3]
        mixed = (0.35 * base + 0.65 * colour).clip(0, 1)
        shown = Image.fromarray((255 * mixed).round().astype(np.uint8))
        found.append(shown.resize((scale * shown.width, scale * shown.height), Image.Resampling.BICUBIC))
    return found


def merged(pieces: Sequence[str], maps: Tensor) -> tuple[list[str], Tensor]:
    """Pieces of one word joined and their maps added; signs alone are left out.

    A piece that begins a word is marked by the tokenizer.
    """
    said, rows = list[str](), list[Tensor]()
    for piece, one in zip(pieces, maps, strict=True):
        if piece.startswith(MARK) or not said:
            said.append(piece.removeprefix(MARK))
            rows.append(one)
        else:
            said[-1], rows[-1] = said[-1] + piece, rows[-1] + one
    kept = [k for k, word in enumerate(said) if any(c.isalnum() for c in word)] or list(range(len(said)))
    return [said[k] for k in kept], torch.stack([rows[k] for k in kept])
