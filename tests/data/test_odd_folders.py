"""Folders as they come: several tables, links, capitals, doubled names, words of sides, and fields that nobody reads."""

import json
import logging
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from sfumato import image
from sfumato.data import beside, coco, layout, loader
from sfumato.data.base import HUMPS, SIDED, Data, Part
from sfumato.data.folder import FolderPart


def picture(path: Path, side: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((side, side), 20 + sum(str(path.relative_to(path.parents[1])).encode()) % 90).convert(
        "RGB"
    ).save(path)
    return path


def rows(path: Path, *said: dict[str, Any]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in said), encoding="utf-8")


def opened(path: Path, part: str = "train", **more: Any) -> FolderPart:
    found = Data.model_validate({"kind": "folder", "path": str(path), "size": 8, "held_out": 0, **more}).open(part)
    assert isinstance(found, FolderPart)
    return found


def test_tables_in_class_folders_are_read(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        picture(tmp_path / name)
    rows(tmp_path / "a" / "metadata.jsonl", {"file_name": "0.png", "text": "one"}, {"file_name": "1.png", "label": "c"})
    part = opened(tmp_path)
    assert [(e.name, e.captions, e.group) for e in part.entries] == [
        ("a/0.png", ("one",), "a"), ("a/1.png", (), "c"), ("b/0.png", (), "b"),
    ]  # fmt: skip


def test_tables_that_are_none_of_the_pictures_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/0.png", ".trash/0.png", "run/samples/0.png"):
        picture(tmp_path / name)
        rows(tmp_path / name.replace("0.png", "metadata.jsonl"), {"file_name": "0.png", "text": name})
    (tmp_path / "run" / "recipe.yaml").write_text("stage: autoencoder\n")
    picture(tmp_path / "b" / "1.png")
    (tmp_path / "b" / "metadata.csv").write_text("camera,year\nx,2024\n")
    with caplog.at_level(logging.WARNING):
        assert [(e.name, e.captions) for e in opened(tmp_path).entries] == [("a/0.png", ("a/0.png",)), ("b/1.png", ())]
    assert "names no pictures by `file_name`" in caplog.text


@pytest.mark.parametrize("folder", [".", "a"])
def test_rows_of_one_picture_are_its_captions_and_two_examples_where_they_say_more(folder: str, tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        picture(tmp_path / folder / name)
    said: list[dict[str, Any]] = [{"file_name": "0.png", "text": text} for text in ("one", "two", "one")]
    said += [{"file_name": "1.png", "label": label} for label in ("cat", "dog")]
    rows(tmp_path / folder / "metadata.jsonl", *said)
    entries = opened(tmp_path).entries
    assert [(e.captions, e.group) for e in entries if e.captions] == [(("one", "two"), None)]
    assert sorted(str(e.group) for e in entries if not e.captions) == ["cat", "dog"]


def test_a_folder_train_beside_others_is_a_class_however_it_is_written(tmp_path: Path) -> None:
    for name in ("Train/0.png", "Car/1.png"):
        picture(tmp_path / name)
    assert opened(tmp_path).labels == ("Car", "Train")
    shutil.rmtree(tmp_path / "Car")
    assert [e.name for e in opened(tmp_path).entries] == ["Train/0.png"]


def test_folders_that_may_not_be_read_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "a" / "0.png")
    (tmp_path / "lost+found").mkdir()
    scan = os.scandir

    def refused(path: Any = ".") -> Any:
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with caplog.at_level(logging.WARNING):
        assert opened(tmp_path).labels == ("a",)
    assert "lost+found may not be read" in caplog.text


def test_a_table_of_several_files_has_one_order(tmp_path: Path) -> None:
    """`datasets` keeps them in a set of texts, whose order is another in every process."""
    for c in "abcd":
        picture(tmp_path / "set" / c / "0.png")
        rows(tmp_path / "set" / c / "metadata.jsonl", {"file_name": "0.png", "text": c})
    code = (
        "import sys; from sfumato.data.base import Data; fields = {'kind': 'table', 'path': sys.argv[1], 'cache': sys.argv[2], "
        "'size': 8, 'held_out': 0}; part = Data.model_validate(fields).open(); "
        "print([part.field(k, 'caption')[0] for k in range(4)])"
    )
    for seed in "12":
        where = [str(tmp_path / "set"), str(tmp_path / seed)]
        told = subprocess.run([sys.executable, "-c", code, *where], env={**os.environ, "PYTHONHASHSEED": seed},
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert told.stdout.strip() == "['a', 'b', 'c', 'd']"


def test_linked_folders_are_classes_and_loops_end(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "cats" / "0.png")
    picture(tmp_path / "real" / "0.png")
    (tmp_path / "set" / "dogs").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "set")
    assert opened(tmp_path / "set").labels == ("cats", "dogs")


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "Val"), ("train", "valid")])
@pytest.mark.parametrize("beside", [(), ("README.md", "__MACOSX/x")])
def test_parts_are_known_however_they_are_written(
    tmp_path: Path, names: tuple[str, str], beside: tuple[str, ...]
) -> None:
    for name in beside:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    root = tmp_path / "set" if beside else tmp_path
    for k, name in enumerate(names):
        for c in "ab":
            picture(root / name / c / f"{k}.png")
    assert [e.name for e in opened(tmp_path).entries] == [f"{names[0]}/a/0.png", f"{names[0]}/b/0.png"]
    assert [e.name for e in opened(tmp_path, "held_out").entries] == [f"{names[1]}/a/1.png", f"{names[1]}/b/1.png"]
    assert opened(tmp_path).labels == ("a", "b")


def test_a_table_beside_parts_holds_out_those_of_one_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["train/0.png", "train/1.png", "val/2.png", "test/3.png", "more/4.png"]
    for name in names:
        picture(tmp_path / name)
    rows(tmp_path / "metadata.jsonl", *({"file_name": name} for name in names))
    with caplog.at_level(logging.WARNING):
        assert [e.name for e in opened(tmp_path, "held_out").entries] == ["val/2.png"]
        assert [e.name for e in opened(tmp_path).entries] == ["train/0.png", "train/1.png"]
    assert "2 pictures of its table are neither in train/ nor in val/" in caplog.text


def test_two_rows_of_one_picture_are_each_what_they_say(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", 24)
    picture(tmp_path / "half.png", 12)
    picture(tmp_path / "sixth.png", 4)
    (tmp_path / "cut.png").write_bytes((tmp_path / "half.png").read_bytes()[:200])
    rows(tmp_path / "metadata.jsonl", *({"file_name": "b.png", "pair": f"{p}.png"} for p in ("half", "sixth", "cut")))
    part = opened(tmp_path, size=24)
    assert [tuple(part.field(k, "pair").shape) for k in range(len(part))] == [(3, 12, 12), (3, 4, 4)]


def test_names_that_coco_lists_twice_are_read_for_neither(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image_ = {"width": 10, "height": 10}
    whole = {
        "images": [{"id": k, "file_name": name, **image_} for k, name in ((1, "1.png"), (2, "1.png"), (3, "3.png"))],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]},
            {"image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5], "caption": "a dog"},
        ],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(whole))
    with caplog.at_level(logging.WARNING):
        told, _ = coco.told(path)
    assert set(told) == {"3.png"}
    assert (told["3.png"].boxes, told["3.png"].captions) == ((("dog", 0.0, 0.0, 0.5, 0.5),), ())
    assert "1 are of pictures of one name" in caplog.text


def test_annotations_are_of_the_part_of_their_name_in_capitals_too(tmp_path: Path) -> None:
    for name in ("Train/0.png", "Val/1.png"):
        picture(tmp_path / name)
    (tmp_path / "annotations").mkdir()
    for part, name in (("train", "0.png"), ("val", "1.png")):
        whole = {
            "images": [{"id": 1, "file_name": name, "width": 24, "height": 24}],
            "categories": [{"id": 1, "name": part}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 12, 12]}],
        }
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(whole))
    assert opened(tmp_path).entries[0].boxes == (("train", 0.0, 0.0, 0.5, 0.5),)
    assert opened(tmp_path, "held_out").entries[0].boxes == (("val", 0.0, 0.0, 0.5, 0.5),)


@pytest.mark.parametrize(
    ("words", "sided"),
    [("leftmost house", True), ("a left-handed man", True), ("lefthanded", True), ("TurnLeft", True), ("left1", True),
     ("turn_right", True), ("the right side", True), ("bright", False), ("copyright", False), ("leftovers", False),
     ("upright piano", False)],
)  # fmt: skip
def test_sides_are_heard_in_words(words: str, sided: bool) -> None:
    assert bool(SIDED.search(HUMPS.sub(" ", words))) == sided


def test_boxes_of_a_csv_are_read_and_what_is_no_list_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    box = json.dumps([{"label": "dog", "box": [0, 0, 0.5, 0.5]}]).replace('"', '""')
    (tmp_path / "metadata.csv").write_text(f'file_name,boxes\n0.png,"{box}"\n')
    assert opened(tmp_path).entries[0].boxes == (("dog", 0.0, 0.0, 0.5, 0.5),)
    (tmp_path / "metadata.csv").unlink()
    rows(tmp_path / "metadata.jsonl", {"file_name": "0.png", "boxes": {"label": ["dog"]}, "text": ["hello", " "]})
    with pytest.raises(ValueError, match="line 1: boxes are a list of objects"):
        opened(tmp_path)
    rows(tmp_path / "metadata.jsonl", {"file_name": "0.png", "text": ["hello", " "]})
    assert opened(tmp_path).entries[0].captions == ("hello",)


def test_maps_that_nobody_reads_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("images", "maps"):
        for k in range(2):
            path = tmp_path / folder / f"{k}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L" if folder == "maps" else "RGB", (16, 16), k).save(path)
    part: Part = Data.model_validate(
        {"kind": "folder", "path": str(tmp_path), "size": 8, "held_out": 0, "masks": {}}
    ).open()
    assert {"map", "masked"} <= set(loader.plan(part, 0, [0]).fields)
    assert "map" in loader.plan(part, 0, [0], 0.0, ("map",)).fields
    monkeypatch.setattr(beside, "numbers", None)
    monkeypatch.setattr("sfumato.data.masks.MasksConfig.__call__", None)
    assert not {"map", "masked"} & set(loader.batch(part, 0, [0], 0.5, ()).fields)


def test_sides_of_a_png_are_told_without_decoding_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.png", exif=exif)
    Image.new("RGB", (6, 4)).save(tmp_path / "plain.png")
    late = tmp_path / "late.png"
    Image.new("RGB", (6, 4)).save(late)
    chunk = b"eXIf" + exif.tobytes()[6:]
    end = late.read_bytes()
    cut = end.index(b"IEND") - 4
    late.write_bytes(
        end[:cut] + (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + end[cut:]
    )
    assert image.sides(late) == (4, 6) == image.read(late).size
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    assert image.sides(tmp_path / "turned.png") == (4, 6)
    assert image.sides(tmp_path / "plain.png") == (6, 4)


def test_a_table_at_the_top_says_what_it_leaves_out_and_leaves_words_to_text_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(4):
        picture(tmp_path / "a" / f"{k}.png")
        (tmp_path / "a" / f"{k}.txt").write_text(f"words {k}")
    box = [{"label": "cat", "box": [0, 0, 0.5, 1]}]
    picture(tmp_path / "cond" / "0.png")  # named in a column that nobody reads
    table = (
        {"file_name": "a/0.png", "boxes": box, "cond_file_name": "cond/0.png"},
        {"file_name": "a/1.png", "text": "told"},
        {"file_name": "a/2.png"},
    )
    rows(tmp_path / "metadata.jsonl", *table)
    found = layout.listed(tmp_path)
    assert [entry.captions for entry in found] == [("words 0",), ("told",), ("words 2",)]
    assert found[0].boxes is not None
    assert "leaves out pictures of its folder that it does not name: 1, such as a/3.png" in caplog.text
    assert "has no words for 2 pictures that have a text file" in caplog.text


def test_pairs_beside_loose_pictures_are_theirs(tmp_path: Path) -> None:
    for k in range(6):
        picture(tmp_path / f"{k}.jpg")
        picture(tmp_path / "pairs" / f"{k}.png", 12)
    part = opened(tmp_path)
    assert [e.name for e in part.entries] == [f"{k}.jpg" for k in range(6)]
    assert all(e.pair is not None for e in part.entries)
    picture(tmp_path / "pairs" / "of another.png")  # then it may be a folder like others
    assert any(e.name.startswith("pairs/") for e in opened(tmp_path).entries)


def test_captions_in_capitals_are_captions(tmp_path: Path) -> None:
    picture(tmp_path / "0.jpg")
    (tmp_path / "0.TXT").write_text("as Windows has it")
    assert opened(tmp_path).field(0, "caption") == ["as Windows has it"]
