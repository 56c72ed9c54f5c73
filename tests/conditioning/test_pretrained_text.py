"""Frozen text models of `transformers`, which a stand-in plays: read once a text, never saved, refused when changed."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sfumato import files
from sfumato.conditioning import pretrained_text
from sfumato.conditioning.pretrained_text import PretrainedText, PretrainedTextConfig

calls: list[list[int]] = []


class Words:
    """A tokenizer: a letter a token, between two marks."""

    @staticmethod
    def from_pretrained(folder: str, local_files_only: bool) -> "Words":
        assert local_files_only
        return Words()

    def __call__(self, texts: list[str], return_tensors: str) -> dict[str, torch.Tensor]:
        numbers = torch.tensor([[1, *(ord(c) % 50 + 3 for c in texts[0]), 2]])
        return {"input_ids": numbers, "attention_mask": torch.ones_like(numbers)}


class Frozen(nn.Module):
    """A text model: an embedding from the folder's safetensors."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    @classmethod
    def from_pretrained(
        cls, folder: str, local_files_only: bool, use_safetensors: bool, output_loading_info: bool
    ) -> "tuple[Frozen, dict[str, Any]]":
        assert local_files_only
        assert use_safetensors
        assert output_loading_info
        tensors = files.load_tensors(Path(folder) / "model.safetensors")
        missing = {"pooler.weight"} | ({"table"} - set(tensors))
        return cls(tensors.get("table", torch.randn(60, 8))), {"missing_keys": missing}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        calls.append(input_ids[0].tolist())
        return SimpleNamespace(last_hidden_state=self.table[input_ids])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    logging = SimpleNamespace(disable_progress_bar=lambda: None)
    library = SimpleNamespace(
        AutoTokenizer=Words, CLIPTextModel=Frozen, T5EncoderModel=Frozen, utils=SimpleNamespace(logging=logging)
    )
    monkeypatch.setitem(sys.modules, "transformers", library)
    pretrained_text._opened.cache_clear()
    calls.clear()
    torch.manual_seed(0)
    files.save_tensors(tmp_path / "model.safetensors", {"table": torch.randn(60, 8)})
    files.write(tmp_path / "config.json", json.dumps({"model_type": "clip", "text_config": {"hidden_size": 8}}))
    return tmp_path


def built(folder: Path, **fields: Any) -> PretrainedText:
    torch.manual_seed(0)
    config, texts = PretrainedTextConfig(folder=folder, **fields).learn([], ())
    assert texts == {}
    return config.build({})  # type: ignore[return-value]


def test_texts_are_tokens_with_a_mask_and_read_once(folder: Path) -> None:
    encoder = built(folder, pooled=True)
    assert encoder.sizes == (8, 8, 0)
    alone, together = encoder(["cat"]), encoder(["cat", "two dogs", "cat"])
    assert len(calls) == 2
    assert together.mask is not None
    assert together.mask.sum(1).tolist() == [5, 10, 5]
    torch.testing.assert_close(together.tokens[:1, :5], alone.tokens)  # type: ignore[index]
    torch.testing.assert_close(together.vector[:1], alone.vector)  # type: ignore[index]
    torch.testing.assert_close(together.vector[0], together.vector[2])  # type: ignore[index]
    together.tokens.sum().backward()  # type: ignore[union-attr]
    assert encoder.norm.bias.grad is not None


def test_only_so_many_texts_are_kept(folder: Path) -> None:
    encoder = built(folder, cache=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        encoder([text])
    assert len(calls) == 4  # a, b, c, and b again: a was used last when c came
    assert len(encoder.kept) == 2


def test_the_frozen_model_is_named_not_saved(folder: Path) -> None:
    encoder = built(folder)
    assert sorted(encoder.state_dict()) == ["norm.bias", "norm.weight", "nothing"]
    assert encoder.config.sha256 == files.sha256(folder / "model.safetensors")
    told = encoder.config.model_dump(mode="json")
    assert told["folder"] == str(folder)
    again = PretrainedTextConfig.model_validate({k: v for k, v in told.items() if k != "kind"})
    assert again == encoder.config
    files.save_tensors(folder / "model.safetensors", {"table": torch.randn(60, 8)})
    with pytest.raises(ValueError, match=r"the model was trained with [0-9a-f]{64}; get that file"):
        again.build({})(["cat"])


def test_what_cannot_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = built(folder, length=5)
    for value, words in ((3, "says something"), (" ", "says something"), ("a cat", "7 tokens, this model reads 5")):
        with pytest.raises(ValueError, match=words):
            encoder([value])
    with pytest.raises(ValueError, match="`width` says 7; leave it out"):
        built(folder, width=7)
    monkeypatch.setitem(sys.modules, "transformers", None)
    pretrained_text._opened.cache_clear()
    with pytest.raises(ValueError, match="pip install transformers"):
        encoder(["cat"])
    files.write(folder / "config.json", json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="type 'gpt2'; known as text models: clip"):
        built(folder)
    files.write(folder / "config.json", "{")
    with pytest.raises(ValueError, match="is not JSON"):
        built(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        built(folder)


def test_weights_in_pickle_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must be in one safetensors file"):
        built(folder)


def test_weights_that_are_not_whole_are_not_made_up(folder: Path) -> None:
    files.save_tensors(folder / "model.safetensors", {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has no table \(1 tensors are missing\); copy the folder again"):
        built(folder)(["cat"])


def test_a_folder_that_moved_is_asked_for(folder: Path) -> None:
    encoder = built(folder)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(ValueError, match=r"there is no folder .*name its place as `folder`"):
        encoder(["cat"])
