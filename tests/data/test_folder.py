"""A user's own folder: three layouts, damaged files, and errors that say what to do."""

import json
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import image
from sfumato.conditioning import pictures
from sfumato.conditioning.bundle import Bundle
from sfumato.conditioning.label import LabelConfig
from sfumato.data import loader
from sfumato.data.folder import FolderData


def paint(path: Path, colour: str = "red", size: tuple[int, int] = (40, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_class_folders_are_labels(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for k in range(4):
            paint(tmp_path / name / f"{k}.png", size=(30 + k, 20))
    part = FolderData(path=tmp_path, size=16, held_out=0).open()
    assert part.labels == ("cat", "dog")
    assert len(part) == 8
    assert [part.fields(k)["label"] for k in range(8)] == [0] * 4 + [1] * 4
    assert part.image(0).shape == (3, 16, 16)
    assert loader.batch(part, 0, range(4)).images.shape == (4, 3, 16, 16)


def test_a_text_beside_a_picture_is_its_caption(tmp_path: Path) -> None:
    paint(tmp_path / "a.png").with_suffix(".txt").write_text("a red field\na flag\n")
    part = FolderData(path=tmp_path, size=8, held_out=0).open()
    assert part.fields(0)["caption"] == ["a red field", "a flag"]
    assert part.labels == ()


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_are_read_in_every_unicode_and_refused_in_others(tmp_path: Path, coding: str) -> None:
    file = paint(tmp_path / "a.png").with_suffix(".txt")
    file.write_bytes("café à la crème\r\ntwo\r\n".encode(coding))
    part = FolderData(path=tmp_path, size=8, held_out=0).open()
    assert part.fields(0)["caption"] == ["café à la crème", "two"]
    file.write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8.*save it"):
        FolderData(path=tmp_path, size=8, held_out=0).open()


def test_metadata_gives_texts_and_labels(tmp_path: Path) -> None:
    paint(tmp_path / "x" / "a.jpg")
    paint(tmp_path / "b.jpg", "blue")
    rows = [
        {"file_name": "x/a.jpg", "text": "red", "label": 3},
        {"file_name": "b.jpg", "caption": ["blue", "azure"]},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = FolderData(path=tmp_path, size=8, held_out=0).open()
    assert part.fields(0) == {"name": "b.jpg", "caption": ["blue", "azure"]}
    assert part.fields(1) == {"name": "x/a.jpg", "caption": ["red"], "label": 0, "group": "3"}


def test_several_labels_of_a_picture_are_a_list(tmp_path: Path) -> None:
    said = [["b", "a", "b"], "c", 7, ["c"], [], None]
    for k, _ in enumerate(said):
        paint(tmp_path / f"{k}.png", size=(20 + k, 20))
    rows = [{"file_name": f"{k}.png", "label": label} for k, label in enumerate(said)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = FolderData(path=tmp_path, size=8, held_out=0).open()
    assert part.labels == ("a", "b", "c", "7")
    several = [part.fields(k) for k in range(len(said))]
    assert [f.get("label") for f in several] == [[1, 0], 2, 3, 2, None, None]
    assert [f.get("group") for f in several] == [["b", "a"], "c", "7", "c", None, None]
    config, _ = LabelConfig(width=8).learn([f.get("label") for f in several], part.labels)
    encoder = Bundle({"class": config.build({})})
    batch = loader.batch(part, 0, range(6))
    assert encoder({"label": batch.fields["label"]}, 6).vector.shape == (6, 8)
    both = encoder({"label": [several[0]["label"], ["a", "b"]]}, 2).vector
    assert torch.equal(both[0], both[1])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "label": {"a": 1}}')
    with pytest.raises(ValueError, match="line 1: a label is a name or a number, or a list of them"):
        FolderData(path=tmp_path, size=8, held_out=0).open()


def test_a_csv_does_as_well(tmp_path: Path) -> None:
    for k in (0, 1):
        paint(tmp_path / f"{k}.png")
    (tmp_path / "metadata.csv").write_text('file_name,text,label\n0.png,"a, b",10\n1.png,c,9\n', encoding="utf-8-sig")
    part = FolderData(path=tmp_path, size=8, held_out=0).open()
    assert part.labels == ("9", "10")  # numbers in the order of numbers
    assert [part.fields(k)["caption"] for k in (0, 1)] == [["a, b"], ["c"]]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("[1]", "line 1: every line needs a `file_name`"),
        ('{"text": "a"}', "line 1: every line needs a `file_name`"),
        ('{"file_name": "a.png", "text": 3}', "a caption is a text or a list of texts"),
        ('{"file_name": "a.png", "text": [3]}', "a caption is a text or a list of texts"),
        ('{"file_name": "gone.png", "text": "a"}', "none of the 1 pictures"),
    ],
)
def test_a_table_that_is_not_what_it_should_be(tmp_path: Path, line: str, fault: str) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match=fault):
        FolderData(path=tmp_path, size=8).open()


def test_train_and_test_folders_are_the_parts(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a.png")
    paint(tmp_path / "test" / "b.png")
    data = FolderData(path=tmp_path, size=8)
    assert [data.open(p).fields(0)["name"] for p in ("train", "held_out")] == ["train/a.png", "test/b.png"]


def test_a_label_means_one_class_in_every_part(tmp_path: Path) -> None:
    for name in ("train/bird/1.png", "train/cat/1.png", "train/dog/1.png", "val/dog/2.png", "test/cat/3.png"):
        paint(tmp_path / name)
    train, held_out = (FolderData(path=tmp_path, size=8).open(p) for p in ("train", "held_out"))
    assert train.labels == held_out.labels == ("bird", "cat", "dog")
    assert held_out.fields(0) == {"name": "val/dog/2.png", "label": 2, "group": "dog"}
    assert len(held_out) == 1


def test_the_folder_that_an_archive_adds_is_no_class(tmp_path: Path) -> None:
    for name in ("flowers/train/rose/1.png", "flowers/val/rose/2.png"):
        paint(tmp_path / name)
    assert FolderData(path=tmp_path, size=8).open().labels == ("rose",)
    paint(tmp_path / "one" / "cat" / "1.png")
    assert FolderData(path=tmp_path / "one", size=8, held_out=0).open().labels == ("cat",)


def test_without_a_folder_beside_train_a_share_of_train_is_held_out(tmp_path: Path) -> None:
    for k in range(20):
        paint(tmp_path / "train" / f"{k}.png", size=(20 + k, 20))
    parts = [FolderData(path=tmp_path, size=8).open(p) for p in ("train", "held_out")]
    assert sum(map(len, parts)) == 20
    assert min(map(len, parts)) >= 1


def test_something_is_held_out_of_the_smallest_folder(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"no picture of .* is left for the part 'train'"):
        FolderData(path=tmp_path, size=8).open()
    paint(tmp_path / "b.png", "blue")
    assert [len(FolderData(path=tmp_path, size=8).open(p)) for p in ("train", "held_out")] == [1, 1]
    with pytest.raises(ValueError, match=r"held_out is 0\.0"):
        FolderData(path=tmp_path, size=8, held_out=0).open("held_out")


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    file = paint(tmp_path / "a.bmp")
    before = FolderData(path=tmp_path, size=8, held_out=0).open().fingerprint
    assert FolderData(path=tmp_path, size=8, held_out=0).open().fingerprint == before
    paint(file, "blue")  # as many bytes as before
    assert FolderData(path=tmp_path, size=8, held_out=0).open().fingerprint != before


def test_pictures_are_cropped_at_the_centre_and_in_range(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste((0, 0, 255), (100, 0, 200, 100))
    wide.save(tmp_path / "a.png")
    wide.resize((3000, 1000)).save(tmp_path / "b.jpg", quality=95)
    part = FolderData(path=tmp_path, size=16, held_out=0).open()
    blue = torch.tensor([0, 0, 255])[:, None, None]
    for k in (
        0,
        1,
    ):  # the second is read at a fraction of its size; the outermost columns take part in their neighbours
        off = (part.image(k).float() - blue).abs()
        assert float(off[:, :, 3:-3].max()) <= 2
        assert float(off.max()) < 30


def test_hidden_files_and_other_files_are_no_pictures(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/.b.png", ".cache/c.png"):
        paint(tmp_path / name)
    (tmp_path / "cat" / "notes.md").write_text("x")
    part = FolderData(path=tmp_path, size=8, held_out=0).open()
    assert [part.fields(k)["name"] for k in range(len(part))] == ["cat/a.png"]
    assert part.labels == ("cat",)


def test_a_share_is_held_out_by_content(tmp_path: Path) -> None:
    for k in range(60):
        paint(tmp_path / f"{k}.png", size=(20 + k, 20))
    paint(tmp_path / "copy.png", size=(20, 20))
    data = FolderData(path=tmp_path, size=8, held_out=0.3)
    names = [{e.name for e in data.open(p).entries} for p in ("train", "held_out")]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 61
    assert 8 <= len(names[1]) <= 30
    assert any({"0.png", "copy.png"} <= n for n in names)  # equal files stay on one side


def test_damaged_pictures_are_left_out_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        part = FolderData(path=tmp_path, size=8, held_out=0).open()
        assert len(FolderData(path=tmp_path, size=8, held_out=0).open()) == 1
    assert len(part) == 1
    assert caplog.text.count("1 of 2 pictures") == 1  # said once, not for every part
    assert "b.png" in caplog.text


def test_decoders_that_fail_in_odd_ways_are_damage_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "a.png")

    def fail(picture: Image.Image) -> Image.Image:
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr("sfumato.image.coloured", fail)
    with pytest.raises(ValueError, match=r"none of the 1 pictures.*a\.png cannot be read.*required argument"):
        FolderData(path=tmp_path, size=8).open()


def test_where_nothing_can_be_read_it_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no pictures"):
        FolderData(path=tmp_path, size=8).open()
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the 1 pictures"):
        FolderData(path=tmp_path, size=8, held_out=0).open()
    with pytest.raises(ValueError, match="there is no folder"):
        FolderData(path=tmp_path / "no", size=8).open()
    (tmp_path / "metadata.jsonl").write_text("{")
    with pytest.raises(ValueError, match="not JSON lines"):
        FolderData(path=tmp_path, size=8).open()


DEEP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1021  # up to 64323: 8 bits would merge none, and round all


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_read_without_loss(tmp_path: Path, name: str, channels: int) -> None:
    path = tmp_path / name
    np.save(path, DEEP) if name == "a.npy" else Image.fromarray(DEEP).save(path)
    part = FolderData(path=tmp_path, size=8, channels=channels, held_out=0).open()
    assert part.channels == channels
    images = loader.batch(part, 0, [0]).images  # what a network is shown
    assert images.shape == (1, channels, 8, 8)
    again = ((images[0].double() + 1) / 2 * 65535).round()
    assert np.array_equal(again[-1].numpy().astype(np.uint16), DEEP)


def test_pictures_of_8_and_16_bits_go_together(tmp_path: Path) -> None:
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "b.png")
    part = FolderData(path=tmp_path, size=8, channels=1, held_out=0).open()
    assert [part.image(k).dtype for k in (0, 1)] == [torch.float32, torch.uint8]
    images = loader.batch(part, 0, [0, 1]).images
    assert sorted(images.flatten(1).amax(1).tolist()) == pytest.approx([64323 / 32767.5 - 1, 1.0])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_arrays_of_any_channels(tmp_path: Path, kind: type, channels: int) -> None:
    full = {np.uint8: 255, np.uint16: 65535}.get(kind, 1)
    array = (np.linspace(0, 1, 12 * 10 * channels).reshape(12, 10, channels) * full).astype(kind)
    np.save(tmp_path / "a.npy", array)
    part = FolderData(path=tmp_path, size=10, channels=channels, held_out=0).open()
    images = loader.batch(part, 0, [0]).images
    assert images.shape == (1, channels, 10, 10)
    expected = torch.from_numpy(array[1:11].astype(np.float64) / full).permute(2, 0, 1) * 2 - 1
    torch.testing.assert_close(images[0].double(), expected, atol=1e-6, rtol=0)
    assert loader.preview(part, count=1).mode == "RGB"


@pytest.mark.parametrize("name", ["a.png", "a.npy", "b.npy"])
def test_transparency_is_kept_in_4_channels_and_over_white_in_3(tmp_path: Path, name: str) -> None:
    colour = np.full((8, 8, 4), (200, 0, 0, 51), np.uint8)
    if name == "a.png":
        Image.fromarray(colour).save(tmp_path / name)
    else:
        np.save(tmp_path / name, colour if name == "a.npy" else colour.astype(np.uint16) * 257)
    with_alpha = FolderData(path=tmp_path, size=8, channels=4, held_out=0).open().image(0)
    assert with_alpha[:, 4, 4].tolist() == pytest.approx([200, 0, 0, 51], abs=0.01)
    small = FolderData(path=tmp_path, size=4, channels=4, held_out=0).open().image(0)
    assert small[:, 2, 2].tolist() == pytest.approx([200, 0, 0, 51], abs=0.01)
    over = FolderData(path=tmp_path, size=8, channels=3, held_out=0).open().image(0)
    assert over[:, 4, 4].tolist() == pytest.approx([244, 204, 204], abs=1)
    gray = FolderData(path=tmp_path, size=8, channels=1, held_out=0).open().image(0)
    assert gray[:, 4, 4].tolist() == pytest.approx([0.299 * 244 + 0.701 * 204], abs=1)


def test_colour_and_gray_become_what_is_asked_for(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", "red", (8, 8))
    for channels, seen in ((1, [76]), (3, [255, 0, 0]), (4, [255, 0, 0, 255])):
        part = FolderData(path=tmp_path, size=8, channels=channels, held_out=0).open()
        assert part.image(0)[:, 0, 0].tolist() == seen


@pytest.mark.parametrize(
    ("array", "channels", "words"),
    [
        (np.zeros((8, 8, 6), np.uint8), 3, r"a\.npy has 6 channels and 3 are asked for; ask for 6"),
        (np.zeros((8, 8, 3), np.uint8), 5, r"has 3 channels and 5 are asked for; ask for 3"),
        (np.zeros((8, 8), np.int64), 1, "holds int64 values; save uint8, uint16, or floats"),
        (np.full((8, 8), 2.0), 1, "holds float64 values"),
        (np.full((8, 8), np.nan), 1, "holds float64 values"),
        (np.zeros((2, 8, 8, 3), np.uint8), 3, r"has shape \(2, 8, 8, 3\)"),
        (np.array([None]), 3, "cannot be read as an array"),
    ],
)
def test_arrays_that_are_no_pictures_say_why(tmp_path: Path, array: Any, channels: int, words: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=words):
        FolderData(path=tmp_path, size=8, channels=channels).open()


def test_picture_files_of_other_channels_say_what_to_do(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"a\.png is a picture of 1, 3 or 4 channels and 5 are asked for; use \.npy arrays"
    ):
        FolderData(path=tmp_path, size=8, channels=5).open()


def test_gray_of_16_bits_is_white_where_it_is_transparent(tmp_path: Path) -> None:
    array = np.array([[0, 30_000], [40_000, 30_000]], np.uint16)
    Image.fromarray(array).save(tmp_path / "a.png", transparency=30_000)
    expected = np.where(array == 30_000, 255, array / 257)
    np.testing.assert_allclose(image.pixels(tmp_path / "a.png", 1)[:, :, 0], expected, rtol=1e-6)
    assert np.array(image.read(tmp_path / "a.png"))[:, :, 0].tolist() == (expected + 0.5).astype(np.uint8).tolist()
    clear = image.pixels(tmp_path / "a.png", 4)
    assert clear[:, :, 3].tolist() == [[255, 0], [255, 0]]
    with Image.open(tmp_path / "a.png") as opened:  # of a mask it says where, not what is seen
        np.testing.assert_allclose(pictures.mask(opened, "picture")[0].numpy(), array / 65535, rtol=1e-6)
