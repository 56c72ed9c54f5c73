"""`kind: pretrained_text`. A frozen text model of `transformers`: CLIP's text side, T5's encoder, or BERT.

It is read from a folder on this machine (`frozen.py`). Its weights are not part of the trained model: the model folder
names the folder and the SHA-256 of the weights, and refuses others.

What the model makes of a text is kept in memory, and of the texts of a training also on disk. Those are read in groups
that hang on the whole of them alone, and every other text by itself: whatever batch it is shown in, a text's numbers
are the same.
"""

import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt, PrivateAttr
from torch import Tensor, nn

from sfumato.conditioning import frozen
from sfumato.conditioning.base import (
    Conditioner,
    ConditionerConfig,
    Conditions,
    Latents,
    Setting,
    Sizes,
    different,
    short_enough,
)

KEPT = Path("runs/texts")
GROUP = 64  # texts of a training that are read when the first of them is shown
COUNTED = 4096  # texts whose tokens are counted together
_lock = threading.Lock()  # parts of a batch run side by side; one of them reads a text


class PretrainedTextConfig(ConditionerConfig):
    """`folder` is as `transformers` writes it; `sha256` and `width` are read from it and kept with the model."""

    field: str = "caption"
    folder: Path
    length: PositiveInt = Field(77, description="tokens that a text may have; longer ones are refused")
    pooled: bool = Field(False, description="the mean of the tokens also joins the time embedding")
    cache: PositiveInt = Field(20_000, description="texts whose outputs are kept in memory")
    memory: PositiveInt = Field(1024, description="MiB that these take at most")
    kept: Path | None = Field(KEPT, description="folder of the outputs for training's texts; null: kept in memory only")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    width: PositiveInt | None = None
    _texts: tuple[str, ...] = PrivateAttr(())  # of the training

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["PretrainedTextConfig", dict[str, str]]:
        told = frozen.described(self.folder)
        found = frozen.fingerprint(self.folder, self.sha256)
        if self.width not in (None, told.width):
            raise ValueError(
                f"{self.folder} holds a {told.kind} of width {told.width}, `width` says {self.width}; leave it out"
            )
        if told.most is not None and self.length > told.most:
            raise ValueError(
                f"{self.folder} holds a {told.kind} that reads {told.most} tokens, `length` says {self.length}; "
                f"give it `length: {told.most}`"
            )
        texts = self._check(values)
        settled = self.model_copy(update={"folder": self.folder.resolve(), "sha256": found, "width": told.width})
        settled._texts = texts
        return settled, {}

    def check(self, values: Sequence[Any], files: Mapping[str, str]) -> None:
        self._check(values)

    def _check(self, values: Sequence[Any]) -> tuple[str, ...]:
        """The different texts among the values of a part. Raises `ValueError` where some are too long."""
        texts, counts = different(values, self.field), list[int]()
        for begin in range(0, len(texts), COUNTED):
            counts += map(len, frozen.tokens(self.folder, texts[begin : begin + COUNTED]))
        short_enough(texts, counts, self.length, self.field, frozen.described(self.folder).most)
        return tuple(texts)

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "PretrainedText":
        if self.sha256 is not None and self.width is not None:
            return PretrainedText(self)  # the folder is looked at when the first text comes
        settled, _ = self.learn((), ())
        return PretrainedText(settled)


class Groups:
    """The texts of a training in groups of about `GROUP`, each text's place in them by its own hash."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.groups: list[list[str]] = [[] for _ in range(max(len(texts) // GROUP, 1))]
        for text in texts:
            self._of(text).append(text)

    def _of(self, text: str) -> list[str]:
        return self.groups[zlib.crc32(text.encode()) % len(self.groups)]

    def __call__(self, text: str) -> list[str]:
        """The texts that are read with this one, itself among them; alone where it is not of the training."""
        found = self._of(text)
        return found if text in found else [text]


class PretrainedText(Conditioner):
    """Texts -> tokens (B, N, width) with their mask (B, N); learned are a norm after the frozen model, and the null."""

    role = "caption"

    def __init__(self, config: PretrainedTextConfig) -> None:
        super().__init__()
        assert config.width is not None
        assert config.sha256 is not None
        self.config, self.field, self.dropout = config, config.field, config.dropout
        self.folder, self.sha256 = config.folder, config.sha256
        self.sizes = Sizes(vector=config.width if config.pooled else 0, tokens=config.width)
        self.norm = nn.LayerNorm(config.width)
        self.nothing = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        self.shelf = None if config.kept is None else frozen.Shelf(config.kept, config.sha256)
        self.writes = self.shelf is not None and bool(config._texts)  # what users ask for is not written down
        self.groups = Groups(config._texts if self.writes else ())
        self.memory: OrderedDict[str, Tensor] = OrderedDict()  # text -> (n, width) float32, on the CPU
        self.taken = 0  # bytes of them

    def taught(self, values: Sequence[Any]) -> None:
        """Hear what a training of a model that was there before will say: what the frozen model makes of it is written down,
        as it is for a new model."""
        texts = different(values, self.field)
        self.writes = self.shelf is not None and bool(texts)
        self.groups = Groups(texts if self.writes else ())

    def listening(self, other: "PretrainedText") -> None:
        """Hear the texts of the training that another of the same frozen model was `taught`."""
        self.writes, self.groups = other.writes, other.groups

    def read(self, text: str) -> Tensor:
        """What the frozen model makes of a text, (n, width) float32 on the CPU; made once, then kept."""
        with _lock:
            if text not in self.memory:
                self.memory[text] = self._found(text)
                self.taken += self.memory[text].nbytes
            self.memory.move_to_end(text)
            full = self.config.memory * 2**20
            while len(self.memory) > self.config.cache or (self.taken > full and len(self.memory) > 1):
                self.taken -= self.memory.popitem(last=False)[1].nbytes
            return self.memory[text]

    def _found(self, text: str) -> Tensor:
        (tokens,) = frozen.tokens(self.folder, [text])
        if len(tokens) > self.config.length:
            raise ValueError(
                f"the {self.field} {text[:40]!r}... has {len(tokens)} tokens, this model reads {self.config.length}; "
                "shorten it"
            )
        found = None if self.shelf is None else self.shelf.get(tokens)
        return self._made(text) if found is None else found

    def _made(self, text: str) -> Tensor:
        """What the model makes of a text now, and of those of its group, which are put on the shelf."""
        texts = self.groups(text)
        tokens = frozen.tokens(self.folder, texts)
        made = frozen.rows(self.folder, self.sha256, tokens, self.nothing.device)
        if self.writes and self.shelf is not None:
            for some, rows in zip(tokens, made, strict=True):
                self.shelf.put(some, rows)
        return made[texts.index(text)]

    def forward(self, values: Sequence[Any], setting: Setting | None = None) -> Conditions:
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{self.field} must be a text that says something; got {value!r}")
        rows = [self.read(v) for v in values]
        longest = max(map(len, rows))
        padded = torch.stack([nn.functional.pad(r, (0, 0, 0, longest - len(r))) for r in rows]).to(self.nothing)
        counts = torch.tensor([len(r) for r in rows], device=padded.device)
        return self._conditions(self.norm(padded), torch.arange(longest, device=padded.device) < counts[:, None])

    def _conditions(self, tokens: Tensor, mask: Tensor) -> Conditions:
        weight = mask.to(tokens.dtype)[..., None]
        vector = (tokens * weight).sum(1) / weight.sum(1) if self.config.pooled else None
        return Conditions(vector=vector, tokens=tokens, mask=mask)

    def null(self, count: int, setting: Setting | None = None) -> Conditions:
        tokens = self.nothing.expand(count, -1, -1)
        return self._conditions(tokens, torch.ones(count, 1, dtype=torch.bool, device=tokens.device))
