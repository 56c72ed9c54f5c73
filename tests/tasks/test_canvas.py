"""Where pictures are made: what reaches over their edge, what is said of their places, and the noise they begin with."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.conditioning.boxes import Box
from sfumato.model import LatentDiffusion
from sfumato.tasks import canvas, said
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.requests import Layout, Vary
from tests.tasks.test_said import BOXES, STRIPES
from tests.tasks.test_tasks import CONDITIONERS, built, hole, noise, shrunk_again


@pytest.fixture(scope="module")
def everything() -> Pipeline:
    return built(CONDITIONERS)


def made(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The latents that are decoded from now on."""
    seen: list[Tensor] = []
    decode = pipeline.model.pictures
    monkeypatch.setattr(pipeline.model, "pictures", lambda x: seen.append(x) or decode(x))
    return seen


@pytest.mark.parametrize("task", ["generate", "trained", "free", "resampled", "panorama", "upscale"])
def test_noise_is_as_large_as_the_schedule_has_it_where_a_path_begins(task: str) -> None:
    pipeline = built(CONDITIONERS, schedule={"kind": "exploding"}, prediction="edm")
    first: list[float] = []
    denoise = pipeline.model.denoiser.forward

    def spied(x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        first.append(float(x.std()))
        return denoise(x, t, cond)

    pipeline.model.denoiser.forward = spied  # type: ignore[method-assign]
    settings: dict[str, Any] = {"seed": 0, "steps": 2}
    filling = {"picture": noise(32, 32), "mask": hole(32, 32, (4, 4, 20, 20)), **settings}
    match task:
        case "trained" | "free":
            pipeline.inpaint(method=task, resample=1, **filling)
        case "resampled":
            pipeline.inpaint(method="free", resample=2, **filling)
        case "panorama":
            pipeline.panorama(width=32, **settings)
        case "upscale":
            pipeline.upscale(picture=noise(8, 8), **settings)
        case _:
            pipeline.generate(**settings)
    assert first[0] == pytest.approx(80, rel=0.3)


def test_a_hole_at_the_edge_goes_on_in_what_continues_the_picture(
    everything: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    reader = everything.model.conditions.reader("masked")
    encode = reader.encode
    monkeypatch.setattr(reader, "encode", lambda x: seen.append(x) or encode(x))
    everything.inpaint(picture=noise(36, 32), mask=hole(36, 32, (20, 0, 36, 32)), seed=0, steps=1)
    assert seen[0].shape[-1] == 40
    assert float(seen[0][..., :20].abs().min(-1).values.max()) > 0
    assert not bool(seen[0][..., 20:].any())  # what lay in the hole is not shown, mirrored


def test_places_are_told_of_the_picture_and_not_of_what_its_latents_reach(everything: Pipeline) -> None:
    model = everything.model
    assert isinstance(model, LatentDiffusion)
    stripes = STRIPES.resize((50, 37), Image.Resampling.NEAREST)
    request = Layout(boxes=BOXES, map=stripes, width=50, height=37)
    found = said.placed(model, request, canvas.parted(model, 50, 37))  # on latents of 56 x 40 pixels
    for box, corners in zip(found["boxes"], ((0.1, 0.2, 0.5, 0.9), (0.5, 0, 1, 0.4)), strict=True):
        assert isinstance(box, Box)
        assert [56 * box.x0, 40 * box.y0, 56 * box.x1, 40 * box.y1] == pytest.approx(
            [50 * corners[0], 37 * corners[1], 50 * corners[2], 37 * corners[3]]
        )
    whole = stripes.resize((56, 40), Image.Resampling.NEAREST)
    own = said.placed(model, Layout(boxes=BOXES, map=whole, width=56, height=40), canvas.parted(model, 56, 40))
    assert own["boxes"] == request.boxes
    assert own["map"].shape == found["map"].shape == (40, 56)
    assert np.array_equal(own["map"], whole)
    assert np.array_equal(found["map"][:37, :50], stripes)  # where the picture is, the map as it was, not stretched


@pytest.mark.parametrize("side", [9, 16])
def test_a_factor_that_the_first_stages_does_not_share_keeps_the_scale(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = built({"small": {**CONDITIONERS["small"], "side": 11}})
    seen = made(three, monkeypatch)
    found = three.upscale(picture=noise(side, side), seed=0, steps=1)[0]
    assert found.size == (3 * side, 3 * side)
    assert seen[0].shape[-2:] == (6, 6)  # 16 small pixels are 48 large ones, six places


def test_an_upscale_that_adds_noise_of_its_own_is_not_held_to_the_small_picture() -> None:
    noisy = built({"small": {**CONDITIONERS["small"], "level": 0.4}})
    small = noise(3, 3).resize((8, 8), Image.Resampling.BICUBIC)
    own, none = (noisy.upscale(picture=small, seed=0, steps=1, level=level)[0] for level in (None, 0.0))
    assert shrunk_again(own, small) < 30
    assert shrunk_again(none, small) > 45


def test_a_negative_without_guidance_is_refused() -> None:
    words = {"words": {"kind": "text", "width": 8, "layers": 1, "heads": 2, "vocabulary": 60}}
    pipeline = built({"small": CONDITIONERS["small"], **words}, learned=["a red cat", "blurry"])
    settings: dict[str, Any] = {"picture": noise(8, 8), "negative": "blurry", "seed": 0, "steps": 1}
    with pytest.raises(ValueError, match="a negative does nothing at guidance 1, the default here"):
        pipeline.upscale(**settings)
    assert pipeline.upscale(**settings, guidance=1.0)  # one of a row of scales
    between = {**settings, "negative": None, "interval": (0.2, 0.8), "prompt": "a red cat"}
    with pytest.raises(ValueError, match="an interval does nothing at guidance 1, the default here"):
        pipeline.upscale(**between)


def test_pictures_that_come_one_by_one_leave_gradients_on(everything: Pipeline) -> None:
    several = everything.stream(Vary(picture=noise(32, 32), seed=0, steps=1, count=2, batch=1))
    next(several)
    assert torch.is_grad_enabled()
    several.close()
    assert torch.is_grad_enabled()
