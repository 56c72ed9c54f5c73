"""What a training needs of memory: measured, told before it starts, and made less."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sfumato import device as devices
from sfumato import distributed
from sfumato.autoencoder.coder import Decoder
from sfumato.cli import main
from sfumato.features.perceptual import Perceptual
from sfumato.training import checkpoint, memory
from sfumato.training.diffusion import Denoising
from sfumato.training.loop import Loop
from sfumato.training.recipe import DecodedConfig, dump, parse
from sfumato.training.run import _ready, needed, train
from tests.conftest import CODER, adversarial_recipe, autoencoder_recipe, diffusion_recipe

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
        loop.ahead = loop._ahead()  # which cuts a step into as many parts
        sizes.append(memory.kept(objective, torch.float32, CPU, range(8)))
        for loop.images in (48, 64, 80):  # where a critic is heeded
            loop.step(range(loop.images, loop.images + 16))
        assert ("adversarial" in loop.sums) == (stage == "adversarial")
        found.append({k: v.clone() for k, v in loop.modules.state_dict().items()})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    assert sizes[1] < 0.6 * sizes[0]


def test_recomputed_activations_keep_dropout_precision_and_frozen_blocks(first_stage: Path, tmp_path: Path) -> None:
    """In bfloat16, with dropout, of a network in which a block is frozen, and so is all that the first one is given."""
    found, before = [], {}
    for factors in ((), (1, 2)):
        asked = diffusion_recipe(first_stage, checkpointing=factors, precision="bf16")
        recipe = asked.model_copy(update={"backbone": asked.backbone.model_copy(update={"dropout": 0.2})})
        torch.manual_seed(0)
        objective = _ready(recipe, tmp_path / "run", CPU, torch.bfloat16)
        assert isinstance(objective, Denoising)
        network: Any = objective.model.denoiser.network
        for p in network.parameters():
            p.data += 0.02  # a fresh network's zeroed branches hide gradients
        frozen = (network.into, network.time, network.vector, network.down[2], objective.model.conditions)
        for module in frozen:
            module.requires_grad_(False)
        loop = Loop(objective, recipe.training, tmp_path, "", CPU, torch.bfloat16, quiet=True)
        before = {k: v.clone() for k, v in loop.modules.state_dict().items()}
        torch.manual_seed(1)  # what the caller draws is not what dropout draws
        for step in range(3):
            loop.step(range(16 * step, 16 * step + 16))
        found.append({k: v.clone() for k, v in loop.modules.state_dict().items()})
    moved = {name for name, value in found[0].items() if not torch.equal(value, before[name])}
    assert any("network.down.0." in name for name in moved)
    assert not any("network.down.2." in name for name in moved)
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


# Prints the estimate and the measured peak of some steps, in MiB: first argument, threads.
PEAK = """
import ctypes, gc, re, sys
from pathlib import Path
import torch, yaml
from sfumato.training.loop import Loop
from sfumato.training.recipe import parse
from sfumato.training.run import _ready, needed
def told(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
recipe, cpu = parse(yaml.safe_load(Path(sys.argv[1]).read_text())), torch.device("cpu")
torch.set_num_threads(int(sys.argv[2]))
t = recipe.training
def trained(steps, batch):
    loop = Loop(_ready(recipe, Path(), cpu, torch.float32), t, Path(), "", cpu, torch.float32, True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here: reading the data has one of its own
    loop.images = place = t.images - steps * batch
    for step in range(steps):
        loop.step(range(place + step * batch, place + (step + 1) * batch))
trained(1, 8)  # what libraries and threads take once
found = needed(recipe, Path(), cpu)
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
before = told("VmRSS")
trained(3, t.batch)
peak = told("VmHWM") - before
part = -(-t.batch // t.accumulate)
rest = found.weights + found.gradients + found.optimiser + found.averages + found.fixed
print((rest + part * found.each) / 2**20, peak / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("most", ["weights", "parts", "activations"])
def test_what_is_told_is_near_what_is_taken(most: str, tmp_path: Path) -> None:
    """Half of what is taken at least, which is what `SHARE` leaves room for, but for what allocators keep to
    themselves; and no more than twice as much."""
    wide = {"coder": {**CODER, "width": 192}}
    recipe = {
        "weights": lambda: autoencoder_recipe(autoencoder=wide),
        "parts": lambda: autoencoder_recipe(autoencoder=wide, accumulate=2),
        "activations": lambda: adversarial_recipe(batch=256, images=1024),
    }[most]()
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(dump(recipe)))
    words = [sys.executable, "-c", PEAK, str(tmp_path / "a.yaml"), "2"]
    told, taken = map(float, subprocess.run(words, check=True, capture_output=True, text=True).stdout.split())
    assert memory.SHARE * (taken - 64) < told < 2 * taken, (told, taken)


def test_the_copies_of_lanes_and_processes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for lanes, processes in ((1, 1), (2, 1), (2, 2)):
        monkeypatch.setattr(memory, "lanes", lambda device, lanes=lanes: lanes)
        monkeypatch.setattr(distributed, "members", lambda processes=processes: processes)
        found[lanes, processes] = needed(adversarial_recipe(optimizer="adamw"), tmp_path, CPU)
    one, both, two = found.values()
    assert one.gradients < one.weights  # of one turn at a time
    assert both.gradients == 3 * one.gradients
    assert two.gradients == one.gradients + 4 * one.learned
    assert two.free < 0.7 * one.free


def test_levels_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"factors \[64\]; the levels here have \[4, 8\]"):
        train(autoencoder_recipe(checkpointing=(64,)), tmp_path / "run", device="cpu", quiet=True)


def test_levels_of_a_first_stage_that_nothing_goes_back_through_are_not_there(
    first_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = diffusion_recipe(first_stage, checkpointing=(8,))
    with pytest.raises(ValueError, match=r"factors \[8\]; the levels here have \[1, 2\]"):
        train(asked, tmp_path / "run", device="cpu", quiet=True)

    class Plain(Perceptual):
        def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).square().flatten(1).mean(1)

    monkeypatch.setattr("sfumato.features.torchscript.ScriptConfig.build", lambda self: Plain())
    monkeypatch.setattr("sfumato.features.torchscript.ScriptConfig.present", lambda self, without: None)
    perceptual = {"kind": "torchscript", "network": "none.pt"}
    decoded = DecodedConfig.model_validate({"perceptual": perceptual, "places": 2})
    objective = _ready(asked.model_copy(update={"decoded": decoded}), tmp_path / "run", CPU, torch.float32)
    assert isinstance(objective, Denoising)
    coder = objective.model.codec.autoencoder.get_submodule("decoder")
    assert isinstance(coder, Decoder)
    again = [factor for factor, layer in coder.levelled() if isinstance(layer.forward, partial)]
    assert set(again) == {8}  # its activations are kept for the estimate's gradient, so they can be worked out again


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
    assert "there is no model folder nowhere; train it first" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.yaml"]


def test_milestones_are_kept(tmp_path: Path) -> None:
    train(autoencoder_recipe(checkpoint=16, keep=1, milestones=32), tmp_path / "run", device="cpu", quiet=True)
    kept = [int(p.name) for p in checkpoint.found(tmp_path / "run" / "state")]
    assert kept == [32, 64, 96]
