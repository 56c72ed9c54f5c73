"""Conditions are learned from fresh weights through both networks: a few dozen steps of the denoiser's own turn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.autoencoder.codec import Codec
from sfumato.conditioning import frozen
from sfumato.conditioning.base import ConditionerConfig, Draws
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.training.diffusion import DenoiserTurn, Noisy
from tests.conditioning import textmodels
from tests.conditioning.test_bundle import NETWORKS

ROWS = 8
EMBEDDINGS = torch.eye(5)
# conditioners, and for each field the two things that it may say
CASES: dict[str, tuple[dict[str, dict[str, Any]], dict[str, list[Any]]]] = {
    "reference": (
        {"picture": {"kind": "reference", "embedding": 5, "width": 8}},
        {"reference": [EMBEDDINGS[0], EMBEDDINGS[1]]},
    ),
    "near": (
        {"near": {"kind": "reference", "field": "near", "embedding": 5, "width": 8, "door": "tokens"}},
        {"near": [EMBEDDINGS[:3], EMBEDDINGS[3:]]},
    ),
    "pretrained_text": (
        {"caption": {"kind": "pretrained_text", "length": 16, "pooled": False}},
        {"caption": ["a red cat", "two dogs on the mat"]},
    ),
    "map_and_words": (
        {
            "semantic": {"kind": "map", "width": 3, "classes": 2, "stages": 1},
            "caption": {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 60},
        },
        {
            "map": [torch.zeros(32, 32, dtype=torch.long), torch.ones(32, 32, dtype=torch.long)],
            "caption": ["a red cat", "two dogs"],
        },
    ),
}  # fmt: skip


def model(codec: Codec, backbone: dict[str, Any], case: str, folder: Path) -> LatentDiffusion:
    """A model with fresh weights whose conditioners were shown what the case may say."""
    torch.manual_seed(0)
    conditioners, texts = {}, {}
    for name, fields in CASES[case][0].items():
        extra = {}
        if fields["kind"] == "pretrained_text":
            textmodels.saved("clip", folder / "clip")
            extra = {"folder": folder / "clip", "kept": folder / "texts"}
        config = ConditionerConfig.model_validate({**fields, **extra})
        conditioners[name], texts[name] = config.learn(CASES[case][1].get(config.field, ()), ())
    config = DiffusionConfig.model_validate({"backbone": backbone, "conditioners": conditioners})
    return LatentDiffusion(codec, config, 32, texts).train()


class Told:
    """Latents that the conditions tell: each field says the sign of channels of its own."""

    def __init__(self, fields: dict[str, list[Any]]) -> None:
        self.fields = fields
        self.said = {name: [(row >> k) % 2 for row in range(ROWS)] for k, name in enumerate(fields)}
        signs = [2.0 * torch.tensor(rows) - 1 for rows in self.said.values()]
        self.latents = torch.stack([signs[c % len(signs)] for c in range(4)], 1)[..., None, None].expand(-1, -1, 4, 4)

    def batch(self, step: int, dropped: bool = True, turned: str = "") -> Noisy:
        """Nearly nothing but noise. The last row's conditions are dropped; of the field `turned` the opposite is said."""
        said = {n: [1 - k for k in rows] if n == turned else rows for n, rows in self.said.items()}
        values = {name: [self.fields[name][k] for k in rows] for name, rows in said.items()}
        drop = torch.zeros(ROWS, len(said), dtype=torch.bool)
        drop[-1] = dropped
        eps = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(step))
        return Noisy(self.latents, torch.full((ROWS,), 0.9), eps, values, drop, Draws.training(0, range(ROWS)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a network is slower on several, and much slower where others work beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("backbone", NETWORKS, ids=["unet", "dit"])
@pytest.mark.parametrize("case", CASES)
def test_each_thing_that_is_said_is_learned(codec: Codec, backbone: dict[str, Any], case: str, tmp_path: Path) -> None:
    net, told = model(codec, backbone, case, tmp_path), Told(CASES[case][1])
    turn, learned = DenoiserTurn(net), [*net.denoiser.parameters(), *net.conditions.parameters()]
    optimizer = torch.optim.Adam(learned, 1e-2)
    before = {name: p.detach().clone() for name, p in net.conditions.named_parameters()}
    for step in range(40 if case == "pretrained_text" else 24):  # which is heard last
        optimizer.zero_grad()
        turn(told.batch(step))["loss"].backward()
        optimizer.step()
    for name, parameter in net.conditions.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    with torch.no_grad():
        right = turn(told.batch(99, dropped=False))["loss"]
        for name in told.fields:
            assert turn(told.batch(99, dropped=False, turned=name))["loss"] > 2 * right, name


def test_a_frozen_text_model_stays_as_it_was(codec: Codec, tmp_path: Path) -> None:
    net, told = model(codec, NETWORKS[1], "pretrained_text", tmp_path), Told(CASES["pretrained_text"][1])
    encoder = net.conditions.reader("caption")
    optimizer = torch.optim.SGD([*net.denoiser.parameters(), *net.conditions.parameters()], 1.0)
    for step in range(2):
        optimizer.zero_grad()
        DenoiserTurn(net)(told.batch(step))["loss"].backward()
        optimizer.step()
    held = frozen._model(encoder.folder, encoder.sha256, torch.device("cpu")).state_dict()
    given = textmodels.side("clip", textmodels.model("clip")).state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in given.items())
    assert len(list((tmp_path / "texts").rglob("*.safetensors"))) == 2  # the training's texts came with the recipe
