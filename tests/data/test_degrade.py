"""Small pictures made from large ones: bicubic as papers measure, blind as the world does it."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from sfumato import streams
from sfumato.data import degrade
from sfumato.data.base import Data
from sfumato.data.degrade import DegradeConfig


def draws(k: int) -> np.random.Generator:
    return streams.generator(0, "test", k)


def smooth(size: int = 64) -> torch.Tensor:
    """A picture (3, size, size) uint8 without sharp edges."""
    places = torch.linspace(0, 6.28, size)
    plane = (places[:, None].sin() + (2 * places[None]).cos()) * 60 + 127
    return torch.stack([plane, plane.flip(0), plane.T]).round().to(torch.uint8)


def test_bicubic_is_the_resize_of_pillow_to_a_level_or_two() -> None:
    whole = smooth()
    small = DegradeConfig(factor=4)(whole, draws(0))
    assert small.dtype == torch.uint8
    picture = Image.fromarray(whole.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    other = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert int((small.int() - other.int()).abs().max()) <= 2
    assert torch.equal(small, DegradeConfig(factor=4)(whole, draws(1)))


def test_blind_is_another_each_time_worse_than_bicubic_and_still_the_picture() -> None:
    whole, config = smooth(), DegradeConfig(how="blind", factor=4)
    plain = DegradeConfig(factor=4)(whole, draws(0)).float()
    several = torch.stack([config(whole, draws(k)) for k in range(24)])
    assert several.shape == (24, 3, 16, 16)
    assert torch.equal(several[3], config(whole, draws(3)))
    assert len({bytes(s.numpy().tobytes()) for s in several}) == 24
    off = (several.float() - plain).square().mean((1, 2, 3)).sqrt()
    assert 2 < float(off.mean()) < 40
    assert float(off.max()) < 80


def test_blind_is_the_same_while_networks_run_in_half_precision() -> None:
    picture, config = smooth(), DegradeConfig(how="blind")
    for k in range(8):  # all ways to resize
        whole = config(picture, draws(k))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(config(picture, draws(k)), whole)


def test_blind_does_all_four_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(name: str) -> None:
        real = getattr(degrade, name)
        monkeypatch.setattr(degrade, name, lambda *given: done.append(name) or real(*given))

    for name in ("blurred", "_resized", "noisy", "compressed"):
        noted(name)
    whole, config, orders, ends = smooth(32), DegradeConfig(how="blind", factor=2), set(), set()
    for k in range(200):
        done.clear()
        config(whole, draws(k))
        assert sorted(done[:4]) == ["_resized", "blurred", "compressed", "noisy"]
        orders.add(tuple(done[:4]))
        ends.add(tuple(done[4:]))
    assert len(orders) == 24
    assert ends == {("_resized",), ("_resized", "compressed")}


def test_each_worsening_does_what_it_says() -> None:
    x = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert float(degrade.blurred(x, draws(0), 3.0).std()) < 0.6 * float(x.std())
    assert torch.equal(degrade.blurred(x, draws(0), 0.0), x)
    flat = torch.full((3, 16, 16), 0.25)
    assert torch.allclose(degrade.blurred(flat, draws(1), 2.0), flat, atol=1e-5)
    noise = degrade.noisy(torch.zeros(3, 64, 64), draws(2), 0.2)
    assert 0 < float(noise.std()) <= 0.21
    assert float((degrade.compressed(x, 95) - x).abs().mean()) < float((degrade.compressed(x, 10) - x).abs().mean())


def test_a_gray_picture_stays_gray_and_sides_must_divide() -> None:
    assert DegradeConfig(how="blind", factor=2)(smooth()[:1], draws(0)).shape == (1, 32, 32)
    with pytest.raises(ValueError, match="does not divide 62x64"):
        DegradeConfig(factor=4)(smooth()[:, :, :62], draws(0))
    with pytest.raises(ValidationError):
        DegradeConfig(factor=1)


def test_an_example_tells_its_small_picture() -> None:
    part = Data.model_validate({"kind": "emoji", "size": 32, "degrade": {"factor": 2}}).open("held_out")
    assert part.told(0)["lowres"].shape == (3, 16, 16)


@pytest.mark.parametrize("jpeg", [(95, 30), (-1, 50), (30, 101)])
def test_a_range_of_qualities_that_is_none_is_refused(jpeg: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="jpeg is a range of qualities"):
        DegradeConfig(how="blind", jpeg=jpeg)
