"""Buckets of equal shape: pictures of any shape are shown whole, or nearly, and each equally often."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data import contact, loader
from sfumato.data.base import Data, Part
from sfumato.data.buckets import BucketsConfig, Steps, alike, nearest

SIDES = [(96, 64)] * 5 + [(64, 96)] * 7 + [(64, 64)] * 9  # widths and heights


def quarters(wide: int, high: int, mode: str = "RGB") -> Image.Image:
    """A picture whose four quarters are of four colours, or class numbers."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)] if mode == "RGB" else [1, 2, 3, 4]
    shown = Image.new(mode, (wide, high))
    for k, colour in enumerate(colours):
        left, top = k % 2 * wide // 2, k // 2 * high // 2
        shown.paste(colour, (left, top, left + wide // 2, top + high // 2))  # type: ignore[arg-type]
    return shown


def album(path: Path, sides: "list[tuple[int, int]]" = SIDES, maps: bool = False) -> Path:
    """A folder of such pictures of these sides, each with a caption, a box and perhaps a map."""
    (path / "maps").mkdir(parents=True)
    rows = []
    for k, (wide, high) in enumerate(sides):
        shown = quarters(wide, high)
        middle = (wide // 2 - 8, high // 2 - 8, wide // 2 + 8, high // 2 + 8)
        shown.paste((12 * k, 255 - 12 * k, 6 * k), middle)  # no two are alike
        shown.save(path / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "text": f"number {k}", "boxes": [["a", 0.5, 0.5, 1.0, 1.0]]})
        if maps:
            quarters(wide, high, "L").save(path / "maps" / f"{k}.png")
            rows[-1]["map"] = f"maps/{k}.png"
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def opened(path: Path, part: str = "train", **data: Any) -> Part:
    fields = {"kind": "folder", "path": str(path), "size": 32, "buckets": {"least": 2}, "held_out": 0, **data}
    return Data.model_validate(fields).open(part)


def test_shapes_have_the_pixels_of_the_square_and_no_more() -> None:
    found = BucketsConfig(step=64).shapes(512)
    assert found == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    for size, step, longest in ((512, 64, 4.0), (64, None, 2.0), (96, 8, 1.0), (48, 16, 3.0)):
        shapes = BucketsConfig(step=step, longest=longest).shapes(size)
        assert (size, size) in shapes
        for high, wide in shapes:
            assert high % (step or size // 8) == wide % (step or size // 8) == 0
            assert high * wide <= size**2
            assert max(high, wide) <= longest * min(high, wide)
            assert (wide, high) in shapes
    assert BucketsConfig().shapes(100)[0][0] % 10 == 0  # 12 does not divide it
    with pytest.raises(ValueError, match=r"buckets.step 48 does not divide data.size 64"):
        BucketsConfig(step=48).shapes(64)


def test_pictures_are_in_the_nearest_shape_that_enough_others_have() -> None:
    config = BucketsConfig(step=64, least=3)
    wide, square, high = (384, 640), (512, 512), (640, 384)
    sides = [(3000, 2000)] * 3 + [(1000, 1010)] * 4 + [(2000, 3000)] * 3
    assert config.assigned(512, sides) == [wide] * 3 + [square] * 4 + [high] * 3
    assert config.assigned(512, sides[1:]) == [square] * 6 + [high] * 3  # two are too few
    assert config.assigned(512, [(9000, 100), (100, 100), (100, 100)]) == [square] * 3  # none has enough
    assert nearest([square, wide, high], (9000, 100)) == wide
    several = [(3000, 2000)] * 20 + [(2000, 3000)] * 100 + [(1000, 1000)] * 2
    assert config.assigned(512, several)[-1] == high  # as near as the wide one, and more common


def test_each_step_is_of_one_shape_and_every_family_is_shown_equally_often() -> None:
    shapes = [(4, 8)] * 3 + [(8, 4)] * 11 + [(6, 6)] * 6
    steps, batch = Steps(shapes, 4), 4
    for period in range(2):
        begin = period * len(shapes) * batch
        shown = [steps.family(7, begin + k) for k in range(len(shapes) * batch)]
        assert Counter(shown) == dict.fromkeys(range(len(shapes)), batch)
        assert all(len({shapes[f] for f in shown[k : k + batch]}) == 1 for k in range(0, len(shown), batch))
    for some in alike(shapes).values():  # nobody twice before all have been there
        own = [f for k in range(400) if (f := steps.family(7, k)) in some]
        for k in range(0, len(own) - len(some), len(some)):
            assert sorted(own[k : k + len(some)]) == some
    first, second = ([f for k in range(p, p + 80) if (f := steps.family(7, k)) in (0, 1, 2)] for p in (0, 80))
    assert first != second  # a period goes on where the one before ended
    again, other = Steps(shapes, 4), [steps.family(8, k) for k in range(80)]
    assert [again.family(7, k) for k in (79, 3, 40)] == [steps.family(7, k) for k in (79, 3, 40)]
    assert other != [steps.family(7, k) for k in range(80)]


def test_pictures_maps_and_boxes_are_shown_in_one_shape(tmp_path: Path) -> None:
    part = opened(album(tmp_path, maps=True))
    assert part.shapes is not None
    assert Counter(part.shapes) == {(24, 40): 5, (40, 24): 7, (32, 32): 9}
    for k in range(len(part)):
        high, wide = part.shapes[k]
        picture = part.image(k)
        assert picture.shape == (3, high, wide)
        assert picture[:, high // 4, wide // 4].tolist() == [255, 0, 0]
        assert picture[:, high - 2, wide - 2].tolist() == [255, 255, 0]
        numbers = part.field(k, "map")
        assert abs(numbers.shape[0] * wide - numbers.shape[1] * high) <= wide  # to the pixel
        h, w = numbers.shape
        assert [numbers[0, 0], numbers[0, -1], numbers[-1, 0], numbers[-1, -1]] == [1, 2, 3, 4]
        assert abs(int((numbers[0] == 1).sum()) - w // 2) <= 1
        assert abs(int((numbers[:, 0] == 1).sum()) - h // 2) <= 1
        (box,) = part.field(k, "boxes")
        assert box[1:] == pytest.approx((0.5, 0.5, 1.0, 1.0), abs=0.01)
    assert part.fingerprint != opened(tmp_path, buckets=None).fingerprint


def test_both_parts_are_of_the_same_shapes(tmp_path: Path) -> None:
    """Of three wide pictures one is held out; alone it would be too few."""
    path = album(tmp_path, [(96, 64)] * 20 + [(64, 64)] * 20)
    train, apart = (opened(path, part, held_out=0.4, buckets={"least": 15}) for part in ("train", "held_out"))
    assert set(train.shapes or ()) | set(apart.shapes or ()) == {(24, 40), (32, 32)}


def test_the_sheet_shows_shapes_and_says_how_many_there_are_of_each(tmp_path: Path) -> None:
    part = opened(album(tmp_path))
    told = dict(contact.facts(part))
    assert told["shapes"] == "32x32 9, 24x40 7, 40x24 5"
    assert "square" not in told.get("converted", "")
    plan = loader.plan(part, 0, range(8))
    sheet = np.asarray(contact.sheet(part, count=8)).astype(int)
    for k, index in enumerate(plan.indices):
        high, wide = (part.shapes or [])[index]
        cell = sheet[: contact.CELL, k * (contact.CELL + 4) :][:, : contact.CELL]
        filled = (cell != 255).any(-1)
        share = high / wide
        assert filled.any(1).sum() == pytest.approx(min(share, 1) * contact.CELL, abs=2)
        assert filled.any(0).sum() == pytest.approx(min(1 / share, 1) * contact.CELL, abs=2)


def test_what_does_not_go_with_shapes_is_refused(tmp_path: Path) -> None:
    path = album(tmp_path / "a")
    with pytest.raises(ValueError, match="choose one, crops=1 or buckets=null"):
        opened(path, crops=4)
    small = album(tmp_path / "b", [(64, 64)] * 3)
    rows = [json.loads(line) for line in (small / "metadata.jsonl").read_text().splitlines()]
    (small / "pairs").mkdir()
    for row in rows:
        quarters(32, 32).save(small / "pairs" / row["file_name"])
        row["pair"] = f"pairs/{row['file_name']}"
    (small / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert opened(small, buckets=None).image(0).shape == (3, 32, 32)
    with pytest.raises(ValueError, match=r"the pair of 0.png is smaller than it.*leave data.buckets out"):
        opened(small)


def test_squares_are_as_they_were(tmp_path: Path) -> None:
    """The way by shapes and the way without agree where every shape is the square."""
    path = album(tmp_path, [(64, 64), (70, 64), (64, 90), (33, 47)], maps=True)
    one, other = opened(path, buckets={"longest": 1.0, "least": 1}), opened(path, buckets=None)
    for k in range(4):
        assert torch.equal(one.image(k), other.image(k))
        assert np.array_equal(one.field(k, "map"), other.field(k, "map"))
        assert one.field(k, "boxes") == other.field(k, "boxes")
