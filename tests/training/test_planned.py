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
from sfumato.training import recipe, run
from sfumato.training.log import lines
from sfumato.training.loop import Interrupted
from tests.conftest import SHORT


def asked(first_stage: Path, data: dict[str, Any] | None = None, **training: Any) -> recipe.Recipe:
    return recipe.parse({
        "stage": "diffusion", "autoencoder": str(first_stage),
        "backbone": {"kind": "unet", "width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2], "groups": 8},
        "conditioners": {
            "caption": {"kind": "text", "width": 16, "layers": 1, "heads": 2},
            "layout": {"kind": "boxes", "width": 16, "heads": 2, "most": 4, "planner": {"width": 16, "heads": 2}},
        },
        "data": data or {"kind": "scenes", "size": 32, "count": 64}, "training": {**SHORT, **training},
    })  # fmt: skip


@pytest.fixture(scope="module")
def trained(first_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.train(asked(first_stage), tmp_path_factory.mktemp("planned") / "a", device="cpu", quiet=True)


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
        run.train(asked(first_stage), tmp_path / "b", device="cpu", quiet=True, watch=stop)
    whole = run.train(asked(first_stage), tmp_path / "b", device="cpu", quiet=True, resume=True)
    for name in ("denoiser.safetensors", "conditioners.safetensors"):
        assert files.sha256(whole / name) == files.sha256(trained / name)


def test_a_planner_whose_words_the_denoiser_does_not_hear_is_refused(first_stage: Path) -> None:
    wanted = asked(first_stage)
    assert isinstance(wanted, recipe.DiffusionRecipe)
    alone = wanted.model_copy(update={"conditioners": {"layout": wanted.conditioners["layout"]}})
    with pytest.raises(ValueError, match="no conditioner tells the denoiser; add one of kind text"):
        run.fitted(alone, wanted.data.open("train"))


def test_a_planner_without_captions_is_told_before_training(first_stage: Path, tmp_path: Path) -> None:
    for k in range(4):
        Image.new("RGB", (32, 32), (40 * k, 0, 0)).save(tmp_path / f"{k}.png")
    rows = [{"file_name": f"{k}.png", "boxes": [{"label": "cat", "box": [0, 0, 0.5, 0.5]}]} for k in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    wanted = asked(first_stage, {"kind": "folder", "path": str(tmp_path), "size": 32})
    assert isinstance(wanted, recipe.DiffusionRecipe)
    alone = wanted.model_copy(update={"conditioners": {"layout": wanted.conditioners["layout"]}})
    with pytest.raises(ValueError, match="no picture of the data has 'caption', which a conditioner of kind boxes"):
        run.fitted(alone, wanted.data.open("train"))
