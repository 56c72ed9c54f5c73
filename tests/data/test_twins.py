"""Near-duplicates are found whatever their size, quality and brightness, and pictures that differ are left apart."""

import hashlib
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


def digest(name: object) -> str:
    return hashlib.blake2b(str(name).encode(), digest_size=16).hexdigest()


@pytest.mark.parametrize("most", [1, 2, 5, 40])
def test_groups_of_any_size_are_held_out_at_the_asked_share(most: int) -> None:
    numbers = [k // most for k in range(4000 * most)]
    digests = [digest(k) for k in range(len(numbers))]
    sides = twins.deciding(digests, numbers)
    out = [number for number, one in zip(numbers, sides, strict=True) if int(one[:16], 16) < 0.05 * 2**64]
    assert len(out) % most == 0  # whole groups
    assert 0.035 < len(out) / len(numbers) < 0.065
    turned = twins.deciding(digests[::-1], numbers[::-1])
    assert turned[::-1] == sides
    more = twins.deciding([*digests, digest("new")], [*numbers, 1 << 30])
    assert more[:-1] == sides  # others move none across
    if most == 1:
        assert sides == digests  # pictures that look like no other stay where they were
        assert twins.deciding([*digests, digests[7]], [*numbers, 7])[7] == digests[7]  # and so do equal files


def test_bursts_do_not_fill_what_is_held_out(tmp_path: Path) -> None:
    for burst in range(12):
        whole = picture(burst)
        for k in range(6):
            whole.resize((48 + k, 48)).save(tmp_path / f"{burst}-{k}.png")
    held_out = Data.model_validate({"kind": "folder", "path": str(tmp_path), "held_out": 0.15, "size": 16}).open(
        "held_out"
    )
    assert len(held_out) % 6 == 0
    assert len(held_out) <= 24
