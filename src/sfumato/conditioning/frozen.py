"""A frozen text model of `transformers` in a folder on this machine, and what it made of texts, kept on disk.

Nothing comes from the network, and nothing from pickle. What a model makes of a text's tokens hangs on its weights
alone, so a file a text is kept under the SHA-256 of the weights and the tokens: every later run finds it, and where two
processes make the same one, each writes it whole.
"""

import functools
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sfumato import files
from sfumato.features.vision import library

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# without any of them some tokenizers open all the same, and know no word
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
AT_ONCE = 32  # texts that the model reads together


class Kind(NamedTuple):
    """How texts are read by models of a `model_type`: the class of `transformers`, and names in config.json."""

    reader: str
    width: str
    most: str | None  # None: it reads texts of any length


KINDS = {
    "clip": Kind("CLIPTextModel", "hidden_size", "max_position_embeddings"),
    "clip_text_model": Kind("CLIPTextModel", "hidden_size", "max_position_embeddings"),
    "t5": Kind("T5EncoderModel", "d_model", None),
    "bert": Kind("BertModel", "hidden_size", "max_position_embeddings"),
}


class Facts(NamedTuple):
    """What a folder's config.json says of its text model."""

    kind: str
    width: int
    vocabulary: int
    most: int | None  # tokens of a text


def described(folder: Path) -> Facts:
    """What a folder's text model is. Raises `ValueError` where it is none that can be read."""
    _there(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is no folder of transformers: it has no {CONFIG}; give a model's folder")
    config = _json(path)
    name = str(config.get("model_type"))
    if name not in KINDS:
        raise ValueError(f"{folder} holds a model of type {name!r}; known as text models: {', '.join(KINDS)}")
    kind, told = KINDS[name], config.get("text_config", config)
    try:
        most = None if kind.most is None else int(told[kind.most])
        return Facts(name, int(told[kind.width]), int(told["vocab_size"]), most)
    except KeyError as error:
        raise ValueError(f"{path} does not tell {error}; copy the folder again, whole") from None


def fingerprint(folder: Path, expected: str | None = None) -> str:
    """SHA-256 of the folder's weights, of a model in parts that of its parts' hashes and names.

    Raises `ValueError` where a file is missing, the weights are no safetensors, or are not the expected ones.
    """
    several = _weights(folder)
    digests = [files.sha256(path) for path in several]
    found = digests[0]
    if several[0].name != WEIGHTS:
        lines = (f"{digest} {path.name}\n" for digest, path in zip(digests, several, strict=True))
        found = hashlib.sha256("".join(lines).encode()).hexdigest()
    if expected is not None and found != expected:
        raise ValueError(
            f"the weights in {folder} have SHA-256 {found}, the model was trained with {expected}; get those"
        )
    return found


def _weights(folder: Path) -> list[Path]:
    """The file of the weights, or where there is an index instead the parts that it names."""
    _there(folder)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder / WEIGHTS} is missing; the weights must be in safetensors: save the model again so")
    parts = [folder / name for name in sorted(set(_json(folder / INDEX).get("weight_map", {}).values()))]
    lacking = [path for path in parts if not path.is_file()]
    if lacking or not parts:
        raise ValueError(f"{folder} lacks {lacking[0].name if lacking else 'weights'}; copy the folder again, whole")
    return parts


def _there(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder} with a text model; copy it there, or name its place as `folder` of this "
            "conditioner, in the recipe or in model.yaml"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy the folder again, whole") from None
    return found if isinstance(found, dict) else {}


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Within this context `transformers` does not report what else is in a file, such as CLIP's pictures' side."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> Any:
    _there(folder)
    remedy = "copy the files of its tokenizer into it; in a pipeline of diffusers they are in the folder `tokenizer`"
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ValueError(f"{folder} has no tokenizer ({', '.join(VOCABULARIES)}); {remedy}")
    transformers = library("pretrained text models")
    try:
        with _quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # of whatever type the file's damage leads to
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"the tokenizer in {folder} cannot be read ({told}); {remedy}") from error


@functools.lru_cache(maxsize=2)
def _model(folder: Path, sha256: str, device: torch.device) -> Any:
    fingerprint(folder, sha256)
    transformers = library("pretrained text models")
    reader = getattr(transformers, KINDS[described(folder).kind].reader)
    with torch.random.fork_rng(devices=[]), _quiet(transformers):  # what a file lacks is drawn from torch's randomness
        model, told = reader.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    lacking = sorted(name for name in told["missing_keys"] if "pooler" not in name)  # which is not read here
    if lacking:
        raise ValueError(
            f"the weights in {folder} have no {lacking[0]} ({len(lacking)} tensors are missing); copy the folder again, whole"
        )
    return model.float().eval().requires_grad_(False).to(device)


def tokens(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text by the folder's tokenizer, marks of its beginning and end included.

    Raises `ValueError` where the tokenizer cannot be read or is that of another model.
    """
    found: list[list[int]] = _tokenizer(folder)(list(texts), verbose=False)["input_ids"]
    known, largest = described(folder).vocabulary, max((max(row, default=0) for row in found), default=0)
    if largest >= known:
        raise ValueError(
            f"the tokenizer in {folder} gives a token {largest}, and its model knows {known}; copy both from one place"
        )
    return found


# not `inference_mode`: what it makes could not be used in training
@torch.no_grad()
def rows(folder: Path, sha256: str, texts: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """What the frozen model makes of texts of tokens, (n, width) float32 each, on the CPU.

    Those of like length are read together, in an order that does not depend on the given one: the same texts always
    give the same bits. Raises `ValueError` where the weights are missing or others.
    """
    model = _model(folder, sha256, device)
    order = sorted(range(len(texts)), key=lambda k: (len(texts[k]), texts[k]))
    found: dict[int, Tensor] = {}
    for begin in range(0, len(order), AT_ONCE):
        some = order[begin : begin + AT_ONCE]
        several = [torch.tensor(texts[k], device=device) for k in some]
        numbers = pad_sequence(several, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in several], batch_first=True)
        with torch.autocast(device.type, enabled=False):
            made = model(input_ids=numbers, attention_mask=mask).last_hidden_state.float().cpu()
        found |= {k: row[: len(texts[k])].clone() for k, row in zip(some, made, strict=True)}
    return [found[k] for k in range(len(texts))]


class Shelf:
    """What a model made of texts, on disk."""

    def __init__(self, folder: Path, sha256: str) -> None:
        self.folder = folder / sha256[:16]

    def _path(self, text: Sequence[int]) -> Path:
        name = hashlib.sha256(json.dumps(list(text)).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"

    def get(self, text: Sequence[int]) -> Tensor | None:
        """The rows (n, width) of a text's tokens; None where they are not there, or damaged."""
        path = self._path(text)
        if not path.is_file():
            return None
        try:
            found = files.load_tensors(path)
        except ValueError:
            return None
        made = found.get("rows")
        return made if made is not None and int(found.get("check", -1)) == _check(made) else None

    def put(self, text: Sequence[int], made: Tensor) -> None:
        """Keep the rows of a text's tokens. Raises `OSError` with a remedy when the disk is full."""
        from safetensors.torch import save

        path = self._path(text)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # not synced, which takes longer than reading the text again: what a power cut takes, `get` notices
            part.write_bytes(save({"rows": made.contiguous(), "check": torch.tensor(_check(made))}))
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise files.full(error, path) from error


def _check(made: Tensor) -> int:
    return zlib.crc32(made.contiguous().numpy().tobytes())
