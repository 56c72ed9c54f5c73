"""CLIP and DINOv2 from the folders that `transformers` writes: tiny ones with random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sfumato import files
from sfumato.features import network, vision

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def dinov2(path: Path) -> Any:
    model = transformers.Dinov2Model(transformers.Dinov2Config(image_size=20, mlp_ratio=2, **SMALL)).eval()
    model.save_pretrained(path)
    return model


def clip(path: Path) -> Any:
    tokens = {"<|startoftext|>": 0, "<|endoftext|>": 1, **{f"{c}</w>": k for k, c in enumerate("abcdefgh", 2)}}
    tokenizer = transformers.CLIPTokenizer(vocab=tokens, merges=[], model_max_length=8)
    text = {"vocab_size": len(tokens), "max_position_embeddings": 8, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    seen = {**SMALL, "image_size": 16, "intermediate_size": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=seen, projection_dim=12)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


def ready(picture: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    values = (picture.add(1) * 127.5).round() / 255
    return ((values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None]


@torch.no_grad()
def test_dinov2_gives_its_class_token_of_its_own_preparation(tmp_path: Path) -> None:
    model = dinov2(tmp_path / "tiny")
    made = network.opened(tmp_path / "tiny")
    told = made.told()
    assert (told["name"], told["resize"]) == ("DINOv2 (tiny)", "bicubic, antialiased, to 20 x 20")
    assert told["sha256"] == files.sha256(tmp_path / "tiny" / "model.safetensors")
    picture = torch.rand(3, 20, 20) * 2 - 1
    wanted = model(pixel_values=ready(picture, *vision.IMAGENET)).last_hidden_state[:, 0]
    torch.testing.assert_close(made([picture])["pooled"], wanted)
    facts = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "crop_size": {"height": 12, "width": 12}}
    (tmp_path / "tiny" / "preprocessor_config.json").write_text(json.dumps(facts))
    again = network.opened(tmp_path / "tiny", told["sha256"])
    assert again.description.size == 12
    small = torch.rand(3, 12, 12) * 2 - 1
    wanted = model(pixel_values=ready(small, (0.5,) * 3, (0.25,) * 3)).last_hidden_state[:, 0]
    torch.testing.assert_close(again([small])["pooled"], wanted)


@torch.no_grad()
def test_clip_s_two_sides_are_in_one_space(tmp_path: Path) -> None:
    model = clip(tmp_path / "tiny")
    made, read = network.opened(tmp_path / "tiny"), vision.reader(tmp_path / "tiny")
    assert made.description.name == "CLIP (tiny)"
    picture = torch.rand(3, 16, 16) * 2 - 1
    captions = ["a b c", "d", "a " * 40]
    words = read.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    assert words["input_ids"].shape == (3, 8)  # the third is cut
    both = model(**words, pixel_values=ready(picture, *vision.WEB))
    seen, said = made([picture])["pooled"], read(captions)
    torch.testing.assert_close(nn.functional.normalize(seen, dim=1), both.image_embeds)
    torch.testing.assert_close(nn.functional.normalize(said, dim=1), both.text_embeds)
    torch.testing.assert_close(read(["d"])[0], said[1], rtol=1e-4, atol=1e-5)  # alone as in company


def test_folders_that_are_no_such_network_say_so(tmp_path: Path) -> None:
    dinov2(tmp_path / "tiny")
    with pytest.raises(ValueError, match="only CLIP does"):
        vision.reader(tmp_path / "tiny")
    with pytest.raises(ValueError, match="has SHA-256"):
        vision.opened(tmp_path / "tiny", "0" * 64)
    (tmp_path / "tiny" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is missing"):
        vision.opened(tmp_path / "tiny")
    (tmp_path / "tiny" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="'vit'; known as feature networks: clip, dinov2"):
        vision.opened(tmp_path / "tiny")
    (tmp_path / "tiny" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        vision.opened(tmp_path / "tiny")
    with pytest.raises(ValueError, match="no folder of transformers"):
        vision.opened(tmp_path)
