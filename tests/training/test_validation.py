"""The held-out loss in training: the same pictures, times and noise each time, the best model kept, and resumed exactly."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sfumato.autoencoder.codec import Codec
from sfumato.cli.train import _tell_best
from sfumato.model import LatentDiffusion
from sfumato.training import checkpoint, run
from sfumato.training.autoencoder import Reconstruction
from sfumato.training.diffusion import Denoising
from sfumato.training.log import lines
from sfumato.training.validation import denoising
from tests.conftest import autoencoder_recipe, diffusion_recipe


def held_out(folder: Path) -> dict[int, float]:
    return {r["images"]: r["held_out"] for r in lines(folder / "metrics.jsonl") if "held_out" in r}


def lowest(folder: Path) -> float | None:
    """The lowest held-out loss that the last checkpoint knows of."""
    found: float | None = json.loads((checkpoint.found(folder / "state")[-1] / "state.json").read_text())["lowest"]
    return found


def interrupted(run: Path, before: Path) -> None:
    """A finished run as it stood between its last two checkpoints."""
    shutil.copytree(run, before)
    shutil.rmtree(checkpoint.found(before / "state")[-1])
    shutil.rmtree(before / "model")


def test_a_denoisers_held_out_loss_is_told_and_its_best_model_kept(
    first_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, worse = Denoising.validate, iter([0.0, 0.0, 1.0])  # so that the best is not the last

    def validate(self: Denoising) -> dict[str, float]:
        told = real(self)
        return {**told, "held_out": told["held_out"] + next(worse)}

    monkeypatch.setattr(Denoising, "validate", validate)
    recipe = diffusion_recipe(first_stage, held_out=32, best=True)
    run.train(recipe, tmp_path / "a", device="cpu", quiet=True)
    found = held_out(tmp_path / "a")
    assert list(found) == [32, 64, 96]
    best = LatentDiffusion.load(tmp_path / "a" / "best")
    again = denoising(best, recipe.data.open("held_out"))["loss"]
    assert again == pytest.approx(min(found.values()), abs=2e-5)
    last = LatentDiffusion.load(tmp_path / "a" / "model")
    assert denoising(last, recipe.data.open("held_out"))["loss"] == pytest.approx(found[96] - 1, abs=2e-5)


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
    interrupted(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "best")
    run.train(recipe, tmp_path / "b", resume=True, device="cpu", quiet=True)
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()
    a, b = ((tmp_path / k / "best/denoiser.safetensors").read_bytes() for k in "ab")
    assert a == b
    assert lowest(tmp_path / "b") == pytest.approx(min(held_out(tmp_path / "b").values()), abs=1e-6)


def test_a_run_that_goes_on_knows_the_lowest_loss_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([0.25, 0.75, 0.5, 0.5])  # the last again after the interruption
    monkeypatch.setattr(Reconstruction, "validate", lambda self: {"held_out": next(told)})
    monkeypatch.setattr(Reconstruction, "conclude", lambda self: None)
    recipe = autoencoder_recipe(held_out=32, best=True)
    run.train(recipe, tmp_path / "a", device="cpu", quiet=True)
    best, last = ((tmp_path / "a" / name / "weights.safetensors").read_bytes() for name in ("best", "model"))
    interrupted(tmp_path / "a", tmp_path / "b")
    run.train(recipe, tmp_path / "b", resume=True, device="cpu", quiet=True)
    assert (tmp_path / "b/best/weights.safetensors").read_bytes() == best != last
    assert lowest(tmp_path / "b") == 0.25


def test_a_best_model_of_a_way_that_was_left_is_told_and_kept_until_it_is_beaten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = iter([0.75, 0.5, 0.25, 0.6])  # the last after the interruption
    monkeypatch.setattr(Reconstruction, "validate", lambda self: {"held_out": next(told)})
    recipe = autoencoder_recipe(held_out=32, best=True)
    run.train(recipe, tmp_path / "a", device="cpu", quiet=True)
    interrupted(tmp_path / "a", tmp_path / "b")
    held = (tmp_path / "b/best/weights.safetensors").read_bytes()
    run.train(recipe, tmp_path / "b", resume=True, device="cpu", quiet=True)
    assert (tmp_path / "b/best/weights.safetensors").read_bytes() == held
    assert json.loads((tmp_path / "b/best/judged.json").read_text()) == {"images": 96, "held_out": 0.25}
    assert lowest(tmp_path / "b") == 0.25
    _tell_best(tmp_path / "b")
    assert "after 96 images, loss 0.2500; the last has 0.6000" in capsys.readouterr().err


def test_a_first_stages_held_out_error_falls(tmp_path: Path) -> None:
    recipe = autoencoder_recipe(images=320, held_out=160, best=True)
    run.train(recipe, tmp_path / "a", device="cpu", quiet=True)
    found = held_out(tmp_path / "a")
    assert found[320] < found[160]
    assert Codec.load(tmp_path / "a/best").fingerprint() == Codec.load(tmp_path / "a/model").fingerprint()


@pytest.mark.parametrize("count", [3, 8, 11, 15, 23])
def test_a_first_stage_is_judged_by_pictures_of_all_of_the_part(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, shown = run.reconstruction(autoencoder_recipe(held_out=32), torch.device("cpu")), list[int]()
    monkeypatch.setattr("sfumato.training.autoencoder.JUDGED", 8)
    part = objective.held_out
    assert part is not None
    inner = type(part).image
    monkeypatch.setattr(type(part), "image", lambda self, k: (shown.append(k), inner(self, k))[1])
    monkeypatch.setattr(type(part), "__len__", lambda self: count)
    objective.validate()
    assert shown == [k * count // min(count, 8) for k in range(min(count, 8))]


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
