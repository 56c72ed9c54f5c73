"""Pictures come in as a person sees them and go out rounded."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from sfumato import image
from sfumato.data.contact import changes
from sfumato.shape import fitted


def test_8_bit_values_survive_a_round_trip_and_are_rounded() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(image.to_uint8(values.float() / 127.5 - 1), values)
    assert int(image.to_uint8(torch.tensor(1 / 127.5 - 1 - 0.003))) == 1  # 0.62 rounds up; truncation would give 0
    assert image.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4), "black")
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter right
    picture.save(tmp_path / "a.png", exif=exif)
    read = image.read(tmp_path / "a.png")
    assert read.size == (4, 8)
    assert read.getpixel((3, 0)) == (255, 0, 0)


def test_large_jpegs_are_read_at_a_fraction(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((1600, 1200)).convert("RGB").save(tmp_path / "a.jpg")
    small = image.read(tmp_path / "a.jpg", least=128)
    assert small.size == (200, 150)
    whole = fitted(image.read(tmp_path / "a.jpg"), (64, 64))
    assert np.abs(np.asarray(fitted(small, (64, 64))).astype(int) - np.asarray(whole)).max() <= 3


def test_another_colour_space_is_converted(tmp_path: Path) -> None:
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")  # a space whose red is sRGB's blue
    swapped = bytearray(swapped)
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    for mode, colour in (("RGB", (255, 0, 0)), ("RGBA", (255, 0, 0, 255))):
        Image.new(mode, (2, 2), colour).save(tmp_path / "a.png", icc_profile=bytes(swapped))
        assert image.read(tmp_path / "a.png").getpixel((0, 0)) == (0, 0, 255)


def test_profiles_of_srgb_and_damaged_ones_change_nothing(tmp_path: Path) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (4, 4), (10, 200, 30)).save(tmp_path / "a.png", icc_profile=own)
    assert image.read(tmp_path / "a.png").getpixel((0, 0)) == (10, 200, 30)
    Image.new("RGB", (4, 4), (10, 200, 30)).save(tmp_path / "b.png", icc_profile=b"no profile")
    assert image.read(tmp_path / "b.png").getpixel((0, 0)) == (10, 200, 30)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (5, 3)).save(path)
    read = image.read(path)
    assert (read.mode, read.size) == ("RGB", (5, 3))


def test_16_bit_gray_keeps_its_range(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 65535, np.uint16)).save(tmp_path / "a.png")
    assert image.read(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_floats_and_values_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    for name, values in (("a.tif", np.full((2, 2), 0.5, np.float32)), ("b.tif", np.full((2, 2), 70_000, np.int32))):
        Image.fromarray(values).save(tmp_path / name)
        for reader in (image.read, image.pixels):
            with pytest.raises(ValueError, match=rf"{name} cannot be read as a picture \(.*save it as \.npy"):
                reader(tmp_path / name)
        with Image.open(tmp_path / name) as opened, pytest.raises(ValueError, match=r"save it as \.npy"):
            image.coloured(opened)


def test_only_a_profile_that_changes_colours_is_another_one() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for mode in ("RGB", "RGBA", "L", "CMYK", "P"):
        assert not image.recoloured(srgb, mode)
        assert not image.recoloured(lab, mode)  # it does not fit, so it is not used
        assert not image.recoloured(b"no profile", mode)


def test_transparency_is_seen_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert image.read(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_truncated_picture_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        image.read(path)


def test_a_sheet_holds_every_picture() -> None:
    sheet = image.sheet(torch.full((5, 3, 4, 4), -1.0), columns=3, gap=1)
    assert sheet.size == (14, 9)
    assert (np.asarray(sheet) == 0).all(-1).sum() == 5 * 16


def test_a_map_in_the_classes_colours_with_a_stray_one_is_refused_and_numbers_under_others_are_numbers() -> None:
    """Programs order palettes as they like: most colours being classes, the numbers are none."""
    palette = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    numbers = np.array([[0, 1], [2, 3]], np.uint8)
    shown = Image.fromarray(numbers, "P")
    shown.putpalette([0, 0, 255, 0, 0, 0, 255, 0, 0, 9, 9, 9] + [0] * 756)
    with pytest.raises(ValueError, match=r"the map has colours \[\(9, 9, 9\)\] that the model does not know"):
        image.numbered(shown, palette, "the map", "the model")
    shown.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] + [0] * 756)  # one colour in common says nothing
    assert np.array_equal(image.numbered(shown, palette, "the map", "the model"), numbers)


def test_a_palette_map_in_its_data_set_s_own_order_may_have_a_colour_for_void() -> None:
    palette = tuple((8 * k, 255 - 8 * k, 100) for k in range(21))
    numbers = np.array([[0, 15], [255, 0]], np.uint8)
    shown = Image.fromarray(numbers, "P")
    shown.putpalette([c for colour in palette for c in colour] + [224, 224, 192] * 235)
    assert np.array_equal(image.numbered(shown, palette, "the map", "the model"), numbers)


def linear_gray() -> bytes:
    """A profile of gray whose curve is a straight line, with the fewest tags there are."""
    curve, white = b"curv" + bytes(8), b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    body = white + curve
    start = 128 + 4 + 2 * 12
    tags = struct.pack(">I", 2) + b"wtpt" + struct.pack(">II", start, 20) + b"kTRC" + struct.pack(">II", start + 20, 12)
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + tags + body


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_profiles_of_gray_are_heard_beside_transparency(mode: str, tmp_path: Path) -> None:
    shown = Image.new("L", (4, 4), 64).convert(mode)
    shown.save(tmp_path / "a.png", icc_profile=linear_gray())
    assert image.read(tmp_path / "a.png").getpixel((0, 0)) == (137, 137, 137)
    assert image.recoloured(linear_gray(), mode)


def test_a_profile_of_sixteen_bits_is_left_out_alike_and_told(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 64 * 257, np.uint16)).save(tmp_path / "a.png", icc_profile=linear_gray())
    assert image.read(tmp_path / "a.png").getpixel((0, 0)) == (64, 64, 64)
    assert float(image.pixels(tmp_path / "a.png", 1)[0, 0, 0]) == 64
    with Image.open(tmp_path / "a.png") as opened:
        assert "colour profile of more than 8 bits, left out" in changes(opened)
