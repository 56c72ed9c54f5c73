"""A model whose boxes have a planner: trained on words and boxes, asked with words alone, saved, loaded, resumed."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

import sfumato
from sfumato import files
from sfumato.conditioning.base import Draws
from sfumato.model import LatentDiffusion
from sfumato.tasks.generate import generate
from sfumato.tasks.requests import Generate
from sfumato.training import run, validation
from sfumato.training.fitted import fitted
from sfumato.training.log import lines
from sfumato.training.loop import Interrupted
from sfumato.training.readable import readable
from sfumato.training.recipe import DiffusionRecipe
from tests.conftest import planned_recipe


@pytest.fixture(scope="module")
def trained(first_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.train(planned_recipe(first_stage), tmp_path_factory.mktemp("planned") / "a", device="cpu", quiet=True)


def far(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is not None


@torch.no_grad()
def test_words_alone_are_drawn_under_a_layout_of_each_seed(trained: Path) -> None:
    pipeline = sfumato.load(trained)
    rng = torch.Generator().manual_seed(0)
    for (
        parameter
    ) in pipeline.model.denoiser.parameters():  # six steps leave layers that began at zero too small to be seen
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))
    words = {"prompt": "a red apple left of a dog face", "steps": 2, "seed": 3}
    made, again = (pipeline.generate(**words, count=2) for _ in range(2))
    assert not far(made[0], again[0])
    boxes = pipeline.plan(words["prompt"], seed=3)
    assert boxes
    assert not far(made[0], pipeline.layout(**words, boxes=boxes)[0])  # what is planned is what is drawn
    assert far(made[0], pipeline.layout(**words, boxes=[("cat face", 0.1, 0.1, 0.5, 0.5)])[0])
    assert pipeline.plan(words["prompt"], seed=4) != boxes


def test_planning_can_be_left_out(trained: Path) -> None:
    model = sfumato.load(trained).model
    drawn = list[Any]()
    model.conditions.imagined = lambda said, *given: drawn.append(given) or said
    for plan in (False, True):
        list(generate(model, Generate(prompt=["a sun"], steps=1, seed=0, plan=plan)))
        assert bool(drawn) == plan


def test_held_out_layouts_tell_what_the_planner_learned(trained: Path) -> None:
    model, part = LatentDiffusion.load(trained), planned_recipe(trained).data.open("held_out")
    found = validation.lesson(model, part, limit=4)
    assert found == validation.lesson(model, part, limit=4)
    rows = [k * len(part) // 4 for k in range(4)]
    told = [part.told(k) for k in rows]
    read = {"caption": [one["caption"][0] for one in told], "boxes": [one["boxes"] for one in told]}
    with torch.no_grad():
        whole = model.conditions.lesson(read, 4, Draws.training(0, rows))
    assert whole is not None
    assert found == pytest.approx(float(whole), rel=1e-5)


def test_a_model_without_a_planner_says_so(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="no planner"):
        sfumato.load(model_folder).plan("a cat")


def test_the_planner_has_a_loss_and_is_resumed_to_the_bit(first_stage: Path, trained: Path, tmp_path: Path) -> None:
    rows = lines(trained.parent / "metrics.jsonl")
    assert all(row["lesson"] > 0 for row in rows if "loss" in row)

    def stop(images: int, preview: Path | None) -> None:
        if images == 32 and preview is None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run.train(planned_recipe(first_stage), tmp_path / "b", device="cpu", quiet=True, watch=stop)
    whole = run.train(planned_recipe(first_stage), tmp_path / "b", device="cpu", quiet=True, resume=True)
    for name in ("denoiser.safetensors", "conditioners.safetensors"):
        assert files.sha256(whole / name) == files.sha256(trained / name)


def test_a_planner_whose_words_the_denoiser_does_not_hear_is_refused(first_stage: Path) -> None:
    wanted = planned_recipe(first_stage)
    alone = wanted.model_copy(update={"conditioners": {"layout": wanted.conditioners["layout"]}})
    with pytest.raises(ValueError, match="no conditioner tells the denoiser; add one of kind text"):
        fitted(alone, wanted.data.open("train"))


def boxed(folder: Path, first_stage: Path, caption: str) -> DiffusionRecipe:
    """A planner's recipe on four pictures of this caption and a cat each."""
    folder.mkdir()
    rows = list[dict[str, Any]]()
    for k in range(4):
        Image.new("RGB", (32, 32), (40 * k, 0, 0)).save(folder / f"{k}.png")
        said = {"caption": caption} if caption else {}
        rows.append({"file_name": f"{k}.png", "boxes": [{"label": "cat", "box": [0, 0, 0.5, 0.5]}], **said})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return planned_recipe(first_stage, {"kind": "folder", "path": str(folder), "size": 32})


def test_a_planner_without_captions_is_told_before_training(first_stage: Path, tmp_path: Path) -> None:
    wanted = boxed(tmp_path / "mute", first_stage, "")
    alone = wanted.model_copy(update={"conditioners": {"layout": wanted.conditioners["layout"]}})
    with pytest.raises(ValueError, match="no picture of the data has 'caption', which a conditioner of kind boxes"):
        fitted(alone, wanted.data.open("train"))


def test_held_out_words_that_are_too_long_for_the_planner_are_told_before_training(
    first_stage: Path, tmp_path: Path
) -> None:
    short, long = (
        boxed(tmp_path / name, first_stage, text) for name, text in (("short", "a cat"), ("long", "a cat " * 40))
    )
    planner = short.conditioners["layout"].planner
    texts = planner.text.learn(["a cat"], ())[1]
    with pytest.raises(ValueError, match="too long"):
        readable(short.conditioners["layout"], texts, long.data.open("train"))
    readable(short.conditioners["layout"], texts, short.data.open("train"))
