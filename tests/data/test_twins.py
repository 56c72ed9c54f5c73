"""Near-duplicates are found whatever their size, quality and brightness, and pictures that differ are left apart."""

import hashlib
import io
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

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


def look(shown: Image.Image) -> twins.Looks:
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


def test_mirrored_pictures_are_twins_in_either_order() -> None:
    several = [picture(k) for k in range(40)]
    turned = [jpeg(ImageOps.mirror(shown), 70) for shown in several]
    for order in (several + turned, turned + several):
        assert twins.groups([look(shown) for shown in order]) == [*range(40), *range(40)]
    upside = [ImageOps.flip(shown) for shown in several]  # which training never does
    assert len(set(twins.groups([look(shown) for shown in several + upside]))) == 80
    ramp = Image.linear_gradient("L").rotate(90)  # whose mirror image has no bit set
    plain = [look(Image.new("L", (32, 32), v)) for v in (0, 99)]
    assert twins.groups([look(ramp), look(ImageOps.mirror(ramp)), *plain]) == [0, 0, 2, 3]


def test_things_on_one_sloping_ground_are_not_twins() -> None:
    """Most bits of such pictures are the ground's, whatever stands where: bits alone took 2,298 of 6,000 for copies."""
    y, x = np.mgrid[0:64, 0:64]
    several = []
    for k in range(36):
        ground, (top, left) = 250 - 0.2 * x - 0.1 * y, (9 * (k // 6), 9 * (k % 6))
        ground[top : top + 16, left : left + 16] = 90
        several.append(Image.fromarray(np.repeat(ground[..., None], 3, 2).astype(np.uint8)))
    assert twins.groups([look(shown) for shown in (*several, *several)]) == [*range(36), *range(36)]


@pytest.mark.parametrize("contrast", [3.0, 40.0])
def test_pictures_of_little_contrast_are_twins_of_their_copies(contrast: float) -> None:
    several = []
    for k in range(30):
        pixels = np.asarray(picture(k).convert("L"), np.float32)[..., None] / 255
        several += [7.2 + contrast * pixels, 7.7 + contrast * pixels]  # deeper than 8 bits, one a little lighter
    found = twins.groups([twins.signature(pixels) for pixels in several])
    assert found[::2] == found[1::2]
    assert len(set(found)) == 30


def compared(words: "np.ndarray[tuple[int, int], np.dtype[np.uint64]]", small: Sequence[int]) -> list[int]:
    """The groups by comparing one pair after the other."""
    kept = [np.frombuffer(one.to_bytes(81, "big"), np.uint8).reshape(9, 9).astype(float) for one in small]
    number = list(range(len(words)))
    for a in range(len(words)):
        for b in range(a):
            pairs = ((words[a, :2], words[b, :2]), (words[a, :2], words[b, 2:]), (words[a, 2:], words[b, :2]))
            turned = kept[b][:, ::-1]
            like = [np.corrcoef(kept[a].ravel(), o.ravel())[0, 1] >= twins.LIKE for o in (kept[b], turned, turned)]
            near = [x.any() and y.any() and int(np.bitwise_count(x ^ y).sum()) <= twins.NEAR for x, y in pairs]
            if any(n and one for n, one in zip(near, like, strict=True)):
                low, high = sorted((number[a], number[b]))
                number = [low if n == high else n for n in number]
    return number


def test_blocks_find_what_comparing_pair_by_pair_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "ROWS", 7)
    monkeypatch.setattr(twins, "COLUMNS", 11)
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**63, (90, 4), dtype=np.uint64)
    words[::13] = 0
    for k in range(60):  # chains of near ones, some of them mirrored, some a little too far
        a, b = rng.integers(0, 90, 2)
        words[a] = words[b] if k % 3 else words[b][[2, 3, 0, 1]]
        for _ in range(int(rng.integers(0, 13))):
            words[a, rng.integers(4)] ^= np.uint64(1) << np.uint64(rng.integers(64))
    kinds = rng.integers(0, 256, (2, 9, 9), dtype=np.uint8)  # what some of the near ones do not share
    kinds[0] = np.maximum(kinds[0], kinds[0][:, ::-1])  # and one that is its own mirror image
    small = [int.from_bytes(kinds[int(rng.random() < 0.3)].tobytes(), "big") for _ in words]
    found = twins.groups([(int(a), int(b), int(c), int(d), s) for (a, b, c, d), s in zip(words, small, strict=True)])
    assert found == compared(words, small)
    assert 20 < len(set(found)) < 85
    same = twins.groups([(int(a), int(b), int(c), int(d), small[0]) for a, b, c, d in words])
    assert len(set(same)) < len(set(found))


def test_comparing_takes_no_memory_that_grows_with_the_square() -> None:
    words = np.random.default_rng(0).integers(0, 2**63, (10_000, 4), dtype=np.uint64)
    signatures = [(int(a), int(b), int(c), int(d), k) for k, (a, b, c, d) in enumerate(words)]
    tracemalloc.start()
    try:
        assert len(set(twins.groups(signatures))) == 10_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20  # 1024 rows at once would be 160


def test_many_that_share_their_bits_and_no_more_take_no_memory_of_their_square() -> None:
    rng, near = np.random.default_rng(0), (3 << 40, 5, 9, 3 << 20)
    signatures = [(*near, int.from_bytes(rng.bytes(81), "big")) for _ in range(3000)]
    tracemalloc.start()
    try:
        assert len(set(twins.groups(signatures))) == 3000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 << 20  # miniatures of all pairs would be 2.9 GB


@pytest.mark.parametrize("seed", range(4))
def test_a_split_keeps_twins_on_one_side(tmp_path: Path, seed: int) -> None:
    for k in range(30):
        whole = picture(100 * seed + k)
        whole.save(tmp_path / f"{k:02}-a.png")
        jpeg(ImageOps.mirror(whole) if k % 2 else whole, 60).save(tmp_path / f"{k:02}-b.jpg", quality=60)
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
