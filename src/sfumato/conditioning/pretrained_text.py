"""`kind: pretrained_text`. A frozen text model of `transformers`: CLIP's text side, T5's encoder, or BERT.

It is read from a folder on this machine, never from the network and never from pickle. Its weights are not part of the
trained model: the model folder names the folder and the SHA-256 of the weights, and refuses others. What the model
makes of a text is kept, so that each text is read once a process; texts are read one at a time, so that a text's
numbers do not depend on what it was batched with.
"""

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sfumato import files
from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Latents, Setting, Sizes
from sfumato.features.vision import library

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# the class of `transformers` that reads texts, and the name of its width in config.json
READERS = {
    "clip": ("CLIPTextModel", "hidden_size"),
    "clip_text_model": ("CLIPTextModel", "hidden_size"),
    "t5": ("T5EncoderModel", "d_model"),
    "bert": ("BertModel", "hidden_size"),
}
_lock = threading.Lock()  # parts of a batch run side by side; one of them opens a model


class PretrainedTextConfig(ConditionerConfig):
    """`folder` is as `transformers` writes it; `sha256` and `width` are read from it and kept with the model."""

    field: str = "caption"
    folder: Path
    length: PositiveInt = Field(77, description="tokens that a text may have; longer ones are refused")
    pooled: bool = Field(False, description="the mean of the tokens also joins the time embedding")
    cache: PositiveInt = Field(20_000, description="texts whose outputs are kept in memory")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    width: PositiveInt | None = None
    reads: ClassVar[bool] = False

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["PretrainedTextConfig", dict[str, str]]:
        kind, width = described(self.folder)
        found = fingerprint(self.folder, self.sha256)
        if self.width not in (None, width):
            raise ValueError(f"{self.folder} holds a {kind} of width {width}, `width` says {self.width}; leave it out")
        return self.model_copy(update={"folder": self.folder.resolve(), "sha256": found, "width": width}), {}

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "PretrainedText":
        if self.sha256 is not None and self.width is not None:
            return PretrainedText(self)  # the folder is looked at when the first text comes
        settled, _ = self.learn((), ())
        return PretrainedText(settled)


def described(folder: Path) -> tuple[str, int]:
    """The type and the width of a folder's text model. Raises `ValueError` where it is none that can be read."""
    path = folder / CONFIG
    _there(folder)
    if not path.is_file():
        raise ValueError(f"{folder} is no folder of transformers: it has no {CONFIG}; give a model's folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy the folder again, whole") from None
    kind = str(config.get("model_type"))
    if kind not in READERS:
        raise ValueError(f"{folder} holds a model of type {kind!r}; known as text models: {', '.join(READERS)}")
    return kind, int(config.get("text_config", config)[READERS[kind][1]])


def fingerprint(folder: Path, expected: str | None = None) -> str:
    """SHA-256 of the folder's weights. Raises `ValueError` where they are missing, no safetensors, or others."""
    path = folder / WEIGHTS
    _there(folder)
    if not path.is_file():
        raise ValueError(f"{path} is missing; the weights must be in one safetensors file: save the model again so")
    found = files.sha256(path)
    if expected is not None and found != expected:
        raise ValueError(f"{path} has SHA-256 {found}, the model was trained with {expected}; get that file")
    return found


def _there(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder} with a text model; copy it there, or name its place as `folder` of this "
            "conditioner, in the recipe or in model.yaml"
        )


class Reader(NamedTuple):
    """A frozen text model and its tokenizer."""

    model: Any
    tokenizer: Any


@functools.lru_cache(maxsize=2)
def _opened(folder: Path, sha256: str | None, device: str) -> Reader:
    fingerprint(folder, sha256)
    transformers = library("pretrained text models")
    local: dict[str, Any] = {"local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **local)
    reader = getattr(transformers, READERS[described(folder)[0]][0])
    with torch.random.fork_rng(devices=[]):  # what a file lacks is drawn from torch's own randomness
        model, told = reader.from_pretrained(str(folder), use_safetensors=True, output_loading_info=True, **local)
    lacking = sorted(name for name in told["missing_keys"] if "pooler" not in name)  # which is not read here
    if lacking:
        raise ValueError(
            f"{folder / WEIGHTS} has no {lacking[0]} ({len(lacking)} tensors are missing); copy the folder again, whole"
        )
    return Reader(model.float().eval().requires_grad_(False).to(device), tokenizer)


class PretrainedText(Conditioner):
    """Texts -> tokens (B, N, width) with their mask (B, N); learned are a norm after the frozen model, and the null."""

    def __init__(self, config: PretrainedTextConfig) -> None:
        super().__init__()
        assert config.width is not None
        self.config, self.field, self.dropout = config, config.field, config.dropout
        self.sizes = Sizes(vector=config.width if config.pooled else 0, tokens=config.width)
        self.norm = nn.LayerNorm(config.width)
        self.nothing = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        self.kept: OrderedDict[str, Tensor] = OrderedDict()  # text -> (n, width) float32, on the CPU

    def frozen(self, text: str) -> Tensor:
        """What the frozen model makes of a text, (n, width) float32 on the CPU; read once, then kept."""
        with _lock:
            if text in self.kept:
                self.kept.move_to_end(text)
            else:
                self.kept[text] = self._read(text)
                while len(self.kept) > self.config.cache:
                    self.kept.popitem(last=False)
            return self.kept[text]

    # not `inference_mode`: what it makes could not be used in training
    @torch.no_grad()
    def _read(self, text: str) -> Tensor:
        device = self.nothing.device
        model, tokenizer = _opened(self.config.folder, self.config.sha256, str(device))
        words = tokenizer([text], return_tensors="pt")
        count = int(words["input_ids"].shape[1])
        if count > self.config.length:
            raise ValueError(
                f"the {self.field} {text[:40]!r}... has {count} tokens, this model reads {self.config.length}; shorten it"
            )
        with torch.autocast(device.type, enabled=False):
            found = model(input_ids=words["input_ids"].to(device), attention_mask=words["attention_mask"].to(device))
        rows: Tensor = found.last_hidden_state[0].float().cpu()
        return rows

    def forward(self, values: Sequence[Any], setting: Setting | None = None) -> Conditions:
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{self.field} must be a text that says something; got {value!r}")
        rows = [self.frozen(v) for v in values]
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
