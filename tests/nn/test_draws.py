"""Weights of what is opened are not drawn first; those of a training are drawn as ever."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sfumato import files
from sfumato.autoencoder.codec import WEIGHTS, Codec
from sfumato.families import base
from sfumato.families.gan import GanConfig
from sfumato.model import LatentDiffusion
from sfumato.nn import draws
from sfumato.training import run
from tests.conftest import diffusion_recipe


class Draws(TorchFunctionMode):
    """Counts what is drawn into parameters."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        into = args[0] if args else (kwargs or {}).get("tensor")
        self.count += func in draws.DRAWS and isinstance(into, nn.Parameter)
        return func(*args, **(kwargs or {}))


def test_a_fresh_module_is_drawn_and_one_to_be_loaded_is_not() -> None:
    for context, expected in ((contextlib.nullcontext, 6), (draws.skipped, 0)):
        with Draws() as seen, context():
            nn.Linear(2, 2)
            nn.Conv2d(2, 2, 1)
            nn.Embedding(3, 2)
            nn.init.kaiming_normal_(nn.Parameter(torch.empty(2, 2)))
        assert seen.count == expected


@pytest.mark.parametrize("what", ["first stage", "model", "family"])
def test_what_is_opened_is_what_was_saved_and_was_not_drawn_before(
    what: str, model_folder: Path, tmp_path: Path
) -> None:
    with Draws() as seen:
        if what == "first stage":
            made, path = Codec.load(model_folder / "autoencoder"), model_folder / "autoencoder" / WEIGHTS
        elif what == "model":
            made, path = LatentDiffusion.load(model_folder).denoiser, model_folder / "denoiser.safetensors"
        else:
            config = GanConfig(width=8, latent=16)
            base.save(config.build(base.Shape(3, 16), ("a", "b"), None), config, tmp_path)
            seen.count = 0
            made, path = base.load(tmp_path), tmp_path / base.WEIGHTS
    assert seen.count == 0
    saved, found = files.load_tensors(path), made.state_dict()
    assert saved.keys() == found.keys()
    assert {name for name, _ in made.named_parameters()} <= saved.keys()
    assert all(torch.equal(saved[name], found[name]) for name in saved)


def test_another_thread_draws_meanwhile() -> None:
    torch.manual_seed(0)
    with draws.skipped(), ThreadPoolExecutor(1) as pool:
        other = pool.submit(nn.Linear, 64, 64).result()
    torch.manual_seed(0)
    assert torch.equal(other.weight, nn.Linear(64, 64).weight)


def test_a_training_s_fresh_weights_do_not_hang_on_how_its_first_stage_is_opened(
    first_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for context in (draws.skipped, contextlib.nullcontext):
        monkeypatch.setattr(draws, "skipped", context)
        torch.manual_seed(0)
        objective = run.denoising(diffusion_recipe(first_stage), tmp_path / "run", torch.device("cpu"))
        found.append([p.detach().clone() for p in objective.model.denoiser.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
