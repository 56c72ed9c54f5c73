"""Holes drawn on the fly: of the asked size, of every kind, and functions of their draws alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F

from sfumato import streams
from sfumato.conditioning import pictures
from sfumato.data import contact, loader, masks
from sfumato.data.base import Data
from sfumato.data.masks import MasksConfig


def draws(k: int) -> np.random.Generator:
    return streams.generator(0, "test", k)


@given(st.integers(0, 10_000), st.integers(24, 96), st.integers(24, 96))
def test_a_hole_is_as_large_as_was_asked(seed: int, height: int, width: int) -> None:
    config = MasksConfig(least=0.1, most=0.5, all=0)
    mask = config.mask(height, width, draws(seed))
    assert mask.shape == (height, width)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert 0.1 <= float(mask.mean()) <= 0.5


@pytest.mark.parametrize("kind", [masks.strokes, masks.boxes, masks.borders])
def test_every_kind_leaves_something_and_takes_something(kind: object) -> None:
    shares = [float(kind(64, 48, draws(k)).mean()) for k in range(100)]  # type: ignore[operator]
    assert all(share > 0 for share in shares)
    assert sum(share < 1 for share in shares) > 95
    assert np.std(shares) > 0.05


def test_kinds_are_what_they_are_called() -> None:
    for k in range(20):
        border = MasksConfig(strokes=0, boxes=0, borders=1, all=0).mask(40, 40, draws(k))
        ring = torch.cat([border[0], border[-1], border[:, 0], border[:, -1]])
        assert bool(ring.any())
        inside = border[20 - 2 : 20 + 2, 20 - 2 : 20 + 2]
        assert float(inside.mean()) < 1
        rows, columns = border.mean(1) == 1, border.mean(0) == 1  # whole ones, from an edge on, and nothing else
        assert torch.equal(border, (rows[:, None] | columns[None]).float())
        for flat in (rows, columns):  # from an edge on
            assert bool(flat[0] or flat[-1] or not flat.any())
            assert int(flat.int().diff().abs().sum()) <= 2
        box = MasksConfig(strokes=0, boxes=1, borders=0, most=1, all=0).mask(40, 40, draws(k))
        assert all(len(row.diff().nonzero()) <= 8 for row in box)  # four boxes have eight edges


def pieces(mask: torch.Tensor) -> int:
    """The number of parts that hang together of a mask (H, W)."""
    numbers = torch.arange(1.0, mask.numel() + 1).reshape(mask.shape) * mask
    while True:
        wider = F.max_pool2d(numbers[None], 3, 1, 1)[0] * mask
        if torch.equal(wider, numbers):
            return len(np.unique(numbers)) - 1
        numbers = wider


def test_strokes_are_up_to_four_bent_lines_of_a_thick_brush() -> None:
    fills, kinds, parts = [], [], []
    for k in range(40):
        stroke = torch.from_numpy(masks.strokes(64, 64, draws(k))).float()
        rows, columns = stroke.any(1).nonzero().flatten(), stroke.any(0).nonzero().flatten()
        fills.append(float(stroke.sum() / ((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))))
        kinds.append(len(np.unique(stroke, axis=0)))
        parts.append(pieces(stroke))
        thin = -F.max_pool2d(-stroke[None], 3, 1, 1)  # a line of one or two pixels leaves nothing
        assert float((F.max_pool2d(thin, 3, 1, 1)[0] * stroke).sum() / stroke.sum()) > 0.9
    assert max(fills) < 0.9
    assert np.median(fills) < 0.5
    assert sum(part <= 4 for part in parts) > 35  # some leave the picture and come back
    assert sum(kind > 9 for kind in kinds) > 35  # four boxes have nine kinds of rows at most


def test_now_and_then_all_is_a_hole_as_a_window_of_outpainting_sees_it() -> None:
    config = MasksConfig(all=0.25, most=0.5)  # of a weight of 1.25
    found = [float(config.mask(24, 24, draws(k)).mean()) for k in range(400)]
    assert abs(sum(share == 1 for share in found) / 400 - 0.2) < 0.06
    assert all(share <= 0.5 for share in found if share < 1)


def test_a_weight_of_nothing_and_a_reversed_range_are_refused() -> None:
    with pytest.raises(ValidationError, match="no kind of mask"):
        MasksConfig(strokes=0, boxes=0, borders=0)
    with pytest.raises(ValidationError, match="smallest hole"):
        MasksConfig(least=0.7, most=0.6)


def test_an_example_has_another_hole_each_time_it_is_shown_and_always_the_same_there() -> None:
    part = Data.model_validate({"kind": "emoji", "size": 16, "masks": {}}).open("train")
    one, two = part.told(3, 0, 10)["masked"], part.told(3, 0, 11)["masked"]
    assert torch.equal(one[0], part.image(3))
    assert not torch.equal(one[1], two[1])
    assert torch.equal(one[1], part.told(3, 0, 10)["masked"][1])
    assert not torch.equal(one[1], part.told(3, 1, 10)["masked"][1])
    assert torch.equal(part.told(3)["masked"][1], part.told(3, 0, 3)["masked"][1])
    plan = loader.plan(part, 0, range(7, 12))
    for k, value in zip(plan.indices, plan.fields["masked"], strict=True):
        assert torch.equal(value[0], part.image(k))
    assert "masked" not in part.fields(3)


def deep(path: Path, name: str, values: "np.ndarray[tuple[int, int], np.dtype[np.uint16]]") -> None:
    """A gray picture of 16 bits, as a PNG or an array of floats."""
    np.save(path / name, values / 65535) if name.endswith(".npy") else Image.fromarray(values).save(path / name)


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_deep_pictures_and_pairs_are_given_as_conditions_read_them(tmp_path: Path, suffix: str) -> None:
    rows = []
    (tmp_path / "other").mkdir()
    for k in range(4):
        values = np.random.default_rng(k).integers(0, 65536, (16, 16), dtype=np.uint16)
        deep(tmp_path, f"{k}.{suffix}", values)
        deep(tmp_path / "other", f"{k}.{suffix}", 65535 - values)
        rows.append({"file_name": f"{k}.{suffix}", "pair": f"other/{k}.{suffix}"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields = {"kind": "folder", "path": str(tmp_path), "size": 16, "channels": 1, "held_out": 0, "masks": {}}
    part = Data.model_validate(fields).open()
    batch = loader.batch(part, 0, range(4))
    for shown, (whole, _), pair in zip(batch.images, batch.fields["masked"], batch.fields["pair"], strict=True):
        assert torch.equal(pictures.picture(whole, 1, "masked"), shown)
        assert torch.allclose(pictures.picture(pair, 1, "pair"), -shown, atol=1e-4)
    sheet = np.asarray(contact.sheet(part, count=1).convert("L")).astype(int)
    assert np.abs(sheet[:128, :128] + sheet[:128, 130:258] - 255).max() <= 1  # the pair is the picture's negative
