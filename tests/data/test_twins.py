"""Near-duplicates are found whatever their size, quality and brightness, and pictures that differ are left apart."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import twins
from sfumato.data.base import Data


def picture(seed: int, size: int = 64) -> Image.Image:
    """Some soft blotches."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def jpeg(shown: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def look(shown: Image.Image) -> tuple[int, int]:
    return twins.signature(np.asarray(shown))


def test_copies_are_one_group_and_others_are_their_own() -> None:
    several, owner = [], []
    for k in range(60):
        whole = picture(k)
        copies = [whole, jpeg(whole, 50), whole.resize((48, 48)), whole.point(lambda v: int(v * 0.9)), picture(k, 128)]
        several += [look(c) for c in copies]
        owner += [k] * len(copies)
    found = twins.groups(several)
    assert len(set(found)) == 60
    assert all(found[i] == found[5 * owner[i]] for i in range(len(found)))


def test_plain_pictures_are_nobodys_twins() -> None:
    assert twins.groups([look(Image.new("RGB", (32, 32), c)) for c in ("red", "blue", "red")]) == [0, 1, 2]
    assert twins.groups([]) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_split_keeps_twins_on_one_side(tmp_path: Path, seed: int) -> None:
    for k in range(30):
        whole = picture(100 * seed + k)
        whole.save(tmp_path / f"{k:02}-a.png")
        jpeg(whole, 60).save(tmp_path / f"{k:02}-b.jpg", quality=60)
    data = Data.model_validate({"kind": "folder", "path": str(tmp_path), "held_out": 0.4, "size": 16})
    sides = [{str(data.open(part).fields(k)["name"])[:2] for k in range(len(data.open(part)))} for part in data.parts]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 30
