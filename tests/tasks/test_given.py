"""What users hand in: masks of any depth, and pictures of any mode as they are seen."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.conditioning import pictures
from sfumato.tasks import given
from sfumato.tasks.hole import hole
from sfumato.tasks.requests import Inpaint, Vary
from tests.data.test_contact import png16

RAMP = np.array([[0, 300, 32768], [65535, 257, 65000]], np.uint16)


def reads(channels: int) -> Any:
    """What of a model says how many channels its pictures have."""
    return SimpleNamespace(codec=SimpleNamespace(image_channels=channels))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_masks_of_16_bits_keep_their_softness(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    expected = torch.from_numpy(RAMP.astype(np.float32) / 65535)[None]
    torch.testing.assert_close(given.mask(tmp_path / name, (2, 3)), expected)
    for value in (Image.fromarray(RAMP), Image.fromarray(RAMP.astype(np.int32)), RAMP):
        torch.testing.assert_close(pictures.mask(value, "picture"), expected)
    soft = Image.fromarray((RAMP // 257).astype(np.uint8))
    torch.testing.assert_close(given.mask(soft, (2, 3)), torch.from_numpy(np.array(soft) / 255).float()[None])


def test_masks_of_floats_and_of_another_size_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 3), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="is a picture of floats: save it gray"):
        given.mask(tmp_path / "a.tif", (2, 3))
    with pytest.raises(ValueError, match="the mask is 3x2 and the picture 4x4"):
        given.mask(Image.fromarray(RAMP), (4, 4))


def test_a_mask_that_hides_nothing_says_by_its_colour() -> None:
    for mode, black, gray in (("RGBA", (0, 0, 0, 255), (128, 128, 128, 255)), ("LA", (0, 255), (128, 255))):
        assert not bool(given.mask(Image.new(mode, (3, 2), black), (2, 3)).any())
        assert given.mask(Image.new(mode, (3, 2), gray), (2, 3)).unique().tolist() == pytest.approx([128 / 255])
    part = Image.new("RGBA", (3, 2), (0, 0, 0, 255))
    part.putpixel((0, 0), (0, 0, 0, 0))
    assert given.mask(part, (2, 3))[0].tolist() == [[0, 1, 1], [1, 1, 1]]


def painted(size: int = 8) -> "np.ndarray[Any, Any]":
    """(H, W), 1 in a hole."""
    found = np.zeros((size, size), np.uint8)
    found[2:5, 1:6] = 1
    return found


def test_strokes_on_an_empty_layer_are_the_hole_whatever_their_colour_and_what_lies_under_the_layer() -> None:
    marks = painted()
    for colours in (
        [(255, 0, 0)],
        [(0, 0, 0)],
        [(90, 200, 10)],
        [(255, 0, 0), (0, 0, 255)],
        [(200, 30, 30), (199, 30, 31)],
    ):
        layer = np.zeros((8, 8, 4), np.uint8)
        layer[marks == 1] = [(*colours[k % len(colours)], 255) for k in range(int(marks.sum()))]
        assert np.array_equal(given.mask(Image.fromarray(layer, "RGBA"), (8, 8))[0].numpy(), marks)
    layer[2, 1] = (255, 1, 0, 100)  # a soft edge
    assert given.mask(Image.fromarray(layer, "RGBA"), (8, 8))[0, 2, 1] == pytest.approx(100 / 255)


def test_of_a_photograph_with_a_part_erased_that_part_is_the_hole() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    photo[..., 3] = 255 * (1 - painted())
    found, said = hole(Image.fromarray(photo, "RGBA"), False)
    assert np.array_equal(found[0].numpy(), painted())
    assert said == ["a picture with transparent parts: these are the hole"]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_of_a_gray_photograph_with_a_part_erased_that_part_is_the_hole_too(mode: str) -> None:
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)[None].repeat(32, 0)
    erased = np.zeros((32, 32), np.uint8)
    erased[8:20, 4:16] = 1
    photo = Image.fromarray(np.stack([ramp, 255 * (1 - erased)], 2), "LA").convert(mode)
    found, said = hole(photo, False)
    assert np.array_equal(found[0].numpy(), erased)
    assert said == ["a picture with transparent parts: these are the hole"]


def test_gray_masks_with_transparent_parts_are_seen_over_black() -> None:
    layer = np.full((8, 8, 2), 255, np.uint8)
    layer[..., 0] *= painted()
    layer[0, 0] = (255, 0)
    assert np.array_equal(given.mask(Image.fromarray(layer, "LA"), (8, 8))[0].numpy(), painted())


@pytest.mark.parametrize("kind", ["0 and 1", "0 and 1 of 16 bits", "8 bits in 16", "0 and 255 in 32"])
def test_numbers_of_a_smaller_range_are_whole_holes(kind: str) -> None:
    marks = painted()
    array = {
        "0 and 1": marks, "0 and 1 of 16 bits": marks.astype(np.uint16), "8 bits in 16": 255 * marks.astype(np.uint16),
        "0 and 255 in 32": 255 * marks.astype(np.int32),
    }[kind]  # fmt: skip
    assert np.array_equal(given.mask(Image.fromarray(array), (8, 8))[0].numpy(), marks)


def test_marks_in_colour_are_the_hole_as_palettes_of_data_sets_have_them() -> None:
    shown = Image.fromarray(painted(), "P")
    shown.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
    assert np.array_equal(given.mask(shown, (8, 8))[0].numpy(), painted())
    assert np.array_equal(given.mask(shown.convert("RGB"), (8, 8))[0].numpy(), painted())
    gray = Image.fromarray(np.full((8, 8), 100, np.uint8)).convert("RGB")
    assert given.mask(gray, (8, 8)).unique().tolist() == pytest.approx([100 / 255])


def test_a_lossless_webp_keeps_its_softness(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 9, np.uint8)).convert("RGB").save(tmp_path / "a.webp", lossless=True)
    assert given.mask(tmp_path / "a.webp", (8, 8)).unique().tolist() == pytest.approx([9 / 255])


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_masks_leave_no_fringe(tmp_path: Path, suffix: str) -> None:
    marks = np.kron(painted(), np.ones((8, 8), np.uint8))
    Image.fromarray(255 * marks).convert("RGB").save(tmp_path / f"a.{suffix}", quality=80)
    found = given.mask(tmp_path / f"a.{suffix}", (64, 64))[0].numpy()
    assert (found[marks == 1] > 0.5).all()
    assert (found == 0).sum() > 0.95 * (marks == 0).sum()


def test_a_mask_is_turned_as_its_picture_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter right
    Image.fromarray(np.array([[255, 0, 0], [0, 0, 0]], np.uint8)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        for value in (tmp_path / "a.png", opened):
            assert given.mask(value, (3, 2))[0].tolist() == [[0, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("opened", [False, True])
def test_pictures_of_every_mode_are_read_as_they_are_seen(tmp_path: Path, channels: int, opened: bool) -> None:
    def read(shown: Image.Image, name: str, **more: Any) -> "np.ndarray[Any, Any]":
        shown.save(tmp_path / name, **more)
        if not opened:
            found = given.picture(reads(channels), tmp_path / name)
        else:
            with Image.open(tmp_path / name) as file:
                found = given.picture(reads(channels), file)
        assert found.shape == (channels, 4, 4)
        return ((found + 1) * 127.5).numpy()[:, 0, 0]

    gray = np.full((4, 4), 40_000, np.uint16)
    assert read(Image.fromarray(gray), "a.png") == pytest.approx([40_000 / 257] * channels, abs=1e-3)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert read(clear, "b.png") == pytest.approx([255] * channels, abs=1e-3)
    assert read(Image.new("RGBA", (4, 4), (0, 0, 0, 51)), "c.png") == pytest.approx([204] * channels, abs=1)
    assert read(clear.convert("LA"), "d.png") == pytest.approx([255] * channels, abs=1e-3)
    first, second = Image.new("RGB", (4, 4), "white"), Image.new("RGB", (4, 4), "black")
    assert read(first, "e.gif", save_all=True, append_images=[second]) == pytest.approx([255] * channels, abs=1e-3)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 90, 90, 90] + [0] * 762)
    assert read(palette, "f.png") == pytest.approx([90] * channels, abs=1)
    assert read(palette, "g.png", transparency=1) == pytest.approx([255] * channels, abs=1)


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="picture is 0x4: there is nothing in it"):
        given.picture(reads(3), Image.new("RGB", (0, 4)))


def test_an_opened_picture_that_is_cut_short_is_a_sentence_as_its_path_is(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 80).save(path)
    path.write_bytes(path.read_bytes()[:900])
    for read in (
        lambda cut: given.picture(reads(3), cut),
        lambda cut: given.opened(cut, "map"),
        lambda cut: given.mask(cut, (64, 64)),
        lambda cut: pictures.mask(cut, "masked"),
        lambda cut: pictures.classes(cut, "map"),
    ):
        with Image.open(path) as cut, pytest.raises(ValueError, match=r"cut\.png cannot be read as a picture"):
            read(cut)
    with Image.open(path) as cut, Image.open(path) as other:
        assert given.converted(Inpaint(picture=cut, mask=other), 3) == []  # the task says it


@pytest.mark.parametrize("opened", [False, True])
def test_colour_of_16_bits_is_told_of_paths_and_of_opened_pictures(tmp_path: Path, opened: bool) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(png16(np.full((8, 8, 3), 30_000, np.uint16)))
    with Image.open(path) as picture:
        assert given.converted(Vary(picture=picture if opened else path), 3) == [
            (str(path), "colour or transparency of 16 bits, cut to 8")
        ]


def test_a_mask_that_nobody_sees_is_told(tmp_path: Path) -> None:
    shown = Image.new("L", (8, 8))
    shown.putpixel((0, 0), 3)
    assert "nowhere lighter than 3 of 255" in " ".join(hole(shown, False)[1])
    shown.putpixel((0, 0), 1)
    assert hole(shown, False)[1] == ["of 0 and 1: 1 is the hole"]
