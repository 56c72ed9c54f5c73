"""What would stop a training in its middle is found before it begins: in maps, pairs, and in what is held out."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.data.base import Data
from sfumato.data.folder import FolderPart
from sfumato.training import given, recipe, run
from sfumato.training.fitted import fitted
from sfumato.training.readable import readable


def noise(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path


def folder(root: Path, field: str, suffix: str) -> Path:
    """Four pictures, each with a file of a field."""
    rows = []
    for k in range(4):
        noise(root / f"{k}.png", k)
        file = noise(root / field / f"{k}.{suffix}", k)
        if field == "map":
            Image.fromarray(np.full((64, 64), k, np.uint8)).save(file)
        rows.append({"file_name": f"{k}.png", field: f"{field}/{k}.{suffix}"})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def opened(path: Path, part: str = "train", **more: Any) -> FolderPart:
    found = Data.model_validate({"kind": "folder", "path": str(path), "size": 16, "held_out": 0, **more}).open(part)
    assert isinstance(found, FolderPart)
    return found


@pytest.mark.parametrize(("field", "suffix"), [("pair", "jpg"), ("pair", "png"), ("map", "png")])
def test_damaged_pairs_and_maps_leave_their_pictures_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str, suffix: str
) -> None:
    path = folder(tmp_path, field, suffix) / field / f"2.{suffix}"
    path.write_bytes(path.read_bytes()[:-60])  # its head says what it would be
    with caplog.at_level(logging.WARNING):
        part = opened(tmp_path)
    assert [entry.name for entry in part.entries] == ["0.png", "1.png", "3.png"]
    assert "left out" in caplog.text
    assert "1 of 4 pictures" in caplog.text
    assert f"{field}/2.{suffix} cannot be read" in caplog.text
    assert "replace or remove it" in caplog.text


def test_maps_that_were_made_wrong_are_refused_on_opening(tmp_path: Path) -> None:
    folder(tmp_path, "map", "png")
    Image.fromarray(np.full((64, 64, 3), 9, np.uint8)).save(tmp_path / "map" / "3.png")
    with pytest.raises(ValueError, match=r"map/3\.png is a map in colour: give .* in classes\.json"):
        opened(tmp_path)
    (tmp_path / "classes.json").write_text('{"classes": ["a", "b"], "palette": [[0, 0, 0], [8, 8, 8]]}')
    with pytest.raises(ValueError, match=r"map/3\.png has colours \[\(9, 9, 9\)\] that classes\.json does not know"):
        opened(tmp_path)
    Image.fromarray(np.full((64, 64), 300, np.uint16)).save(tmp_path / "map" / "3.png")
    with pytest.raises(ValueError, match=r"map/3\.png holds class numbers 300 to 300"):
        opened(tmp_path)


def test_the_numbers_of_maps_are_those_that_can_be_shown(tmp_path: Path) -> None:
    for k in range(2):
        Image.effect_noise((96, 64), 90 + k).save(tmp_path / f"{k}.png")
        values = np.zeros((64, 96), np.uint8)
        values[:, :8] = 7  # beside the centred square
        values[30, 48] = 3 + k
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "maps" / f"{k}.png")
    rows = [{"file_name": f"{k}.png", "map": f"maps/{k}.png"} for k in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert set(opened(tmp_path).numbers("map")) == {0, 3, 4}
    found = opened(tmp_path, crops=4).numbers("map")
    assert set(found) == {0, 3, 4, 7}
    assert found[3] == str(tmp_path / "maps" / "0.png")
    assert found[4] == str(tmp_path / "maps" / "1.png")
    assert opened(tmp_path).numbers("boxes") == {}


def asked(path: Path, conditioner: dict[str, Any], **more: Any) -> recipe.DiffusionRecipe:
    fields = {
        "stage": "diffusion", "autoencoder": "nowhere", "backbone": {"kind": "unet"}, "conditioners": {"one": conditioner},
        "data": {"kind": "folder", "path": str(path), "size": 16}, "training": {"images": 8, **more},
    }  # fmt: skip
    found = recipe.parse(fields)
    assert isinstance(found, recipe.DiffusionRecipe)
    return found


def settled(found: recipe.DiffusionRecipe) -> Any:
    """The conditioner as a training completes it."""
    return fitted(found, found.data.open("train"), given.held_out(found.data))[0].conditioners["one"]


def parts(root: Path, train: dict[str, Any], val: dict[str, Any]) -> Path:
    """Three pictures to train on and one that is held out, with what their rows say."""
    for part, several, said in (("train", range(3), train), ("val", range(3, 4), val)):
        for k in several:
            noise(root / part / f"{k}.png", k)
        rows = [{"file_name": f"{k}.png", **said} for k in several]
        (root / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


BOX = ["cat", 0, 0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("conditioner", "train", "val", "words"),
    [
        ({"kind": "text", "length": 6}, {"text": "a cat"}, {"text": "a cat " * 20}, "1 of 1 .* too long"),
        ({"kind": "boxes", "most": 2}, {"boxes": [BOX]}, {"boxes": [BOX] * 5}, "1 of 1 .* have too many.*most: 5"),
        ({"kind": "boxes", "labels": ["cat"]}, {"boxes": [BOX]}, {"boxes": [["dog", *BOX[1:]]]}, "unknown class 'dog'"),
        ({"kind": "label", "labels": ["a"]}, {"label": "a"}, {"label": ["a", "b"]}, "label 1 is out of range"),
    ],
)
def test_what_is_held_out_is_asked_as_what_is_trained_on(
    tmp_path: Path, conditioner: dict[str, Any], train: dict[str, Any], val: dict[str, Any], words: str
) -> None:
    settled(asked(parts(tmp_path / "same", train, train), conditioner))
    both = asked(parts(tmp_path / "other", train, val), conditioner)
    with pytest.raises(ValueError, match=words):
        settled(both)
    run.fitted(both, both.data.open("train"))  # alone it would do


def test_class_numbers_that_a_model_does_not_know_are_refused_with_their_map(tmp_path: Path) -> None:
    for part, numbers in (("train", (0, 1, 1)), ("val", (7,))):
        rows = []
        for k, number in enumerate(numbers):
            noise(tmp_path / part / f"{k}.png", 4 * number + k)
            (tmp_path / part / "maps").mkdir(exist_ok=True)
            Image.fromarray(np.full((64, 64), number, np.uint8)).save(tmp_path / part / "maps" / f"{k}.png")
            rows.append({"file_name": f"{k}.png", "map": f"maps/{k}.png"})
        (tmp_path / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = r"val/maps/0\.png: map has unknown classes 7; the model knows 0 to 1; give it `classes: 8`, or `ignore: 7`"
    with pytest.raises(ValueError, match=words):
        settled(asked(tmp_path, {"kind": "map", "classes": 2}))
    with pytest.raises(ValueError, match=r"train/maps/1\.png: map has unknown classes 1"):
        settled(asked(tmp_path, {"kind": "map", "classes": 1}))
    assert settled(asked(tmp_path, {"kind": "map", "classes": 2, "ignore": 7})).classes == 2
    assert settled(asked(tmp_path, {"kind": "map", "classes": 8})).classes == 8


def test_data_of_which_nothing_is_held_out_are_trained_on_all_the_same(tmp_path: Path) -> None:
    noise(tmp_path / "a" / "0.png", 0)
    found = asked(tmp_path, {"kind": "label"})
    nothing = found.model_copy(update={"data": found.data.model_copy(update={"held_out": 0.0})})
    assert given.held_out(nothing.data) is None
    config = settled(nothing)
    readable(config, {}, nothing.data.open("train"))
    wanting = nothing.model_copy(update={"training": nothing.training.model_copy(update={"held_out": 8})})
    with pytest.raises(ValueError, match=r"no picture of .* is left for the part 'held_out'"):
        given.held_out(wanting.data, needed=True)
