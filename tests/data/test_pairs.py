"""Pairs: found beside `images`, cut at the same place as their pictures, and smaller ones at their own scale."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data import loader
from sfumato.data.base import Data
from sfumato.data.folder import FolderPart
from sfumato.data.frame import Frame


def opened(path: Path, **more: Any) -> FolderPart:
    found = Data.model_validate({"kind": "folder", "path": str(path), "held_out": 0, **more}).open()
    assert isinstance(found, FolderPart)
    return found


def blocks(k: int, width: int, height: int) -> Image.Image:
    """A small picture of noise."""
    return Image.fromarray(np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pairs(root: Path, ratio: int, width: int = 30, height: int = 20, more: int = 0) -> Path:
    """Pictures in `images`, each `ratio` times larger than its pair, every pixel of which it repeats."""
    for name in ("images", "pairs"):
        (root / name / "a").mkdir(parents=True)
    for k in range(3):
        small = blocks(k, width, height)
        small.save(root / "pairs" / "a" / f"{k}.png")
        large = small.resize((width * ratio + more, height * ratio), Image.Resampling.NEAREST)
        large.save(root / "images" / "a" / f"{k}.png")
    return root


@pytest.mark.parametrize("ratio", [2, 4])
def test_a_smaller_pair_keeps_its_scale_and_its_place(tmp_path: Path, ratio: int) -> None:
    root = pairs(tmp_path, ratio)
    # the whole shorter side: nothing is resized, so that the pair's pixels are the picture's blocks
    part = opened(root, size=20 * ratio, crops=5, closest=1.0)
    for k in range(len(part)):
        pair = part.fields(k)["pair"]
        assert pair.shape == (3, 20, 20)
        assert torch.equal(part.image(k), pair.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2))
    assert len({part.fields(k)["pair"].numpy().tobytes() for k in range(len(part))}) > 8


def test_a_smaller_pair_is_made_smaller_as_its_picture_is(tmp_path: Path) -> None:
    part = opened(pairs(tmp_path, 2), size=16)
    assert part.fields(0)["pair"].shape == (3, 8, 8)
    assert opened(tmp_path, size=15).fields(0)["pair"].shape == (3, 15, 15)  # which has no half
    batch = loader.batch(part, 0, range(3))
    assert [pair.shape[-1] for pair in batch.fields["pair"]] == [8, 8, 8]


def test_a_pair_of_no_whole_ratio_has_the_size_of_its_picture(tmp_path: Path) -> None:
    assert opened(pairs(tmp_path, 2, more=1), size=16).fields(0)["pair"].shape == (3, 16, 16)
    larger = pairs(tmp_path / "larger", 2)
    (larger / "images").rename(larger / "kept")
    (larger / "pairs").rename(larger / "images")
    (larger / "kept").rename(larger / "pairs")
    assert opened(larger, size=16).fields(0)["pair"].shape == (3, 16, 16)


def test_a_map_and_boxes_are_cut_with_the_pair(tmp_path: Path) -> None:
    root = pairs(tmp_path, 4)
    rows = []
    (root / "maps" / "a").mkdir(parents=True)
    for k in range(3):
        x = np.arange(120) // 4  # the map says which column of the pair it is
        Image.fromarray(np.tile(x, (80, 1)).astype(np.uint8)).save(root / "maps" / "a" / f"{k}.png")
        pixels = np.asarray(Image.open(root / "pairs" / "a" / f"{k}.png")).copy()
        pixels[:, :, 0] = np.arange(30)
        Image.fromarray(pixels).save(root / "pairs" / "a" / f"{k}.png")
        rows.append({"file_name": f"images/a/{k}.png", "text": "noise", "boxes": [["left", 0, 0, 0.5, 1]]})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = opened(root, size=80, crops=6, closest=1.0)
    for k in range(len(part)):
        fields = part.fields(k)
        assert np.array_equal(fields["map"][0], fields["pair"][0, 0].repeat_interleave(4).numpy())
        edge = [x1 for _, _, _, x1, _ in fields["boxes"]]
        shown = float((fields["map"][0] < 15).mean())
        assert edge == pytest.approx([shown] if shown > 0.1 else [], abs=1e-6)
        assert fields["caption"] == ["noise"]


def test_pairs_of_parts_and_missing_ones(tmp_path: Path) -> None:
    for part in ("train2017", "val2017"):
        for name in ("images", "pairs"):
            (tmp_path / name / part).mkdir(parents=True)
            blocks(len(part), 16, 16).save(tmp_path / name / part / "1.png")
    part = opened(tmp_path, size=16)
    assert (len(part), part.labels) == (1, ())
    assert torch.equal(part.image(0), part.fields(0)["pair"])
    blocks(3, 16, 16).save(tmp_path / "images" / "train2017" / "2.png")
    with pytest.raises(ValueError, match=r"pairs/train2017 has no pair for images/train2017/2\.png"):
        opened(tmp_path, size=16)
    alone = pairs(tmp_path / "alone", 1)
    (alone / "pairs" / "a" / "1.png").rename(alone / "pairs" / "a" / "[1]*.jpeg")
    (alone / "images" / "a" / "1.png").rename(alone / "images" / "a" / "[1]*.png")
    assert all("pair" in opened(alone, size=16).fields(k) for k in range(3))


def test_a_stepped_frame_lies_on_the_grid_and_in_the_picture() -> None:
    for k in range(40):
        rng = np.random.default_rng(k)
        wide, high, step = (int(n) for n in (4 * rng.integers(5, 50), 4 * rng.integers(5, 50), rng.choice([1, 2, 4])))
        side = rng.uniform(0.3, 1) * min(wide, high)
        left, top = rng.uniform(0, wide - side), rng.uniform(0, high - side)
        found = Frame(left / wide, top / high, side / wide, side / high).stepped(wide, high, step)
        large, small = found.square(wide, high), found.square(wide // step, high // step)
        assert large == tuple(step * n for n in small)
        assert large[0] + large[2] <= wide
        assert large[1] + large[2] <= high
        assert abs(large[2] - side) <= step + 1
