"""A trained model that goes on learning: what it begins as, what it refuses, and a run that resumes to the bit."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sfumato import cli
from sfumato.autoencoder.codec import Codec
from sfumato.conditioning.base import ConditionerConfig
from sfumato.data.base import Data
from sfumato.diffusion.schedule import ScheduleConfig
from sfumato.model import DistilledConfig, LatentDiffusion
from sfumato.tasks.upscale import magnification
from sfumato.training import recipe, run
from sfumato.training.finetuning import begun, plain, sized, times
from sfumato.training.fitted import called
from sfumato.training.log import lines
from sfumato.training.shortcut import strided
from tests.conftest import SHORT, diffusion_recipe
from tests.data.test_renumbered import pictures
from tests.training.test_shortcut import DIT, FINEST, LABEL, MANY, SAID, UNET, model

CPU = torch.device("cpu")


def finetuning(start: Path | str, changes: dict[str, Any] | None = None, **training: Any) -> recipe.FinetuningRecipe:
    read = recipe.parse(
        {
            "stage": "finetuning", "start": str(start), "data": {"kind": "emoji", "size": 32},
            "training": {**SHORT, **training}, **(changes or {}),
        }
    )  # fmt: skip
    assert isinstance(read, recipe.FinetuningRecipe)
    return read


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same weights."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_begins_as_the_model_and_both_turns_learn(model_folder: Path, tmp_path: Path) -> None:
    start = LatentDiffusion.load(model_folder)
    objective = run.finetuning(finetuning(model_folder), tmp_path / "a", CPU)
    assert alike(objective.model.denoiser, start.denoiser)
    assert alike(objective.model.conditions, start.conditions)
    assert objective.model.denoiser.training  # a loaded one is not
    made = LatentDiffusion.load(run.train(finetuning(model_folder), tmp_path / "a", device="cpu", quiet=True))
    assert made.config == start.config
    assert made.texts == start.texts
    assert made.codec.fingerprint() == start.codec.fingerprint()
    assert not alike(made.denoiser, start.denoiser)
    assert not alike(made.conditions, start.conditions)
    told = (tmp_path / "a/model/README.md").read_text(encoding="utf-8")
    assert f"Trained, from the weights of {model_folder}, on 96 images" in told


def test_a_run_resumes_to_the_bit(model_folder: Path, tmp_path: Path) -> None:
    asked = finetuning(model_folder.parent, {"prompts": ["sun"]})  # the run folder will do
    run.train(asked, tmp_path / "a", device="cpu", quiet=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(sorted((tmp_path / "b/state").iterdir())[-1])
    shutil.rmtree(tmp_path / "b/model")
    run.train(asked, tmp_path / "b", resume=True, device="cpu", quiet=True)
    for name in ("metrics.jsonl", "model/denoiser.safetensors", "model/conditioners.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_it_learned_is_worth_something_at_once(model_folder: Path, first_stage: Path, tmp_path: Path) -> None:
    """The loss of its first steps is that of the model, and not of fresh weights."""
    more: dict[str, Any] = {"images": 32, "report": 32, "checkpoint": 32, "held_out": 32, "rate": 1e-6}
    run.train(finetuning(model_folder, **more), tmp_path / "on", device="cpu", quiet=True)
    run.train(diffusion_recipe(first_stage, **more), tmp_path / "fresh", device="cpu", quiet=True)

    def loss(folder: Path) -> float:
        return float([row["held_out"] for row in lines(folder / "metrics.jsonl") if "held_out" in row][-1])

    assert loss(tmp_path / "on") < 0.98 * loss(tmp_path / "fresh")


@pytest.mark.parametrize("backbone", [UNET, DIT], ids=["unet", "dit"])
@pytest.mark.parametrize("conditioners", [{}, {"class": LABEL}, MANY], ids=["alone", "vector", "many"])
def test_a_plain_shortcut_goes_on_as_the_flow_that_it_keeps(
    codec: Codec, backbone: dict[str, Any], conditioners: dict[str, Any]
) -> None:
    teacher = model(codec, backbone, conditioners)
    student = strided(teacher, FINEST).eval()
    torch.manual_seed(1)
    for parameter in [*student.denoiser.parameters(), *student.conditions.parameters()]:
        nn.init.normal_(parameter, std=0.1)  # trained: the stride 0 says something too
    student.config = student.config.model_copy(update={"distilled": DistilledConfig(how="shortcut", flow="plain")})
    made = plain(student)
    assert made.config.distilled is None
    assert set(made.config.conditioners) == set(conditioners)
    x, t = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 0.5, 0.01])
    said = {field: SAID[field] for field in teacher.conditions.fields.values()}
    with torch.no_grad():
        expected = student.denoiser(x, t, student.conditions(said, 3))
        found = made.denoiser(x, t, made.conditions(said, 3))
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max().clamp(min=1))


def test_what_ships_goes_on_learning() -> None:
    found = begun(finetuning("emoji", {"data": {"kind": "emoji", "size": 64}}))
    assert (found.config.distilled, list(found.config.conditioners)) == (None, ["caption"])


@pytest.mark.parametrize("told", [DistilledConfig(), DistilledConfig(how="shortcut", flow="guided")])
def test_a_model_of_few_steps_is_refused(codec: Codec, told: DistilledConfig) -> None:
    made = model(codec, UNET, {})
    made.config = made.config.model_copy(update={"distilled": told})
    with pytest.raises(ValueError, match="distilled from as `start`"):
        plain(made)


def test_classes_are_told_as_the_model_knows_them(first_stage: Path, tmp_path: Path) -> None:
    def data(*classes: str) -> Data:
        folder = pictures(tmp_path / "-".join(classes), *classes)
        return Data.model_validate({"kind": "folder", "path": str(folder), "size": 32, "held_out": 0.2})

    asked = diffusion_recipe(first_stage, images=32, checkpoint=32)
    labels = {"class": ConditionerConfig.model_validate({"kind": "label", "width": 6})}
    asked = asked.model_copy(update={"conditioners": labels, "data": data("bird", "cat", "dog")})
    start = run.train(asked, tmp_path / "start", device="cpu", quiet=True)

    def told(*classes: str) -> set[int]:
        more = finetuning(start).model_copy(update={"data": data(*classes)})
        return set(run.finetuning(more, tmp_path / "on", CPU).batch(range(32)).fields["label"])

    assert told("cat", "dog") == {1, 2}
    with pytest.raises(ValueError, match="does not know the class 'hen'"):
        told("dog", "hen")
    with pytest.raises(ValueError, match=r"classes \(a, b\) are none of the model's \(bird, cat, dog\)"):
        told("a", "b")


def test_pictures_of_another_size_are_said_and_learned(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = finetuning(model_folder, {"data": {"kind": "emoji", "size": 16}}, images=32, checkpoint=32)
    made = LatentDiffusion.load(run.train(asked, tmp_path / "a", device="cpu", quiet=True))
    assert "makes 32 pixels a side and goes on with pictures of 16" in caplog.text
    assert made.size == 16
    with pytest.raises(ValueError, match="sizes must be multiples of 8"):
        sized(made, 20)


def test_times_are_drawn_as_the_schedule_is_trained(codec: Codec) -> None:
    asked, found = finetuning("anything"), model(codec, UNET, {})
    assert times(asked, found).density == "logit_normal"
    table = found.config.model_copy(update={"schedule": ScheduleConfig.model_validate({"kind": "betas"})})
    found.config = table
    assert times(asked, found).density == "uniform"
    assert times(finetuning("anything", {"times": {"mean": 2.0}}), found).mean == 2.0


def test_faults_are_one_sentence(
    model_folder: Path, first_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "own", "cat")

    def error(*more: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", "finetune", "--run", str(tmp_path / "run"), "--quiet", *more])
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "there is no model folder nowhere; train it first" in error("start=nowhere", f"data.path={tmp_path / 'own'}")
    assert "no picture of the data has 'caption'" in error(f"data.path={tmp_path / 'own'}")
    assert "autoencoder" in error(f"start={first_stage}", f"data.path={tmp_path / 'own'}")
    assert "unknown key" in error("backbone.width=3", f"data.path={tmp_path / 'own'}")


def test_it_is_described_and_its_memory_is_told(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [f"start={model_folder}", "data={kind: emoji, size: 32}", "training.batch=4"]
    cli.main(["show", "finetune", *own])
    assert "denoiser" in capsys.readouterr().out
    cli.main(["train", "finetune", "--dry-run", *own])
    said = capsys.readouterr()
    assert "stage: finetuning" in said.out
    assert "Memory" in said.err


def upscaler(first_stage: Path, folder: Path) -> Path:
    """A model that was told pictures of 8 pixels beside those of 32."""
    asked = diffusion_recipe(first_stage, images=32, checkpoint=32)
    data = Data.model_validate({"kind": "emoji", "size": 32, "degrade": {"factor": 4}})
    small = {"small": ConditionerConfig.model_validate({"kind": "lowres", "width": 4, "told": 8})}
    return run.train(asked.model_copy(update={"conditioners": small, "data": data}), folder, device="cpu", quiet=True)


def test_an_upscaler_magnifies_by_what_it_was_taught_last(
    first_stage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = upscaler(first_stage, tmp_path / "start")
    assert magnification(LatentDiffusion.load(start), "lowres") == 4

    def after(size: int, **degrade: Any) -> LatentDiffusion:
        more = finetuning(start, {"data": {"kind": "emoji", "size": size, "degrade": degrade}})
        return run.finetuning(more, tmp_path / "on", CPU).model

    assert magnification(after(16, factor=4), "lowres") == 4
    assert magnification(after(32, factor=2), "lowres") == 2
    assert "no longer held" not in caplog.text
    made = after(32, factor=4, how="blind")
    assert made.conditions.reader("lowres").plain is False
    assert "no longer held" in caplog.text
    taught = {"stage": "distillation", "teacher": str(start), "how": "consistency", "training": SHORT}
    other = recipe.parse({**taught, "data": {"kind": "emoji", "size": 32, "degrade": {"factor": 2}}})
    assert isinstance(other, recipe.DistillationRecipe)
    with pytest.raises(ValueError, match="small pictures of 16 pixels a side, and the model was told ones of 8"):
        run.distilling(other, tmp_path / "few", CPU)


def test_maps_of_other_classes_are_refused() -> None:
    told = ConditionerConfig.model_validate({"kind": "map", "labels": ["sky", "grass"]})
    for names, fits in ((("sky", "grass"), True), (("grass", "sky"), False), (("cat", "dog"), False), ((), True)):
        part = SimpleNamespace(class_names={"map": names})
        if fits:
            called(told, part)  # type: ignore[arg-type]
            continue
        with pytest.raises(ValueError, match="the model's of sky, grass, in this order"):
            called(told, part)  # type: ignore[arg-type]
