"""`kind: autoregressive`. A causal transformer over tokens, one after the other (van den Oord et al., 2016; Chen et al., 2020).

`tokens: bytes` are the values of a picture that is made small, 256 of them: the likelihood of its 8 bits is exact.
`palette` are its pixels' nearest of K colours, three times fewer (iGPT's trick). `codes` are the indices of a VQ first
stage in raster order: the two-stage models that the paper compares with (Esser et al., 2021). Sampling keeps the keys
and values of what was drawn before.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.autoencoder.codebook import nearest
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.vq import VQAutoencoder
from sfumato.families.base import Drawn, Family, FamilyConfig, Shape, classes
from sfumato.lanes import rows_side_by_side
from sfumato.nn.attention import attend
from sfumato.streams import Stream

Cache = list[tuple[Tensor, Tensor]]  # of each block: keys and values (B, heads, N, d), written up to a place


class AutoregressiveConfig(FamilyConfig):
    """Sizes, tokens, and how they are drawn."""

    tokens: Literal["bytes", "palette", "codes"] = "codes"
    side: PositiveInt = Field(16, description="pixels a side that bytes and palettes tell; pictures are made smaller")
    colours: PositiveInt = Field(256, description="of the palette")
    width: PositiveInt = 256
    depth: PositiveInt = 6
    heads: PositiveInt = 4
    dropout: float = Field(0.0, ge=0, lt=1)
    drop: float = Field(0.1, ge=0, le=1, description="share of the examples whose class is left out, for guidance")
    temperature: PositiveFloat = 1.0
    top: int = Field(0, ge=0, description="draw among so many likeliest tokens; 0: all")

    @property
    def coded(self) -> bool:
        return self.tokens == "codes"

    def build(self, shape: Shape, labels: tuple[str, ...], codec: Codec | None) -> "Autoregressive":
        return Autoregressive(self, shape, labels, codec)


class Block(nn.Module):
    """Causal self-attention and a feed-forward, each after a layer norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads; choose heads that divide it")
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, kept: tuple[Tensor, Tensor] | None = None, place: int = 0) -> Tensor:
        """x (B, n, C) -> the same; with `kept`, x is the one token at a place, which is written there and looks back."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        if kept is not None:
            for held, own in zip(kept, (k, v), strict=True):
                held[:, :, place : place + 1] = own
            k, v = (held[:, :, : place + 1] for held in kept)
        h = attend(q, k, v, causal=kept is None)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        result: Tensor = x + self.feed(self.norm2(x))
        return result


class Places(nn.Module):
    """What tells a token where it stands, (N, C): its row, its column and which value of a pixel it is, added up."""

    def __init__(self, grid: int, values: int, width: int) -> None:
        super().__init__()
        self.rows, self.columns = (nn.Parameter(0.02 * torch.randn(grid, width)) for _ in range(2))
        self.values = nn.Parameter(0.02 * torch.randn(values, width))

    def forward(self) -> Tensor:
        whole = self.rows[:, None, None] + self.columns[None, :, None] + self.values
        return whole.flatten(0, 2)


class Transformer(nn.Module):
    """Tokens (B, N) and classes (B,) -> logits (B, N, K) of each token, from those before it."""

    palette: Tensor

    def __init__(
        self, grid: int, values: int, vocabulary: int, config: AutoregressiveConfig, labels: tuple[str, ...]
    ) -> None:
        super().__init__()
        count = grid**2 * values
        self.count, self.vocabulary, self.none = count, vocabulary, len(labels)
        self.heads = config.heads
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.places = Places(grid, values, config.width)
        self.start, self.named = nn.Parameter(torch.zeros(config.width)), classes(labels, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.depth))
        self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, vocabulary)
        nn.init.normal_(self.tokens.weight, 0, 0.02)
        nn.init.zeros_(self.head.weight)

    def first(self, labels: Tensor) -> Tensor:
        """What stands before the first token, (B, 1, C)."""
        rows = self.start.expand(len(labels), -1)
        return (rows if self.named is None else rows + self.named(labels))[:, None]

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = torch.cat([self.first(labels), self.tokens(tokens[:, :-1])], 1) + self.places()
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(self.norm(x))
        return result.float() if result.dtype != torch.float64 else result

    def step(self, x: Tensor, place: int, cache: Cache) -> tuple[Tensor, Cache]:
        """The logits (B, K) of the token at a place, from x (B, 1, C): what stands before it, and where it is itself."""
        if not cache:  # room for all tokens at once: growing it would copy all that is kept at every token
            size = (len(x), self.heads, self.count, x.shape[-1] // self.heads)
            cache = [(x.new_empty(size), x.new_empty(size)) for _ in self.blocks]
        for block, kept in zip(self.blocks, cache, strict=True):
            x = block(x, kept, place)
        return self.head(self.norm(x))[:, 0].float(), cache


class Predicting(nn.Module):
    """The turn: cross-entropy of every token, in nats."""

    def __init__(self, transformer: Transformer, family: "Autoregressive") -> None:
        super().__init__()
        self.transformer, self._family = transformer, [family]

    def forward(self, batch: Drawn) -> dict[str, Tensor]:
        family = self._family[0]
        with torch.no_grad():
            tokens = family.read(batch.images)
        labels = batch.labels
        if family.labels and family.config.drop:
            gone = batch.uniform((), "drop class") < family.config.drop
            labels = torch.where(gone, len(family.labels), labels)
        logits = self.transformer(tokens, labels)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        return {"loss": loss, "bits_a_token": loss.detach() / math.log(2)}


class Autoregressive(Family):
    """As many evaluations a picture as it has tokens, each of one token."""

    def __init__(
        self, config: AutoregressiveConfig, shape: Shape, labels: tuple[str, ...], codec: Codec | None = None
    ) -> None:
        super().__init__()
        self.config, self.shape, self.labels = config, shape, labels
        self._codec = [codec] if codec is not None else []  # frozen, kept in a folder of its own
        if config.tokens == "codes":
            self._coder()  # says what is missing
            self.grid = shape.size // self.codec.factor
            values, vocabulary = 1, self._coder().codebook.size
        else:
            if shape.size % config.side:
                raise ValueError(
                    f"side {config.side} does not divide the pictures' {shape.size} pixels; choose another"
                )
            self.grid = config.side
            values = shape.channels if config.tokens == "bytes" else 1
            vocabulary = 256 if config.tokens == "bytes" else config.colours
        self.transformer = Transformer(self.grid, values, vocabulary, config, labels)
        colours = config.colours if config.tokens == "palette" else 0
        self.transformer.register_buffer("palette", torch.zeros(colours, shape.channels))  # so that checkpoints hold it
        self.evaluations, self.unnamed = self.transformer.count, config.drop > 0
        self.turns = {"transformer": Predicting(self.transformer, self)}

    @property
    def palette(self) -> Tensor:
        """Colours (K, C) in [-1, 1]."""
        return self.transformer.palette

    @property
    def codec(self) -> Codec:
        """The first stage whose codes are the tokens."""
        return self._codec[0]

    def _coder(self) -> VQAutoencoder:
        coder = self._codec[0].autoencoder if self._codec else None
        if not isinstance(coder, VQAutoencoder):
            raise ValueError("tokens: codes are those of a VQ first stage; name its model folder as `autoencoder`")
        return coder

    def parts(self) -> Mapping[str, Codec]:
        return {"autoencoder": self.codec} if self._codec else {}

    def learned(self, turn: str) -> Sequence[nn.Module]:
        return [self.transformer]

    @torch.no_grad()
    def begin(self, images: Tensor) -> None:
        """Choose the palette: k-means of the small pictures' colours, begun at colours spread over them."""
        if self.config.tokens != "palette":
            return
        pixels = self._small(images).movedim(1, -1).flatten(0, 2)
        pixels = pixels[:: max(len(pixels) // 50_000, 1)]
        unique = pixels.unique(dim=0)  # type: ignore[no-untyped-call]
        centres = unique[torch.linspace(0, len(unique) - 1, len(self.palette)).long()].clone()
        for _ in range(12):
            chosen = nearest(pixels, centres)
            sums = torch.zeros_like(centres).index_add_(0, chosen, pixels)
            hits = torch.bincount(chosen, minlength=len(centres))[:, None]
            centres = torch.where(hits > 0, sums / hits.clamp(min=1), centres)
        self.palette.copy_(centres)

    def _small(self, images: Tensor) -> Tensor:
        """Pictures (B, C, S, S) made `side` pixels small by exact averages, rounded to 8 bits."""
        small = F.avg_pool2d(images.float(), self.shape.size // self.grid)
        return ((small + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1

    def read(self, images: Tensor) -> Tensor:
        """Pictures (B, C, S, S) as tokens (B, N)."""
        if self.config.tokens == "codes":
            coder = self._coder().to(images.device)
            # in half precision the encoder's codes are others, and training would learn others than are measured
            with torch.autocast(images.device.type, enabled=False):
                return coder.codes(images.to(next(coder.parameters()).dtype)).flatten(1)
        small = self._small(images)
        if self.config.tokens == "bytes":
            return ((small + 1) * 127.5).round().long().movedim(1, -1).flatten(1)
        return nearest(small.movedim(1, -1).flatten(0, 2), self.palette.to(small)).reshape(len(images), -1)

    def write(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) as pictures (B, C, S, S) in [-1, 1]; small ones are enlarged."""
        if self.config.tokens == "codes":
            return self._coder().to(tokens.device).pictures(tokens.reshape(-1, self.grid, self.grid)).clamp(-1, 1)
        if self.config.tokens == "bytes":
            values = tokens.reshape(len(tokens), self.grid, self.grid, -1).float() / 127.5 - 1
        else:
            values = self.palette[tokens].reshape(len(tokens), self.grid, self.grid, -1)
        small = values.movedim(-1, 1)
        return F.interpolate(small, (self.shape.size,) * 2, mode="bicubic", align_corners=False).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, noise: Stream, labels: Tensor, guidance: float = 1.0) -> Tensor:
        return self.write(self.drawn(noise, labels, guidance))

    @torch.no_grad()
    def drawn(self, noise: Stream, labels: Tensor, guidance: float = 1.0) -> Tensor:
        """Tokens (B, N), each drawn from its distribution by the Gumbel-max trick with the images' own noise."""
        net = self.transformer
        gumbels = _gumbel(noise, (net.count, net.vocabulary)).to(labels.device)
        return rows_side_by_side(
            lambda part: self._drawn(gumbels[part], labels[part], guidance), len(labels), labels.device
        )

    def _drawn(self, gumbels: Tensor, labels: Tensor, guidance: float) -> Tensor:
        net, count = self.transformer, len(labels)
        guided = guidance != 1.0 and self.unnamed and bool(self.labels)
        named = torch.cat([labels, torch.full_like(labels, len(self.labels))]) if guided else labels
        places = net.places()
        x, cache = net.first(named) + places[0], Cache()
        tokens = torch.zeros(count, net.count, dtype=torch.long, device=labels.device)
        for place in range(net.count):
            logits, cache = net.step(x, place, cache)
            if guided:
                given, null = logits.chunk(2)
                logits = null + guidance * (given - null)
            logits = logits / self.config.temperature
            if self.config.top:
                edge = logits.topk(min(self.config.top, logits.shape[1]), 1).values[:, -1:]
                logits = logits.masked_fill(logits < edge, -torch.inf)
            tokens[:, place] = (logits + gumbels[:, place]).argmax(1)
            x = net.tokens(tokens[:, place])[:, None] + places[(place + 1) % net.count]
            x = torch.cat([x, x]) if guided else x
        return tokens

    @torch.no_grad()
    def bits(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """Exact, of the small picture's values, for bytes; codes and palettes lose what they do not say."""
        return self.told(images, labels) if self.config.tokens == "bytes" else None

    @torch.no_grad()
    def told(self, images: Tensor, labels: Tensor) -> Tensor:
        """Bits a token (B,) of pictures (B, C, S, S), whatever the tokens are: comparable between pictures only."""
        tokens = self.read(images)
        logits = self.transformer(tokens, labels)
        nats = F.cross_entropy(logits.movedim(-1, 1), tokens, reduction="none")
        return nats.mean(1) / math.log(2)


def _gumbel(noise: Stream, shape: tuple[int, int]) -> Tensor:
    """Gumbel noise of each image, from its normal draws."""
    uniform = 0.5 * (1 + torch.erf(noise.normal(shape, 0).double() / math.sqrt(2)))
    result: Tensor = -(-uniform.clamp(1e-12, 1 - 1e-12).log()).log()
    return result.float()
