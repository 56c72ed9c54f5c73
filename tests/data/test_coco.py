"""COCO as it is distributed: parts by year, annotations beside them, boxes and captions of one picture in two files."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.data import coco, layout
from sfumato.data.base import Data
from sfumato.data.folder import FolderPart
from sfumato.data.rows import sources


def opened(path: Path, part: str = "train", **more: Any) -> FolderPart:
    found = Data.model_validate({"kind": "folder", "path": str(path), "size": 16, **more}).open(part)
    assert isinstance(found, FolderPart)
    return found


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def instances(names: list[str]) -> str:
    """A file of boxes: one a picture, whose class is in turn dog and cat."""
    return json.dumps({
        "images": [{"id": k, "file_name": name, "width": 32, "height": 32} for k, name in enumerate(names)],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [{"image_id": k, "category_id": 18 - k % 2, "bbox": [0, 0, 16, 16]} for k in range(len(names))],
    })  # fmt: skip


def captions(names: list[str]) -> str:
    """A file of captions: two a picture, its name among them."""
    return json.dumps({
        "images": [{"id": 7 + k, "file_name": name, "width": 32, "height": 32} for k, name in enumerate(names)],
        "annotations": [
            {"image_id": 7 + k, "caption": text} for k, name in enumerate(names) for text in (f"a {name}", "a picture")
        ],
    })  # fmt: skip


def distributed(root: Path, train: str, val: str, images: str = "") -> Path:
    """COCO's folders: six pictures in one part and two in the other, numbered through."""
    (root / "annotations").mkdir(parents=True)
    for part, numbers in ((train, range(6)), (val, range(6, 8))):
        names = [f"{k:012d}.jpg" for k in numbers]
        for k, name in zip(numbers, names, strict=True):
            noise(root / images / part / name, k)
        (root / "annotations" / f"instances_{part}.json").write_text(instances(names[:-1]))  # one has no boxes
        (root / "annotations" / f"captions_{part}.json").write_text(captions(names))
        (root / "annotations" / f"person_keypoints_{part}.json").write_text("{}")
    return root


@pytest.mark.parametrize("images", ["", "images"])
@pytest.mark.parametrize(("train", "val"), [("train2017", "val2017"), ("train2014", "val2014"), ("train", "val")])
def test_parts_are_no_classes_and_both_files_tell_of_a_picture(
    tmp_path: Path, train: str, val: str, images: str
) -> None:
    root = distributed(tmp_path, train, val, images)
    part, apart = opened(root), opened(root, "held_out")
    assert (len(part), len(apart)) == (6, 2)
    assert part.labels == ()
    prefix = f"{images}/{train}" if images else train
    first, last = part.fields(0), part.fields(5)
    assert first["name"] == f"{prefix}/000000000000.jpg"
    assert first["boxes"] == [("dog", 0, 0, 0.5, 0.5)]
    assert first["caption"] == ["a 000000000000.jpg", "a picture"]
    assert "boxes" not in last  # nothing is said of any
    assert last["caption"] == ["a 000000000005.jpg", "a picture"]
    assert [apart.fields(k)["caption"][0] for k in (0, 1)] == ["a 000000000006.jpg", "a 000000000007.jpg"]
    assert part.class_names["boxes"] == apart.class_names["boxes"] == ("cat", "dog")


def test_the_last_year_is_read_and_one_part_alone_has_no_classes(tmp_path: Path) -> None:
    root = distributed(tmp_path / "both", "train2017", "val2017")
    noise(root / "train2014" / "1.jpg", 20)
    assert layout.parted(root) == (root / "train2017", root / "val2017")
    alone = distributed(tmp_path / "alone", "val2017", "val2014")
    part = opened(alone, held_out=0)
    assert (len(part), part.labels) == (6, ())
    assert part.fields(0)["caption"][0] == "a 000000000000.jpg"
    itself = opened(alone / "val2017", held_out=0)  # the folder of the pictures, their annotations beside it
    assert itself.fields(0)["caption"][0] == "a 000000000000.jpg"
    assert itself.fields(0)["boxes"] == [("dog", 0, 0, 0.5, 0.5)]
    (tmp_path / "archive").mkdir()
    root.rename(tmp_path / "archive" / "coco")
    assert len(opened(tmp_path / "archive")) == 6


def test_a_file_of_one_part_tells_nothing_of_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "val"):
        for k in range(2):
            noise(tmp_path / part / f"{k}.jpg", k + 2 * (part == "val"))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(instances(["0.jpg", "1.jpg"]))
    (tmp_path / "annotations" / "captions_val.json").write_text(captions(["0.jpg", "1.jpg"]))
    (tmp_path / "annotations" / "captions_test.json").write_text("no JSON: of a part that is not there")
    part, apart = opened(tmp_path), opened(tmp_path, "held_out")
    assert set(part.fields(0)) == {"name", "boxes"}
    assert set(apart.fields(0)) == {"name", "caption"}
    (tmp_path / "annotations" / "captions.json").write_text(captions(["0.jpg", "train/1.jpg"]))
    with caplog.at_level(logging.WARNING):
        assert "caption" not in opened(tmp_path).fields(0)  # either of two
    assert opened(tmp_path).fields(1)["caption"] == ["a train/1.jpg", "a picture"]
    assert "annotations of 2 pictures are not read" in caplog.text


def test_what_two_files_say_alike_is_told_once() -> None:
    box = ("dog", 0.0, 0.0, 0.5, 0.5)
    one, other = coco.Told((box, box), ("a dog",), (32, 32)), coco.Told((box, ("cat", *box[1:])), ("a dog", "it"))
    assert one | other == coco.Told((box, box, ("cat", *box[1:])), ("a dog", "it"), (32, 32))
    assert (coco.Told(None, ("a",)) | one).boxes == (box, box)


def test_valid_is_held_out_and_a_json_of_another_form_says_what_to_do(tmp_path: Path) -> None:
    for part, seed in (("train", 0), ("valid", 1)):
        noise(tmp_path / part / "1.jpg", seed)
        (tmp_path / part / "_annotations.coco.json").write_text(instances(["1.jpg"]))
    assert [len(opened(tmp_path, part)) for part in ("train", "held_out")] == [1, 1]
    (tmp_path / "train" / "captions.json").write_text('{"1.jpg": "a dog"}')
    with pytest.raises(ValueError, match=r"captions\.json is not of COCO's form.*another name"):
        opened(tmp_path)


def test_a_table_of_the_folder_has_the_same_parts(tmp_path: Path) -> None:
    root = distributed(tmp_path, "train2017", "val2017")
    found = sources(root, "folder", None)
    assert (found.train, found.aside) == ([root / "train2017"], [root / "val2017"])


def test_odd_rows_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = json.loads(instances(["a.png", "b.png"]))
    for row in (
        {"image_id": 99, "category_id": 17, "bbox": [0, 0, 4, 4]},
        {"image_id": 0, "category_id": 5, "bbox": [0, 0, 4, 4]},
        {"image_id": 0, "category_id": 17, "bbox": [0, 0, 4]},
        {"image_id": 99, "caption": "of nothing"},
        {"image_id": 0, "caption": None},
    ):
        whole["annotations"].append(row)
    (tmp_path / "instances.json").write_text(json.dumps(whole))
    found, names = coco.told(tmp_path / "instances.json")
    assert {name: len(one.boxes or ()) for name, one in found.items()} == {"a.png": 1, "b.png": 1}
    assert names == ("cat", "dog")
    for fault in ("2 are of pictures that the file does not list", "1 are of a category", "1 are not four numbers"):
        assert fault in caplog.text


def test_the_folder_of_the_pictures_is_no_class_of_those_without_annotations_either(tmp_path: Path) -> None:
    for k in range(4):
        noise(tmp_path / "images" / f"{k}.png", k)
    (tmp_path / "instances.json").write_text(instances(["0.png", "1.png"]))
    assert {entry.group for entry in layout.listed(tmp_path)} == {None}


def test_names_that_are_numbers_and_files_with_a_mark_are_read(tmp_path: Path) -> None:
    for k in range(4):
        noise(tmp_path / f"{k}.png", k)
    said = json.loads(instances([f"{k}.png" for k in range(4)]))
    said["categories"] = [{"id": 18, "name": 7}, {"id": 17, "name": 5}]
    (tmp_path / "annotations.json").write_text(json.dumps(said), encoding="utf-8-sig")
    assert sorted(opened(tmp_path).class_names["boxes"]) == ["5", "7"]
