"""The contact sheet shows what the network sees, and the table says what was found and what was changed."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms, ImageFont

from sfumato.data import contact
from sfumato.data.base import Data
from sfumato.image import Stored


def png16(values: "np.ndarray[Any, Any]") -> bytes:
    """A PNG of 16 bits in colour (H, W, 3 or 4), which Pillow does not write."""
    high, wide, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", wide, high, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_boxes_and_maps_are_drawn_where_they_are(tmp_path: Path) -> None:
    rows = []
    for k in range(8):
        picture = Image.new("RGB", (64, 64), "white")
        picture.putpixel((0, 0), (k, 0, 0))
        picture.save(tmp_path / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "text": f"white {k}", "boxes": [["a", 0.25, 0.25, 0.75, 0.75]]})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = Data.model_validate({"kind": "folder", "path": str(tmp_path), "size": 64, "held_out": 0.3}).open()
    whole = np.array(contact.sheet(part, count=4)).astype(int)
    red = (whole[:, :, 0] > 200) & (whole[:, :, 1] < 80)
    assert red[32, 40:90].all()
    assert red[95, 40:90].all()
    assert not red[64, 50:80].any()
    told = dict(contact.facts(part))
    assert told["boxes"] == "100 % (a)"
    assert told["caption"] == "100 %"


def test_names_of_boxes_are_whole_and_on_no_other(tmp_path: Path) -> None:
    boxes = [["a long name", 0.8, 0.2, 1.0, 0.5], ["another one", 0.75, 0.2, 1.0, 0.8]]
    rows = [{"file_name": f"{k}.png", "boxes": boxes} for k in range(4)]
    for k in range(4):
        Image.new("RGB", (64, 64), (0, 0, 40 * k)).save(tmp_path / f"{k}.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = Data.model_validate({"kind": "folder", "path": str(tmp_path), "size": 64, "held_out": 0.3}).open()
    cell = np.array(contact.sheet(part, count=1)).astype(int)[:128, :128]
    font = ImageFont.load_default(10)
    wide = [font.getlength(name) + 2 for name, *_ in boxes]
    white = cell.min(2) > 240
    assert white.sum() > 0.6 * contact.PLATE * sum(wide)  # the rest is ink: no name hides another, none is cut off
    assert white[:, : round(128 - max(wide))].sum() == 0  # and none stands further left than it must


def test_what_is_changed_on_the_way_is_counted(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((8, 12), np.uint16)).save(tmp_path / "b.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 8)).save(tmp_path / "c.jpg", exif=exif)
    several = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    several[0].save(tmp_path / "d.gif", save_all=True, append_images=several[1:])
    found = contact.conversions(sorted(tmp_path.iterdir()))
    assert found == {
        "transparent, seen over white": 1,
        "of more than 8 bits, which are kept": 1,
        "cut to their centred square": 1,
        "turned as EXIF says": 1,
        "first frame of an animation": 1,
    }


def test_depth_that_is_lost_and_profiles_that_change_colours_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png16(np.full((8, 8, 3), 30_000)))
    (tmp_path / "b.png").write_bytes(png16(np.full((8, 8, 4), 65_535)))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, blue = srgb.index(b"rXYZ"), srgb.index(b"bXYZ")
    other = bytearray(srgb)
    other[red : red + 4], other[blue : blue + 4] = b"bXYZ", b"rXYZ"
    for name, profile in (("c.png", srgb), ("d.png", bytes(other)), ("e.png", b"no profile")):
        Image.new("RGB", (8, 8)).save(tmp_path / name, icc_profile=profile)
    assert contact.conversions(sorted(tmp_path.iterdir())) == {
        "colour or transparency of 16 bits, cut to 8": 2,
        "transparent, seen over white": 1,
        "from another colour profile to sRGB": 1,
    }


def stored(name: str, shown: Image.Image, format: str = "PNG", **options: Any) -> Stored:
    content = io.BytesIO()
    shown.save(content, format, **options)
    return Stored(content.getvalue(), name)


def test_pictures_in_the_bytes_of_a_table_are_counted_too(tmp_path: Path) -> None:
    exif, array = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    np.save(array, np.zeros((8, 12), np.uint8))
    gray = Image.fromarray(np.zeros((8, 8), np.uint16))
    several = [
        stored("row 0", Image.new("RGBA", (8, 8))),
        stored("row 1", gray),
        stored("row 2", Image.new("RGB", (8, 8)), "JPEG", exif=exif),
        Stored(png16(np.full((8, 8, 3), 30_000)), "row 3"),
        stored("row 4", Image.new("RGB", (8, 12))),
        Stored(array.getvalue(), "row 5"),
        Stored(b"no picture", "row 6"),
    ]
    expected = {
        "transparent, seen over white": 1,
        "of more than 8 bits, which are kept": 1,
        "turned as EXIF says": 1,
        "colour or transparency of 16 bits, cut to 8": 1,
        "cut to their centred square": 1,
        "damaged, where training would stop": 1,
    }
    assert contact.conversions([*several, *several]) == expected
    images = [one.content for one in several[:6]]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    fields = {"kind": "table", "path": str(tmp_path / "a.parquet"), "size": 8, "held_out": 0, "cache": str(tmp_path)}
    told = dict(contact.facts(Data.model_validate({**fields, "channels": 1}).open()))["converted"]
    assert "turned as EXIF says: 1" in told
    assert "transparent, seen over white: 1" in told


def test_of_a_large_data_set_some_files_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(9):
        Image.effect_noise((20 + k, 16), 90).save(tmp_path / f"{k}.png")
    part = Data.model_validate({"kind": "folder", "path": str(tmp_path), "size": 16, "held_out": 0}).open()
    assert dict(contact.facts(part))["converted"] == "cut to their centred square: 9"
    monkeypatch.setattr(contact, "LOOKED", 4)
    told = dict(contact.facts(part))["converted"]
    assert told == "cut to their centred square: 3 (of 3 that were looked at)"


def test_long_captions_are_wrapped_and_short_ones_are_not() -> None:
    font = ImageFont.load_default(11)
    assert contact.wrapped("a red apple", 128, font) == ["a red apple"]
    assert contact.wrapped("", 128, font) == []
    lines = contact.wrapped("a red apple left of a dog face on a\ngraded ground", 128, font)
    assert len(lines) == contact.LINES
    assert " ".join(lines).startswith("a red apple left of a dog face")
    assert lines[1].split()[0] in ("left", "of", "a", "dog", "face", "on")  # words stay whole
    assert all(font.getlength(line) <= 128 for line in lines)
    long = contact.wrapped("word " * 80, 128, font)
    assert long[-1].endswith("…")
    assert font.getlength(long[-1]) <= 128
    solid = contact.wrapped("x" * 400, 128, font)
    assert len(solid) == contact.LINES
    assert all(font.getlength(line) <= 128 for line in solid)
    assert contact.wrapped("a red apple left of a dog face on a graded ground", 400, font) == [
        "a red apple left of a dog face on a graded ground"
    ]


def test_a_second_line_of_words_is_drawn(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
    lines = []
    for words in ("a dog", "a dog " * 9):
        (tmp_path / "a.txt").write_text(words)
        part = Data.model_validate({"kind": "folder", "path": str(tmp_path), "size": 8, "held_out": 0}).open()
        below = np.asarray(contact.sheet(part, count=1).convert("L"))[contact.CELL :]
        lines.append([int((below[k : k + contact.LINE] < 200).sum()) for k in (2, 2 + contact.LINE)])
    assert lines[0][1] == 0 < lines[0][0]
    assert lines[1][1] > 20


def test_classes_have_their_own_colours() -> None:
    colours = contact.hues(np.arange(30)[None])
    assert len({tuple(c) for c in colours[0].tolist()}) == 30


def test_what_is_made_of_a_picture_is_drawn_beside_it(tmp_path: Path) -> None:
    rows = []
    (tmp_path / "other").mkdir()
    for k in range(6):
        array = np.full((32, 32, 3), 250, np.uint8)
        array[:, :16] = (0, 40 * k, 200)
        Image.fromarray(array).save(tmp_path / f"{k}.png")
        Image.new("RGB", (32, 32), "green").save(tmp_path / "other" / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "pair": f"other/{k}.png", "label": ["a", "b"] if k else "c"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = {"degrade": {"factor": 8}, "masks": {"strokes": 0, "borders": 0, "all": 0}}
    data = Data.model_validate({"kind": "folder", "path": str(tmp_path), "size": 32, "held_out": 0, **more})
    part = data.open()
    whole = np.array(contact.sheet(part, count=5, flip=1.0)).astype(int)
    picture, pair, lowres, masked = (whole[:128, left : left + 128] for left in (0, 130, 260, 390))
    assert (pair == [0, 128, 0]).all()
    assert not (lowres == picture).all()
    assert np.abs(lowres - picture).mean() < 30  # mirrored as the picture is
    hole = (np.abs(masked - 127) <= 1).all(-1)
    assert 0.02 < hole.mean() < 0.7
    assert (masked == picture)[~hole].all()
    told = dict(contact.facts(part))
    assert told["made as they are shown"] == "lowres, masked"
    assert told["classes"] == "3: a 5, b 5, c 1"


def test_pictures_that_look_alike_are_told(tmp_path: Path) -> None:
    for k in range(6):
        small = np.random.default_rng(k).integers(0, 256, (7, 7, 3), dtype=np.uint8)
        shown = Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)
        shown.save(tmp_path / f"{k}.png")
        if k < 2:
            shown.resize((48, 48)).save(tmp_path / f"{k}-small.png")
    data = Data.model_validate({"kind": "folder", "path": str(tmp_path), "size": 16, "held_out": 0.3})
    told = dict(contact.facts(data.open()))["look alike"]
    assert told == "4 pictures in 2 groups, such as 0-small.png and 0.png; each group is on one side of the split"
    assert "look alike" not in dict(contact.facts(data.open("held_out")))
    for name in ("0", "0-small", "1", "1-small", "2", "3"):
        to = tmp_path / "apart" / ("val" if name in ("0", "3") else "train")
        to.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.png").rename(to / f"{name}.png")
    data = Data.model_validate({"kind": "folder", "path": str(tmp_path / "apart"), "size": 16})
    told = dict(contact.facts(data.open()))["look alike"]
    assert told.endswith("such as train/0-small.png and val/0.png; groups on both sides of the split: 1")


def test_what_is_changed_of_maps_and_pairs_is_told_apart(tmp_path: Path) -> None:
    rows = []
    for k in range(3):
        Image.effect_noise((16, 16), 90 + k).convert("RGBA").save(tmp_path / f"{k}.png")
        (tmp_path / "more").mkdir(exist_ok=True)
        Image.new("LA", (16, 16), (k, 255)).convert("RGBA").save(tmp_path / "more" / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "map": f"more/{k}.png", "pair": f"more/{k}.png"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = {"classes": ["a", "b", "c"], "palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2]]}
    (tmp_path / "classes.json").write_text(json.dumps(names))
    fields = {"kind": "folder", "path": str(tmp_path), "size": 16, "held_out": 0}
    told = dict(contact.facts(Data.model_validate(fields).open()))
    assert told["converted"] == told["converted, pair"] == "transparent, seen over white: 3"
    assert told["converted, map"] == "transparent, read as if it were not: 3"
    clear = dict(contact.facts(Data.model_validate({**fields, "channels": 4}).open()))
    assert "converted" not in clear  # four channels keep it
