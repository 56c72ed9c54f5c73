"""`sfumato bench data` measures every part and names the one to change."""

import re
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from sfumato.data.base import Data
from sfumato.training import bench, recipe
from sfumato.training.bench import Feeding, feeding, rate, verdict
from sfumato.training.recipe import AutoencoderRecipe
from tests.cli.test_cli import call
from tests.conftest import CODER, autoencoder_recipe, diffusion_recipe
from tests.data.test_table import parquet

CPU = torch.device("cpu")


def on_table(path: Path) -> AutoencoderRecipe:
    """A first stage on a small Parquet file."""
    read = autoencoder_recipe(batch=8, images=64)
    data = {"kind": "table", "path": path / "a.parquet", "size": 16, "cache": path / "cache"}
    return AutoencoderRecipe.model_validate({**read.model_dump(), "data": data})


def test_every_part_is_measured(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", range(40))
    found = feeding(on_table(tmp_path), CPU, 3, seconds=0.02)
    assert list(found.parts) == ["reading", "decoding", "resizing", "assembling"]
    for rates in (*found.parts.values(), found.whole):
        assert list(rates) == [1, 2, 3]
        assert min(rates.values()) > 0
    assert found.step is not None
    assert found.step > 0
    assert "images/s" in verdict(found)


@pytest.mark.parametrize("cache", [True, False])
def test_a_denoiser_is_fed_through_its_encoder(cache: bool, first_stage: Path) -> None:
    recipe = diffusion_recipe(first_stage).model_copy(update={"cache": cache})
    found = feeding(recipe, CPU, 1, seconds=0.02)
    assert list(found.parts) == ["drawing", "assembling"]
    assert found.encodes == cache
    assert found.step is not None
    assert ("sees every picture once" in verdict(found)) == cache


def test_what_is_made_of_pictures_is_a_part_of_assembling() -> None:
    data = Data.model_validate({"kind": "emoji", "size": 32, "degrade": {"factor": 4}, "masks": {}})
    kept = bench.Kept(data.open("train"), [3, 5])
    assert {"lowres", "masked"} <= kept.told(0).keys()


def test_a_first_stage_without_weights_is_told_apart(tmp_path: Path) -> None:
    read = recipe.read("pixels", ["data={kind: emoji, size: 32}"])
    found = feeding(read, CPU, 1, seconds=0.02)
    assert found.step is None
    assert "has nothing to train" in verdict(found)


def test_a_recipe_that_cannot_be_built_still_has_rates(tmp_path: Path) -> None:
    found = feeding(diffusion_recipe(tmp_path / "nowhere"), CPU, 1, seconds=0.02)
    assert found.step is None
    assert "cannot be built here" in verdict(found)
    assert "nowhere" in verdict(found)
    assert found.whole[1] > 0


PARTS = {"reading": {1: 900.0, 4: 900.0}, "decoding": {1: 100.0, 4: 400.0}, "assembling": {1: 2000.0, 4: 2000.0}}
WHOLE = {1: 80.0, 4: 300.0}


@pytest.mark.parametrize(
    ("step", "workers", "words"),
    [
        (1.0, 0, "The bottleneck is the training step with 1 images/s"),
        (80.0, 0, "Loading is 50% of the time"),
        (80.0, 0, "set training.workers=4 where"),
        (80.0, 0, "the slowest part is decoding: store smaller pictures"),
        (200.0, 4, "The bottleneck is the training step with 200"),
        (200.0, 1, "The bottleneck is loading: training.workers=1 gives 80 images/s .*; set training.workers=4"),
        (
            900.0,
            4,
            "The bottleneck is loading: .* 900 images/s and training.workers=4 gives 300; the slowest part is decoding",
        ),
    ],
)
def test_the_verdict_names_the_bottleneck_and_the_cure(step: float, workers: int, words: str) -> None:
    assert re.search(words, verdict(Feeding(PARTS, WHOLE, step, "", workers)))


def test_threads_share_the_items() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def work(item: float) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(item)
        with lock:
            inside -= 1

    for threads in (1, 3):
        most = 0
        assert rate(work, [0.02], threads, 0.1) > 0
        assert most == threads


def test_the_command_prints_a_table_and_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet(tmp_path / "a.parquet", range(20))
    recipe = {
        "stage": "autoencoder",
        "autoencoder": {"kind": "kl", "coder": CODER},
        "data": {"kind": "table", "path": str(tmp_path / "a.parquet"), "size": 16, "cache": str(tmp_path / "cache")},
        "training": {"images": 64, "batch": 8},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    words = ["bench", "data", tmp_path / "r.yaml", "training.precision=fp32", "--workers", 2, "--seconds", 0.02]
    code, out, _ = call(*words, capsys=capsys)
    assert code == 0
    assert "2 threads" in out
    assert "the training step" in out
    assert "bottleneck" in out or "of the time" in out
    code, _, err = call("bench", "dta", "emoji", capsys=capsys)
    assert (code, "nothing to bench by the name 'dta'; known: data" in err) == (2, True)
    assert set(bench.CURES) >= {"reading", "decoding", "resizing", "assembling", "drawing"}


def test_what_a_training_settles_by_itself_is_settled(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", range(40))
    recipe = on_table(tmp_path)
    training = recipe.training.model_copy(update={"batch": 0, "accumulate": 0})
    assert feeding(recipe.model_copy(update={"training": training}), CPU, 1, seconds=0.02).step
