"""Training on pictures in shapes of their own: whole, cached or fresh, resumed, conditioned, and refused where it cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Data
from sfumato.model import LatentDiffusion
from sfumato.tasks.generate import generate
from sfumato.tasks.requests import Generate
from sfumato.tasks.upscale import magnification
from sfumato.training import recipe
from sfumato.training.diffusion import Denoising
from sfumato.training.given import held_out
from sfumato.training.latents import Shaped
from sfumato.training.run import objective_of, train
from sfumato.training.validation import denoising
from tests.conftest import diffusion_recipe
from tests.data.test_buckets import album
from tests.features.test_network import Looks, save

CPU = torch.device("cpu")
CONDITIONERS = {
    "words": {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 300},
    "hole": {"kind": "masked"},
    "small": {"kind": "lowres", "width": 4, "told": 8},
    "map": {"kind": "map", "width": 4, "classes": 5, "stages": 1},
    "boxes": {"kind": "boxes", "width": 16, "heads": 2, "layers": 1},
}


def asked(first_stage: Path, path: Path, conditioners: dict[str, Any] | None = None, **more: Any) -> recipe.Recipe:
    fields = diffusion_recipe(first_stage).model_dump(mode="json")
    data = {"kind": "folder", "path": str(path), "size": 32, "buckets": {"step": 8, "least": 2}, "held_out": 0.3}
    data |= {"masks": {}, "degrade": {"factor": 4}} if conditioners else {}
    training = {
        **fields["training"],
        "images": 48,
        "batch": 4,
        "report": 16,
        "checkpoint": 16,
        "flip": 0.5,
        "held_out": 16,
    }
    training |= more.pop("training", {})
    return recipe.parse({**fields, "conditioners": conditioners or {}, "data": data, **more, "training": training})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album") / "pictures"
    for part in ("train", "val"):  # which look so much alike that a share held out would be of one shape
        album(folder / part, maps=True)
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("backbone", ["unet", "dit"])
def test_every_condition_is_trained_in_shapes_and_goes_on_where_it_stopped(
    first_stage: Path, pictures: Path, tmp_path: Path, backbone: str
) -> None:
    more: dict[str, Any] = {}
    if backbone == "dit":
        more["backbone"] = {"kind": "dit", "width": 32, "depth": 1, "heads": 2}
    whole = asked(first_stage, pictures, CONDITIONERS, **more)
    train(whole, tmp_path / "whole", device="cpu", quiet=True)
    found = metrics(tmp_path / "whole")
    assert found[-1]["images"] == 48
    assert "held_out" in found[-1]
    half = whole.model_copy(update={"training": whole.training.model_copy(update={"images": 16})})
    train(half, tmp_path / "half", device="cpu", quiet=True)
    train(whole, tmp_path / "half", resume=True, device="cpu", quiet=True)
    model = LatentDiffusion.load(tmp_path / "whole" / "model")
    made = next(generate(model, Generate(prompt=["number 3"], width=40, height=24, steps=2)))
    assert made.pictures.shape == (1, 3, 24, 40)


def test_steps_are_of_one_shape_and_cached_latents_are_those_of_the_pictures(
    first_stage: Path, pictures: Path, tmp_path: Path
) -> None:
    read = asked(first_stage, pictures)
    kept = objective_of(read, tmp_path / "run", CPU)
    fresh = objective_of(read.model_copy(update={"cache": False}), tmp_path / "run", CPU)
    assert isinstance(kept, Denoising)
    assert isinstance(fresh, Denoising)
    assert isinstance(kept.latents, Shaped)
    sizes = set()
    for begin in range(0, 80, 4):
        one, other = kept.batch(range(begin, begin + 4)), fresh.batch(range(begin, begin + 4))
        torch.testing.assert_close(one.latents, other.latents, atol=2e-3, rtol=2e-3)  # halves are kept
        assert torch.equal(one.eps, other.eps)
        assert one.eps.shape == one.latents.shape
        sizes.add(tuple(one.latents.shape[2:]))
    assert sizes == {(3, 5), (5, 3), (4, 4)}
    codec, train_part = Codec.load(first_stage), kept.train
    for k in range(len(train_part)):
        moments = codec.moments(train_part.image(k)[None].float() / 127.5 - 1)
        torch.testing.assert_close(kept.latents.rows([k]), moments, atol=2e-2, rtol=2e-3)


def test_the_loss_on_held_out_pictures_is_that_of_each_in_its_shape(
    first_stage: Path, pictures: Path, tmp_path: Path
) -> None:
    read = asked(first_stage, pictures)
    objective = objective_of(read, tmp_path / "run", CPU)
    assert isinstance(objective, Denoising)
    apart = held_out(read.data)
    assert apart is not None
    assert len(set(apart.shapes or ())) > 1
    found = denoising(objective.model, apart)
    assert found["count"] == len(apart)
    assert found["loss"] > 0


def test_what_cannot_be_trained_in_shapes_is_refused_with_the_remedy(
    first_stage: Path, pictures: Path, tmp_path: Path
) -> None:
    def said(read: recipe.Recipe) -> str:
        with pytest.raises(ValueError, match=" ") as caught:
            train(read, tmp_path / "run", device="cpu", quiet=True)
        return str(caught.value)

    data = {"kind": "folder", "path": str(pictures), "size": 32, "buckets": {"step": 2, "least": 2}}
    assert "give a data.buckets.step that is a multiple of 8" in said(asked(first_stage, pictures, data=data))
    first = {"stage": "autoencoder", "autoencoder": {"kind": "kl"}, "data": data, "training": {"images": 8}}
    assert "a first stage learns from squares" in said(recipe.parse(first))
    family = {"stage": "family", "family": {"kind": "vae"}, "data": data, "training": {"images": 8}}
    assert "a model of kind vae learns from squares" in said(recipe.parse(family))


def test_the_small_picture_of_a_square_tells_the_magnification(
    first_stage: Path, pictures: Path, tmp_path: Path
) -> None:
    small = {"small": {"kind": "lowres", "width": 4, "told": 8}}
    objective = objective_of(asked(first_stage, pictures, small), tmp_path / "run", CPU)
    assert isinstance(objective, Denoising)
    assert magnification(objective.model, "lowres") == 4


def test_batches_that_are_measured_are_whole(first_stage: Path, pictures: Path, tmp_path: Path) -> None:
    """Memory is measured on two pictures."""
    auto = asked(first_stage, pictures, training={"images": 9, "batch": 3, "accumulate": "auto"})
    train(auto, tmp_path / "three", device="cpu", quiet=True)
    auto = asked(first_stage, pictures, training={"images": 9, "batch": "auto"})
    train(auto, tmp_path / "auto", device="cpu", quiet=True)


def test_a_run_whose_last_step_was_short_goes_on_in_whole_ones(
    first_stage: Path, pictures: Path, tmp_path: Path
) -> None:
    train(asked(first_stage, pictures, training={"images": 30}), tmp_path, device="cpu", quiet=True)
    longer = asked(first_stage, pictures, training={"images": 62})
    train(longer, tmp_path, resume=True, device="cpu", quiet=True)
    assert metrics(tmp_path)[-1]["images"] == 62


def test_what_a_data_set_makes_fits_all_shapes(first_stage: Path, pictures: Path, tmp_path: Path) -> None:
    small = {"small": {"kind": "lowres", "width": 4, "told": 8, "plain": True}}
    read = asked(first_stage, pictures, small)
    objective = objective_of(read, tmp_path / "run", CPU)
    assert isinstance(objective, Denoising)
    assert magnification(objective.model, "lowres") == 4
    data = {**read.data.model_dump(), "degrade": {"factor": 16}}
    with pytest.raises(
        ValueError, match=r"degrade.factor 16 does not divide 40x24: give a buckets.step that is a multiple"
    ):
        Data.model_validate(data)


def test_networks_see_squares_as_in_sampling(pictures: Path, tmp_path: Path) -> None:
    network = save(Looks(), tmp_path / "looks.pt")
    fields = {
        "kind": "folder",
        "path": str(pictures),
        "size": 32,
        "embed": {"network": str(network), "cache": str(tmp_path)},
    }
    shaped, plain = (Data.model_validate({**fields, "buckets": b}).open() for b in ({"least": 2}, None))
    assert shaped.shapes is not None
    for k in range(len(plain)):
        assert torch.equal(shaped.told(k)["reference"], plain.told(k)["reference"])
