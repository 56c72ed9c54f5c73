"""Maps, boxes and pairs of a folder: read from every form, cut as the picture is cut, refused with a sentence."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.conditioning.boxes import Boxes, BoxesConfig
from sfumato.conditioning.frame import FrameConfig
from sfumato.conditioning.map import MapConfig
from sfumato.data import beside, frame, loader
from sfumato.data.base import Data
from sfumato.data.folder import FolderPart
from sfumato.data.frame import Frame, centred


def opened(path: Path, part: str = "train", **more: Any) -> FolderPart:
    found = Data.model_validate({"kind": "folder", "path": str(path), "held_out": 0.3, **more}).open(part)
    assert isinstance(found, FolderPart)
    return found


def noise(path: Path, width: int = 32, height: int = 32, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)
    return path


def halves(width: int, height: int) -> "np.ndarray[Any, Any]":
    """A map: class 1 on the left half, 2 on the right."""
    numbers = np.ones((height, width), np.uint8)
    numbers[:, width // 2 :] = 2
    return numbers


def rows(folder: Path, several: list[dict[str, Any]]) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, several)))


def test_a_map_of_numbers_is_cut_as_its_picture_is_and_never_mixed(tmp_path: Path) -> None:
    several = []
    for k in range(8):
        noise(tmp_path / f"{k}.png", 64, 32, k)
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(halves(64, 32)).save(tmp_path / "maps" / f"{k}.png")
        several.append({"file_name": f"{k}.png", "map": f"maps/{k}.png"})
    rows(tmp_path, several)
    (tmp_path / "classes.json").write_text('{"classes": ["none", "left", "right"]}')
    part = opened(tmp_path, size=16)
    found = part.fields(0)["map"]
    assert found.shape == (32, 32)  # its own values: a conditioner tells the shares of a place
    assert set(found[:, :16].flatten()) == {1}
    assert set(found[:, 16:].flatten()) == {2}
    assert part.class_names == {"map": ("none", "left", "right")}


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_maps_with_palettes_and_in_colour_hold_the_same_numbers(tmp_path: Path, mode: str) -> None:
    palette = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    for k in range(8):
        noise(tmp_path / "images" / f"{k}.jpg", 32, 32, k)
        (tmp_path / "maps").mkdir(exist_ok=True)
        numbers = halves(32, 32)
        shown = Image.fromarray(numbers, "P") if mode == "P" else Image.fromarray(np.array(palette, np.uint8)[numbers])
        if mode == "P":
            shown.putpalette([c for colour in palette for c in colour] + [0] * 759)
        shown.save(tmp_path / "maps" / f"{k}.png")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"], "palette": palette}))
    part = opened(tmp_path, size=32)
    assert part.palettes["map"] == tuple(map(tuple, palette))
    config, _ = MapConfig().learn([], part.class_names["map"])
    reader = config.coloured(part.palettes["map"]).build({})
    assert np.array_equal(reader.value(shown.convert("RGB")).numpy(), halves(32, 32))
    assert np.array_equal(part.fields(0)["map"], halves(32, 32))
    assert "label" not in part.fields(0)
    # what a class is called, and which colour it has, is what a run learns
    for other in (["a", "c", "b"], palette), (["a", "b", "c"], [palette[k] for k in (0, 2, 1)]):
        (tmp_path / "classes.json").write_text(json.dumps(dict(zip(("classes", "palette"), other, strict=True))))
        assert opened(tmp_path, size=32).fingerprint != part.fingerprint


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ('{"classes": ["a"], "palette": [[1, 2, 3]]}', "does not know"),
        ('{"classes": ["a", "b"], "palette": [[1, 2, 3]]}', "do not fit"),
        ('{"classes": ["a", "b"]}', "as `palette`"),
        ("[1, 2]", "do not fit"),
    ],
)
def test_maps_that_do_not_fit_their_classes_say_so(tmp_path: Path, classes: str, words: str) -> None:
    noise(tmp_path / "images" / "a.png")
    noise(tmp_path / "images" / "b.png", seed=1)
    for name in "ab":
        noise(tmp_path / "maps" / f"{name}.png", seed=2)
    (tmp_path / "classes.json").write_text(classes)
    with pytest.raises(ValueError, match=words):
        opened(tmp_path, size=32).fields(0)


def indexed(values: "np.ndarray[Any, Any]", palette: list[list[int]]) -> Image.Image:
    """A map with a palette of its own."""
    shown = Image.fromarray(values.astype(np.uint8), "L").copy()
    shown.putpalette([v for colour in palette for v in colour])
    return shown


def test_a_palette_in_another_order_permutes_no_classes(tmp_path: Path) -> None:
    palette = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    known = beside.Classes(("a", "b", "c"), tuple((r, g, b) for r, g, b in palette))
    values = halves(32, 32)
    there = {
        "kept.png": indexed(values, palette),
        "turned.png": indexed(2 - values, palette[::-1]),  # as an editor saves it
        "strange.png": indexed(values, [[9, 9, 9], [1, 2, 3], [255, 0, 0]]),  # other colours: its numbers are meant
        "unused.png": indexed(values, [*palette, [7, 7, 7]]),
    }
    for name, shown in there.items():
        shown.save(tmp_path / name)
        with Image.open(tmp_path / name) as back:
            assert back.mode == "P"
        assert np.array_equal(beside.numbers(tmp_path / name, centred(32, 32), (32, 32), known), values), name
    turned = beside.numbers(tmp_path / "turned.png", centred(32, 32), (32, 32), beside.NO_CLASSES)
    assert np.array_equal(turned, 2 - values)  # nothing tells its colours
    reader = MapConfig(classes=3, palette=known.palette).build({})
    assert np.array_equal(reader.value(there["turned.png"]).numpy(), values)
    left = indexed(np.where(values == 1, 1, 2), [[9, 9, 9], palette[2], [1, 2, 3]])
    left.save(tmp_path / "left.png")  # of its left half alone all colours are known
    part = Frame(0, 0, 0.5, 0.5)
    assert set(beside.numbers(tmp_path / "left.png", part, (16, 16), known).flatten()) == {1}


def test_a_picture_without_its_map_or_a_row_with_a_missing_file_is_named(tmp_path: Path) -> None:
    noise(tmp_path / "images" / "a.png")
    noise(tmp_path / "maps" / "b.png")
    with pytest.raises(ValueError, match=r"no map for images/a.png"):
        opened(tmp_path)
    noise(tmp_path / "other" / "a.png")
    rows(tmp_path / "other", [{"file_name": "a.png", "map": "nowhere.png"}])
    with pytest.raises(ValueError, match=r"line 1: there is no file .*nowhere.png"):
        opened(tmp_path / "other")


COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 32}, {"id": 8, "file_name": "b.png", "width": 32, "height": 32}],
    "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
    "annotations": [
        {"image_id": 7, "category_id": 3, "bbox": [16, 0, 16, 16]},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 15, 30]},  # outside of the centred square
        {"image_id": 7, "category_id": 1, "bbox": [40, 8, 40, 8]},  # over the picture's edge
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 64, 32], "iscrowd": 1},
        {"image_id": 7, "caption": " a dog "},
    ],
}  # fmt: skip


def test_boxes_of_coco_are_cut_as_the_picture_is(tmp_path: Path) -> None:
    noise(tmp_path / "train" / "a.png", 64, 32)
    noise(tmp_path / "train" / "b.png", seed=1)
    noise(tmp_path / "val" / "c.png", seed=2)
    (tmp_path / "train" / "annotations.json").write_text(json.dumps(COCO))
    part = opened(tmp_path, size=16)
    found = part.fields(0)
    assert found["caption"] == ["a dog"]
    assert found["boxes"] == [("dog", 0.0, 0.0, 0.5, 0.5), ("cat", 0.75, 0.25, 1.0, 0.5)]
    assert part.fields(1)["boxes"] == []
    assert part.class_names["boxes"] == ("cat", "dog")  # by their numbers
    config, _ = BoxesConfig(width=8, heads=2).learn([], part.class_names["boxes"])
    assert Boxes(config).read(found["boxes"])[0][0] == 1


def coco(names: list[str], **more: Any) -> str:
    """A file of COCO's form: pictures of 32 pixels, each with one box whose class is its name."""
    return json.dumps({
        "images": [{"id": k, "file_name": name, "width": 32, "height": 32, **more} for k, name in enumerate(names)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": [{"image_id": k, "category_id": k, "bbox": [0, 0, 16, 16]} for k, _ in enumerate(names)],
    })  # fmt: skip


def classes(part: FolderPart) -> dict[str, list[str]]:
    """The classes of the boxes of each picture, by its name; none of those without boxes."""
    several = [part.fields(k) for k in range(len(part))]
    return {f["name"]: [box[0] for box in f["boxes"]] for f in several if "boxes" in f}


def test_boxes_of_coco_go_to_the_picture_of_their_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for k, name in enumerate(("a/1", "b/1", "a/2", "b/3", "c/3")):
        noise(tmp_path / "train" / f"{name}.png", seed=k)
    noise(tmp_path / "val" / "9.png", seed=9)
    table = tmp_path / "train" / "annotations.json"
    table.write_text(coco(["b/1.png"]))
    assert classes(opened(tmp_path)) == {"train/b/1.png": ["b/1.png"]}
    table.write_text(coco(["b/1.png", "2.png", "3.png", "train/a/1.png", "c\\3.png"]))
    with caplog.at_level(logging.WARNING):
        found = classes(opened(tmp_path))
        classes(opened(tmp_path))
    assert found == {
        "train/a/1.png": ["train/a/1.png"],
        "train/a/2.png": ["2.png"],
        "train/b/1.png": ["b/1.png"],
        "train/b/3.png": ["3.png"],
        "train/c/3.png": ["c\\3.png"],
    }
    table.write_text(coco(["1.png", "3.png", "2.png"]))
    with caplog.at_level(logging.WARNING):
        assert classes(opened(tmp_path)) == {"train/a/2.png": ["2.png"]}
        opened(tmp_path)
    assert caplog.text.count("annotations of 4 pictures are not read") == 1
    assert "the first: a/1.png" in caplog.text


def test_boxes_of_coco_that_are_cut_or_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise(tmp_path / "a.png", 32, 32)
    noise(tmp_path / "b.png", 32, 32, 1)
    boxes = [[0, 0, 8, 8], [28, 0, 9, 8], [31.5, 0, 1, 8], [40, 0, 8, 8], [8, 8, -8, 8], [8, 8, 0, 8], [-9, 0, 9, 8]]
    whole = json.loads(coco(["a.png", "b.png"]))
    whole["annotations"] = [{"image_id": 0, "category_id": 0, "bbox": box} for box in boxes]
    (tmp_path / "annotations.json").write_text(json.dumps(whole))
    with caplog.at_level(logging.WARNING):
        parts = [opened(tmp_path, part) for part in ("train", "held_out")]
    assert sum(len(p.fields(0)["boxes"]) for p in parts) == 3
    told = "of 7 annotations 2 are empty or reversed and left out, 2 lie outside their picture and are left out, 1 reach beyond"
    assert caplog.text.count(told) == 1


def test_annotations_of_another_shape_leave_their_picture_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for k, name in enumerate(("a", "b", "c", "d")):
        noise(tmp_path / f"{name}.png", 64, 32, k)
    with Image.open(noise(tmp_path / "d.png", 64, 32, 3)) as picture:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(tmp_path / "d.png", exif=exif)
    table = tmp_path / "annotations.json"
    table.write_text(coco([f"{name}.png" for name in "abcd"], width=128, height=64))  # shares, so another size does
    with caplog.at_level(logging.WARNING):
        names = [e.name for part in ("train", "held_out") for e in opened(tmp_path, part).entries]
    assert sorted(names) == ["a.png", "b.png", "c.png"]
    assert "1 of 4 pictures" in caplog.text
    assert "d.png is 32x64 and its COCO annotation 128x64, which is another shape" in caplog.text


@pytest.mark.parametrize("field", ["map", "pair"])
def test_maps_and_pairs_of_another_shape_leave_their_picture_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    several = []
    (tmp_path / "other").mkdir()
    for k in range(6):
        noise(tmp_path / f"{k}.png", 65, 33, k)
        wide, high = ((32, 16), (64, 33), (130, 66), (65, 33), (32, 32), (33, 65))[k]
        Image.new("L", (wide, high)).save(tmp_path / "other" / f"{k}.png")
        several.append({"file_name": f"{k}.png", field: f"other/{k}.png"})
    rows(tmp_path, several)
    with caplog.at_level(logging.WARNING):
        names = [e.name for part in ("train", "held_out") for e in opened(tmp_path, part).entries]
    assert sorted(names) == ["0.png", "1.png", "2.png", "3.png"]
    assert "2 of 6 pictures" in caplog.text
    assert "4.png is 32x32 and its picture" in caplog.text
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (33, 65)).save(tmp_path / "other" / "4.png", exif=exif)  # seen, it is 65x33
    names = [e.name for part in ("train", "held_out") for e in opened(tmp_path, part).entries]
    assert "4.png" in names


def test_a_turned_map_is_read_as_it_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(halves(32, 32)).save(tmp_path / "a.png", exif=exif)
    found = beside.numbers(tmp_path / "a.png", centred(32, 32), (32, 32), beside.NO_CLASSES)
    assert np.array_equal(found, halves(32, 32)[:, ::-1])


def test_maps_of_large_numbers_and_of_floats_are_refused(tmp_path: Path) -> None:
    for name, values in (("a.png", np.uint16(300)), ("b.tif", np.int32(-1)), ("c.tif", np.int32(70_000))):
        Image.fromarray(np.full((8, 8), values)).save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} holds class numbers .* go from 0 to 255"):
            beside.numbers(tmp_path / name, centred(8, 8), (8, 8), beside.NO_CLASSES)
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "d.png")
    assert (beside.numbers(tmp_path / "d.png", centred(8, 8), (8, 8), beside.NO_CLASSES) == 200).all()
    Image.fromarray(np.full((8, 8), 1.0, np.float32)).save(tmp_path / "e.tif")
    with pytest.raises(ValueError, match=r"e\.tif holds floats"):
        beside.numbers(tmp_path / "e.tif", centred(8, 8), (8, 8), beside.NO_CLASSES)


def test_boxes_in_rows_have_both_forms_and_a_file_that_is_no_coco_says_so(tmp_path: Path) -> None:
    for k in range(6):
        noise(tmp_path / f"{k}.png", seed=k)
    box = {"label": "cat", "box": [0.1, 0.2, 0.5, 0.9]}
    rows(tmp_path, [{"file_name": f"{k}.png", "boxes": [box, ["dog", 0, 0, 1, 1]]} for k in range(6)])
    part = opened(tmp_path)
    assert part.fields(0)["boxes"] == [("cat", 0.1, 0.2, 0.5, 0.9), ("dog", 0, 0, 1, 1)]
    assert part.class_names["boxes"] == ("cat", "dog")
    rows(tmp_path, [{"file_name": "0.png", "boxes": [["dog", 0.5, 0, 0.1, 1]]}])
    with pytest.raises(ValueError, match=r"line 1: the corners of 'dog'"):
        opened(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "annotations.json").write_text('{"images": 3}')
    with pytest.raises(ValueError, match="not of COCO's form"):
        opened(tmp_path)


def test_a_pair_is_cut_as_its_picture_is(tmp_path: Path) -> None:
    several = []
    for k in range(6):
        noise(tmp_path / f"{k}.png", 48, 32, k)
        with Image.open(tmp_path / f"{k}.png") as picture:
            (tmp_path / "gray").mkdir(exist_ok=True)
            picture.point(lambda v: 255 - v).save(tmp_path / "gray" / f"{k}.png")
        several.append({"file_name": f"{k}.png", "pair": f"gray/{k}.png"})
    rows(tmp_path, several)
    part = opened(tmp_path, size=32, crops=3)
    for index in range(len(part)):
        assert int((part.image(index).int() + part.fields(index)["pair"].int() - 255).abs().max()) <= 1


def test_crops_show_other_squares_of_the_training_pictures_with_their_boxes(tmp_path: Path) -> None:
    for k in range(6):
        array = np.zeros((40, 60, 3), np.uint8)
        array[10:20, 30:40] = 255  # one white square, and its box
        array[0, 0] = k
        Image.fromarray(array).save(tmp_path / f"{k}.png")
    box = [30 / 60, 10 / 40, 40 / 60, 20 / 40]
    rows(tmp_path, [{"file_name": f"{k}.png", "boxes": [{"label": "white", "box": box}]} for k in range(6)])
    plain, part = opened(tmp_path, size=64, crops=1), opened(tmp_path, size=64, crops=8)
    assert len(part) == 8 * len(plain)
    assert torch.equal(part.image(8), plain.image(1))
    assert len({part.image(k).numpy().tobytes() for k in range(8)}) == 8
    assert torch.equal(part.image(3), opened(tmp_path, size=64, crops=8).image(3))
    seen = 0
    for k in range(len(part)):
        white = part.image(k)[0] > 127
        for _, x0, y0, x1, y1 in part.fields(k)["boxes"]:
            inside = white[round(64 * y0) : round(64 * y1), round(64 * x0) : round(64 * x1)]
            assert float(inside.float().mean()) > 0.85
            assert float(inside.sum()) > 0.7 * float(white.sum())
            seen += 1
    assert seen > 4 * len(plain)
    drawn = {loader.draw(part, 0, p) % 8 for p in range(64)}
    assert len(drawn) == 8
    assert len(opened(tmp_path, "held_out", size=64, crops=8).families[0]) == 1
    assert part.fingerprint != plain.fingerprint != opened(tmp_path, size=64, crops=8, closest=0.7).fingerprint


def test_a_crop_is_told_as_it_is_shown_and_mirrored(tmp_path: Path) -> None:
    wide, high, size = 96, 64, 16
    x, y = np.meshgrid(np.arange(wide), np.arange(high))
    whole = np.stack([2 * x, 2 * y, np.zeros_like(x)], -1).astype(np.uint8)  # each pixel says where it is
    for k in range(3):
        whole[:, :, 2] = k
        Image.fromarray(whole).save(tmp_path / f"{k}.png")
    part, reader = opened(tmp_path, size=size, crops=4, closest=0.4, held_out=0), FrameConfig(width=8).build({})
    batch = loader.batch(part, 0, range(24), flip=0.5)
    flips = loader.plan(part, 0, range(24), flip=0.5).flips
    assert {k % 4 for k in batch.indices} == {0, 1, 2, 3}
    assert len(set(flips)) == 2
    for shown, told, flipped in zip(batch.images, batch.fields["frame"], flips, strict=True):
        across, down = ((shown[:2] + 1) * 127.5 / 2 + 0.5).unbind()  # in pixels of the picture
        middle, top = float(across.mean()), float(down.mean())
        side = abs(float(across[8, -1] - across[8, 0])) * size / (size - 1)
        expected = [(middle - wide / 2) / high, (top - high / 2) / high, side / high]
        x, y, share, turned = reader.mirrored(told) if flipped else told
        expected[0] *= -1 if flipped else 1
        assert (x, y, share) == pytest.approx(expected, abs=0.03)
        assert turned == flipped == bool(across[8, -1] < across[8, 0])
    assert len(set(batch.fields["frame"])) == 10  # three crops of three pictures, and whole ones


def test_a_frame_keeps_what_it_shows_a_tenth_of() -> None:
    whole = centred(60, 40)
    assert whole == Frame(10 / 60, 0, 40 / 60, 1)
    assert whole.spots([("a", 0, 0, 0.2, 1)])[0][1:] == pytest.approx((0, 0, 0.05, 1))
    assert whole.spots([("a", 0, 0, 0.18, 1)]) == []
    for number in range(50):
        one = frame.drawn(60, 40, "name", number, 0.5)
        assert 0 <= one.left <= one.left + one.width <= 1 + 1e-9
        assert 0 <= one.top <= one.top + one.height <= 1 + 1e-9
        assert one.cut(np.zeros((40, 60))).shape[0] == one.cut(np.zeros((40, 60))).shape[1] >= 20


def test_maps_that_are_larger_than_their_pictures_keep_what_lies_in_a_pixel(tmp_path: Path) -> None:
    lines = np.zeros((128, 128), np.uint8)
    lines[:, ::8] = 1  # which every eighth pixel alone would tell, or none
    Image.fromarray(lines).save(tmp_path / "a.png")
    found = beside.numbers(tmp_path / "a.png", centred(128, 128), (16, 16), beside.NO_CLASSES)
    assert found.shape == (128, 128)
    shares = MapConfig(classes=2).build({}).planes(found, (16, 16))
    assert shares[1].unique().tolist() == [0.125]
    for size, side in ((8, 64), (64, 128), (256, 256)):
        assert beside.numbers(tmp_path / "a.png", centred(128, 128), (size, size), beside.NO_CLASSES).shape == (
            side,
            side,
        )


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"1": "road", "0": "sky"}, ("sky", "road")),
        ({"0": "sky", "2": "road"}, None),
        ("abc", None),
        ({"sky": 0}, None),
    ],
)
def test_classes_by_number_are_in_its_order(said: Any, names: tuple[str, ...] | None, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps({"classes": said}), encoding="utf-8-sig")
    if names is None:
        with pytest.raises(ValueError, match="a colour a class"):
            beside.classes(tmp_path)
    else:
        assert beside.classes(tmp_path).names == names
