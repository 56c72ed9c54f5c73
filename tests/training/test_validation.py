"""The held-out loss in training: the same pictures, times and noise each time, the best model kept, and resumed exactly."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sfumato.autoencoder.codec import Codec
from sfumato.model import LatentDiffusion
from sfumato.training import run
from sfumato.training.log import lines
from sfumato.training.validation import denoising
from tests.conftest import autoencoder_recipe, diffusion_recipe


def held_out(folder: Path) -> dict[int, float]:
    return {r["images"]: r["held_out"] for r in lines(folder / "metrics.jsonl") if "held_out" in r}


def test_a_denoisers_held_out_loss_is_told_and_its_best_model_kept(first_stage: Path, tmp_path: Path) -> None:
    recipe = diffusion_recipe(first_stage, held_out=32, best=True)
    run.train(recipe, tmp_path / "a", device="cpu", quiet=True)
    found = held_out(tmp_path / "a")
    assert list(found) == [32, 64, 96]
    best = LatentDiffusion.load(tmp_path / "a" / "best")
    again = denoising(best, recipe.data.open("held_out"))["loss"]
    assert again == pytest.approx(min(found.values()), abs=2e-5)
    last = LatentDiffusion.load(tmp_path / "a" / "model")
    assert denoising(last, recipe.data.open("held_out"))["loss"] == pytest.approx(found[96], abs=2e-5)


def test_what_is_judged_comes_from_all_of_the_part(
    first_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = diffusion_recipe(first_stage, images=32)
    run.train(recipe, tmp_path / "a", device="cpu", quiet=True)
    part, shown = recipe.data.open("held_out"), list[int]()
    inner = type(part).image
    monkeypatch.setattr(type(part), "image", lambda self, k: (shown.append(k), inner(self, k))[1])
    denoising(LatentDiffusion.load(tmp_path / "a" / "model"), part, limit=8)
    assert shown == [k * len(part) // 8 for k in range(8)]
    assert shown[-1] > 0.8 * len(part)


def test_the_best_survives_an_interruption(first_stage: Path, tmp_path: Path) -> None:
    recipe = diffusion_recipe(first_stage, held_out=16, best=True)
    run.train(recipe, tmp_path / "a", device="cpu", quiet=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    newest = sorted((tmp_path / "b" / "state").iterdir())[-1]
    shutil.rmtree(newest)
    shutil.rmtree(tmp_path / "b" / "model")
    run.train(recipe, tmp_path / "b", resume=True, device="cpu", quiet=True)
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()
    a, b = ((tmp_path / k / "best/denoiser.safetensors").read_bytes() for k in "ab")
    assert a == b
    state = json.loads((sorted((tmp_path / "b/state").iterdir())[-1] / "state.json").read_text())
    assert state["lowest"] == pytest.approx(min(held_out(tmp_path / "b").values()), abs=1e-6)


def test_a_first_stages_held_out_error_falls(tmp_path: Path) -> None:
    recipe = autoencoder_recipe(images=320, held_out=160, best=True)
    run.train(recipe, tmp_path / "a", device="cpu", quiet=True)
    found = held_out(tmp_path / "a")
    assert found[320] < found[160]
    assert Codec.load(tmp_path / "a/best").fingerprint() == Codec.load(tmp_path / "a/model").fingerprint()


def test_a_first_stage_is_shown_judged_and_measured_few_large_pictures_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = run.reconstruction(autoencoder_recipe(held_out=32), torch.device("cpu"))
    before, seen = objective.validate(), list[int]()
    for side in ("encoder", "decoder"):
        layer = objective.codec.autoencoder.get_submodule(side)
        layer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr("sfumato.autoencoder.codec.AT_ONCE", 9 * 32 * 32)
    assert objective.validate() == pytest.approx(before, rel=1e-4)
    objective.preview()
    objective.conclude()
    assert max(seen) == 9


def test_best_without_a_held_out_loss_is_refused(first_stage: Path) -> None:
    with pytest.raises(ValueError, match="say how often as held_out"):
        diffusion_recipe(first_stage, best=True)
