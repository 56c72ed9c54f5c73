"""What a training needs of memory: measured, told before it starts, and made less."""

from pathlib import Path

import pytest
import torch
import yaml

from sfumato import device as devices
from sfumato.cli import main
from sfumato.training import checkpoint, memory
from sfumato.training.loop import Loop
from sfumato.training.recipe import dump, parse
from sfumato.training.run import _ready, needed, train
from tests.conftest import adversarial_recipe, autoencoder_recipe, diffusion_recipe

CPU = torch.device("cpu")


def test_a_batch_and_its_parts_that_fit_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = adversarial_recipe(images=96, batch="auto")
    found = needed(recipe, tmp_path / "none", CPU)
    assert not (tmp_path / "none").exists()
    rest = found.weights + found.gradients + found.optimiser + found.averages + found.fixed
    for pictures, batch, parts in ((9, 8, 8), (1, 1, 64), (0, 1, 64), (1000, 32, 1)):
        room = found._replace(free=int((rest + pictures * found.each) / memory.SHARE) + 1)
        assert memory.fitting(room) == batch
        assert memory.accumulating(room, 64) == parts
    tight = int((rest + 5 * found.each) / memory.SHARE) + 1
    monkeypatch.setattr(devices, "free", lambda device: tight)
    asked = adversarial_recipe(images=96, accumulate="auto")
    train(asked, tmp_path / "run", device="cpu", quiet=True)
    stored = parse(yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()))
    assert (stored.training.batch, stored.training.accumulate) == (16, 4)
    train(asked, tmp_path / "run", device="cpu", quiet=True, resume=True)


def test_optimiser_memory_is_what_the_optimiser_has(tmp_path: Path) -> None:
    recipe = adversarial_recipe()
    loop = Loop(_ready(recipe, tmp_path, CPU, torch.float32), recipe.training, tmp_path, "", CPU, torch.float32, True)
    loop.images = 64
    loop.step(range(64, 80))
    states = [t for several in loop.optimizers.values() for t in several.state().values() if t.ndim]
    found = needed(recipe, tmp_path, CPU)
    # without the log-variance's two moments: they are numbers and no maps
    assert sum(t.numel() * t.element_size() for t in states) == pytest.approx(found.optimiser, abs=64)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("stage", ["autoencoder", "adversarial", "diffusion"])
def test_recomputed_activations_give_the_same_weights_and_keep_less(
    stage: str, lanes: int, first_stage: Path, tmp_path: Path
) -> None:
    found, sizes = [], []
    makers = {"autoencoder": autoencoder_recipe, "adversarial": adversarial_recipe}
    for factors in ((), (1, 2) if stage == "diffusion" else (4, 8)):
        extra = {"checkpointing": factors, "precision": "fp32"}
        recipe = makers[stage](**extra) if stage in makers else diffusion_recipe(first_stage, **extra)
        torch.manual_seed(0)
        objective = _ready(recipe, tmp_path / "run", CPU, torch.float32)
        loop = Loop(objective, recipe.training, tmp_path, "", CPU, torch.float32, quiet=True)
        loop.lanes = lanes
        sizes.append(memory.kept(objective, torch.float32, CPU, range(8)))
        for step in range(3):
            loop.step(range(16 * step, 16 * step + 16))
        found.append({k: v.clone() for k, v in loop.modules.state_dict().items()})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    assert sizes[1] < 0.6 * sizes[0]


def test_levels_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"factors \[64\]; the levels here have \[4, 8\]"):
        train(autoencoder_recipe(checkpointing=(64,)), tmp_path / "run", device="cpu", quiet=True)


def test_a_dry_run_tells_what_is_needed_and_writes_nothing(
    first_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(yaml.safe_dump(dump(diffusion_recipe(first_stage))))
    main(["train", "a.yaml", "--dry-run"])
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["stage"] == "diffusion"
    assert "activations of one picture" in err
    assert "It fits: up to" in err
    main(["train", "a.yaml", "autoencoder=nowhere", "--dry-run"])
    assert "first stage nowhere is not there" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.yaml"]


def test_milestones_are_kept(tmp_path: Path) -> None:
    train(autoencoder_recipe(checkpoint=16, keep=1, milestones=32), tmp_path / "run", device="cpu", quiet=True)
    kept = [int(p.name) for p in checkpoint.found(tmp_path / "run" / "state")]
    assert kept == [32, 64, 96]
