"""Conditions beside the latent: maps, small pictures, masked pictures. Their grid, their null, their errors."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.conditioning.lowres import Lowres, LowresConfig
from sfumato.conditioning.map import Map, MapConfig
from sfumato.conditioning.masked import Masked, MaskedConfig
from tests.conditioning.settings import Averaging, setting


def semantic(**fields: Any) -> Map:
    torch.manual_seed(0)
    return MapConfig(width=5, classes=3, stages=1, **fields).build({}).eval()


def lowres(**fields: Any) -> Lowres:
    torch.manual_seed(0)
    return LowresConfig(width=5, told=8, **fields).build({}).eval()


def masked(**fields: Any) -> Masked:
    return MaskedConfig(**fields).build({}, Averaging())


SMALL = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_map_fills_any_grid_and_its_shares_are_exact() -> None:
    encoder = semantic()
    numbers = torch.randint(0, 3, (32, 48), generator=torch.Generator().manual_seed(0))
    for size in ((4, 6), (7, 10), (40, 60)):
        image = encoder([numbers], setting(size)).image
        assert image is not None
        assert image.shape == (1, 5, *size)
        assert encoder.null(2, setting(size)).image.shape == (2, 5, *size)  # type: ignore[union-attr]
    planes = encoder.planes(numbers, (5, 7))
    torch.testing.assert_close(planes.sum(0), torch.ones(5, 7))
    torch.testing.assert_close(planes.mean((1, 2)), torch.bincount(numbers.flatten()) / numbers.numel())
    block = torch.zeros(4, 4, dtype=torch.long)
    block[:2, :2] = 2  # between class 0 and class 2 there is no class 1
    assert encoder.planes(block, (1, 1)).flatten().tolist() == [0.75, 0.0, 0.25]


def test_maps_are_read_as_pictures_arrays_and_tensors() -> None:
    encoder, numbers = semantic(ignore=255), np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
    palette = Image.fromarray(numbers, "L").convert("P")
    palette.putdata(numbers.flatten().tolist())
    said = [encoder([v], setting((2, 3))).image for v in (numbers, torch.from_numpy(numbers), Image.fromarray(numbers))]
    for image in [*said, encoder([palette], setting((2, 3))).image]:
        assert torch.equal(image, said[0])  # type: ignore[arg-type]
    assert encoder.planes(numbers, (2, 3))[:, 1, 2].tolist() == [0, 0, 0]
    assert torch.equal(encoder.mirrored(numbers), torch.from_numpy(numbers).flip(-1).long())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.full((4, 6), 3), "unknown classes 3; the model knows 0 to 2"),
        (torch.full((4, 6), -1), "unknown classes -1"),
        (torch.zeros(4, 6), "whole class numbers"),
        (torch.zeros(4, 6, 3, dtype=torch.uint8), "whole class numbers"),
        (Image.new("RGB", (6, 4)), "a picture of mode RGB; a class map"),
        (torch.zeros(6, 6, dtype=torch.long), "is 6x6, and the picture to be made has sides as 6 to 4; crop"),
        ("a map", "whole class numbers"),
    ],
)
def test_maps_that_cannot_be_read_are_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        semantic()([value], setting())


def test_a_map_takes_its_classes_from_the_data_or_asks() -> None:
    config, _ = MapConfig().learn([], ["sky", "sea"])
    assert isinstance(config, MapConfig)
    assert config.classes == 2
    with pytest.raises(ValueError, match="0 to 1: 0 sky, 1 sea"):
        config.build({})([torch.full((4, 6), 2)], setting())
    with pytest.raises(ValueError, match="give `classes`"):
        MapConfig().learn([], ())
    with pytest.raises(ValueError, match="2 labels for 3 classes"):
        MapConfig(classes=3, labels=("a", "b")).learn([], ())


def test_a_small_picture_fills_any_grid_whatever_its_size() -> None:
    encoder = lowres(stages=1)
    for size, several in (((4, 6), [SMALL, SMALL.repeat(1, 2, 2)]), ((9, 13), [SMALL])):
        c = encoder(several, setting(size))
        assert c.image is not None
        assert c.vector is not None
        assert c.image.shape == (len(several), 5, *size)
        assert c.vector.shape == (len(several), 8)
    gray = encoder([Image.new("RGB", (6, 4), (127, 127, 127))], setting()).image
    assert gray is not None
    assert torch.equal(gray, encoder([np.full((4, 6, 3), 127, np.uint8)], setting()).image)  # type: ignore[arg-type]


def test_noise_comes_from_the_position_alone_and_its_level_is_told() -> None:
    encoder = lowres(noise=0.8)
    both = [encoder.noised(SMALL, k, setting(positions=(3, 4), augment=True)) for k in range(2)]
    alone = encoder.noised(SMALL, 0, setting(positions=(4,), augment=True))
    assert torch.equal(both[1][0], alone[0])
    assert both[1][1] == alone[1]
    assert not torch.equal(both[0][0], both[1][0])
    plain = encoder([SMALL], setting()).vector
    noisy = encoder([SMALL], setting(augment=True)).vector
    assert not torch.allclose(plain, noisy)  # type: ignore[arg-type]
    levels = [encoder.noised(SMALL, k, setting(positions=range(400), augment=True))[1] for k in range(400)]
    assert abs(sum(levels) / 400 - 0.4) < 0.03
    assert max(levels) < 0.8


def test_noise_keeps_the_variance_and_is_set_in_sampling() -> None:
    encoder, unit = lowres(noise=1.0, level=0.25), 0.5 * torch.ones(3, 64, 96)
    assert encoder.noised(unit, 0, setting())[1] == 0.25
    assert torch.equal(encoder.noised({"picture": unit, "level": 0.0}, 0, setting())[0], unit)
    small, level = encoder.noised({"picture": unit, "level": 0.6}, 0, setting())
    assert level == 0.6
    assert abs(float(small.mean()) - 0.8 * 0.5) < 0.02
    assert abs(float(small.std()) - 0.6) < 0.02


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(4, 4, 6), "has 4 channels, this model reads pictures of 3"),
        (torch.full((3, 4, 6), 200.0), r"values from 200 to 200; a picture's lie in \[-1, 1\]"),
        (torch.full((3, 4, 6), float("nan")), "a picture's lie"),
        (np.zeros((4, 6, 3)), "is a picture: PIL"),
        ("cat.png", "is a picture: PIL"),
        ({"picture": torch.zeros(3, 4, 6), "level": 0.9}, "level 0.9 of lowres was not trained; give 0 to 0.5"),
        ({"image": torch.zeros(3, 4, 6)}, r"a picture or \{picture, level\}; got image"),
        (torch.zeros(3, 6, 4), "is 4x6, and the picture to be made"),
    ],
)
def test_small_pictures_that_cannot_be_read_are_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lowres()([value], setting())
    with pytest.raises(ValueError, match="never trained"):
        lowres(noise=0.1, level=0.2)


def test_a_masked_picture_is_what_the_first_stage_makes_of_what_is_kept() -> None:
    encoder, whole = masked(), torch.rand(3, 16, 24) * 2 - 1
    hole = torch.zeros(16, 24)
    hole[:, :8], hole[0, 8] = 1, 1
    assert encoder.sizes == (0, 0, 4)
    image = encoder([(whole, hole), {"picture": whole, "mask": hole.bool()}], setting()).image
    assert image is not None
    assert image.shape == (2, 4, 4, 6)
    assert torch.equal(image[0], image[1])
    assert image[0, 3, :, :3].tolist() == [[1, 1, 1 / 16], [1, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert not image[0, :3, :, :2].any()  # nothing of the picture is seen through the hole
    torch.testing.assert_close(image[0, :3, :, 3:], torch.nn.functional.avg_pool2d(whole, 4)[..., 3:])
    assert encoder.null(2, setting()).image[0, :, 0, 0].tolist() == [0, 0, 0, 1]  # type: ignore[index]
    turned = encoder([encoder.mirrored((whole, hole))], setting()).image
    torch.testing.assert_close(turned[0], image[0].flip(-1))  # type: ignore[index]
    assert not list(encoder.buffers())
    assert [n for n, _ in encoder.named_parameters()] == ["nothing"]


def test_a_hole_may_show_what_is_around_it_and_never_what_is_in_it() -> None:
    encoder, whole, hole = masked(fill="smooth"), torch.full((3, 16, 24), 0.5), torch.zeros(16, 24)
    hole[:, :8] = 1
    whole[:, :, :8] = -1
    image = encoder([(whole, hole)], setting()).image
    assert image is not None
    torch.testing.assert_close(image[0, :3], torch.full((3, 4, 6), 0.5))
    assert image[0, 3, 0].tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((torch.zeros(3, 16, 24), torch.zeros(8, 24)), "the mask of masked is 24x8 and its picture 24x16"),
        ((torch.zeros(3, 8, 12), torch.zeros(8, 12)), "masked is 12x8 and the picture to be made 24x16"),
        ((torch.zeros(3, 16, 24), torch.full((16, 24), 2.0)), "values from 2 to 2; give 0 to 1"),
        ((torch.zeros(3, 16, 24), "all"), "the mask of masked is a picture of one channel"),
        (torch.zeros(3, 16, 24), r"is \{picture, mask\} or"),
    ],
)
def test_masked_pictures_that_cannot_be_read_are_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        masked()([value], setting())


def test_a_masked_picture_needs_the_first_stage() -> None:
    with pytest.raises(ValueError, match="give `build` the model's codec"):
        MaskedConfig().build({})


def test_large_maps_are_worked_on_some_classes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = semantic(ignore=7)
    numbers = torch.randint(0, 3, (32, 48), generator=torch.Generator().manual_seed(0))
    numbers[0, 0] = 7
    at_once = encoder.planes(numbers, (5, 7))
    monkeypatch.setattr("sfumato.conditioning.map.AT_ONCE", 1)
    assert torch.equal(encoder.planes(numbers, (5, 7)), at_once)


def test_small_pictures_have_the_channels_of_the_data() -> None:
    gray = torch.zeros(1, 8, 6)
    settled, _ = LowresConfig().learn([gray], ())
    assert (settled.channels, settled.side) == (1, 8)
    kept, _ = LowresConfig(channels=3).learn([gray], ())
    assert kept.channels == 3
    fields = {name: value for name, value in LowresConfig().model_dump().items() if name != "kind"}
    again = LowresConfig.model_validate(fields)  # as a run's recipe.yaml has it
    assert again.learn([gray], ())[0].channels == 1


def test_a_masked_picture_that_was_never_dropped_is_all_hole_where_nothing_is_said() -> None:
    sure, unsure = masked(dropout=0.0), masked(dropout=0.1)
    gray, all_of_it = torch.zeros(3, 8, 12), torch.ones(8, 12)
    said = sure([(gray, all_of_it)], setting((2, 3))).image
    none = sure.null(2, setting((2, 3))).image
    assert said is not None
    assert none is not None
    assert none.shape[0] == 2
    torch.testing.assert_close(none[:1], said)
    assert torch.equal(unsure.null(1, setting((2, 3))).image, unsure.nothing.expand(1, -1, 2, 3))  # type: ignore[arg-type]
