"""Every task of one model that takes every condition: what comes back, what is kept, and what is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sfumato import image
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.kl import KLConfig
from sfumato.diffusion.combinators import tiled
from sfumato.diffusion.samplers import Denoise
from sfumato.evaluation.reconstruction import psnr
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.nn.fill import smooth
from sfumato.tasks import inpaint, metadata, panorama, upscale
from sfumato.tasks import walk as walking
from sfumato.tasks.generate import between
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.requests import Generate
from sfumato.tasks.walk import walk
from sfumato.windows import Window
from tests.conftest import CODER

CONDITIONERS: dict[str, Any] = {
    "class": {"kind": "label", "width": 8, "labels": ["cat", "dog"]},
    "layout": {"kind": "boxes", "width": 8, "heads": 2, "labels": ["cat", "red apple"], "most": 3},
    "semantic": {"kind": "map", "width": 4, "classes": 3, "palette": [[0, 0, 0], [255, 0, 0], [0, 0, 255]]},
    "small": {"kind": "lowres", "width": 4, "side": 8, "told": 8},
    "hole": {"kind": "masked"},
}


UNET = {"kind": "unet", "width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2], "groups": 8}
DIT = {"kind": "dit", "width": 16, "depth": 2, "heads": 2, "patch": 1}


def built(
    conditioners: dict[str, Any], backbone: dict[str, Any] = UNET, learned: Sequence[str] = (), **more: Any
) -> Pipeline:
    """A pipeline of fresh weights that are nowhere zero, at 32 pixels; what reads words has them of the `learned`."""
    torch.manual_seed(0)
    codec = Codec(KLConfig.model_validate({"coder": CODER})).eval()
    config = DiffusionConfig.model_validate({"backbone": backbone, "conditioners": conditioners, **more})
    texts = {
        n: c.heard(learned) if c.beside else c.learn([[t] for t in learned], ())[1]
        for n, c in config.conditioners.items()
        if learned
    }
    model = LatentDiffusion(codec, config, 32, texts)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return Pipeline(model, "all")


@pytest.fixture(scope="module")
def everything() -> Pipeline:
    return built(CONDITIONERS)


@pytest.fixture(scope="module")
def nothing() -> Pipeline:
    return built({})


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode if mode != "L" else None
    )


def hole(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def array(picture: Image.Image) -> "np.ndarray[Any, Any]":
    return np.array(picture)


def far(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(array(a).astype(float) - array(b)).mean())


# vary


def test_vary_goes_as_far_from_its_picture_as_it_is_told(nothing: Pipeline) -> None:
    start = nothing.generate(seed=1, steps=3)[0]
    near, middle, whole = (nothing.vary(picture=start, strength=s, seed=0, steps=4)[0] for s in (0.02, 0.5, 1.0))
    again = image.to_pil(nothing.model.pictures(nothing.model.codec.encode(image.to_tensor(start)[None])))[0]
    assert far(near, again) < far(middle, again)
    other = nothing.vary(picture=noise(32, 32), strength=1.0, seed=0, steps=4)[0]
    assert far(whole, other) < far(whole, middle)
    assert near.info["sfumato"]


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "deis", "dpmpp_2m"])
def test_vary_asks_the_network_once_a_step_however_short_its_way(
    nothing: Pipeline, sampler: str, strength: float
) -> None:
    asked: list[int] = []
    network = nothing.model.denoiser.network
    handle = network.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    try:
        nothing.vary(picture=noise(32, 32), strength=strength, sampler=sampler, seed=0, steps=5, guidance=1.0)
    finally:
        handle.remove()
    assert asked == [1] * 5


def test_vary_takes_any_size_and_gives_it_back(nothing: Pipeline, tmp_path: Path) -> None:
    noise(37, 50).save(tmp_path / "a.png")
    made = nothing.vary(picture=tmp_path / "a.png", seed=0, steps=2, count=3, batch=2)
    assert [m.size for m in made] == [(37, 50)] * 3
    assert far(made[1], nothing.vary(picture=tmp_path / "a.png", seed=1, steps=2)[0]) < 0.1


def test_inversion_comes_back_nearer_than_noise_of_the_same_depth(nothing: Pipeline) -> None:
    start = nothing.generate(seed=1, steps=3)[0]
    again = image.to_pil(nothing.model.pictures(nothing.model.codec.encode(image.to_tensor(start)[None])))[0]
    kept = nothing.vary(picture=start, strength=0.9, invert=True, seed=0, steps=20, guidance=1.0)[0]
    lost = nothing.vary(picture=start, strength=0.9, seed=0, steps=20, guidance=1.0)[0]
    assert far(kept, again) < 0.3 * far(lost, again)


# inpaint


@pytest.mark.parametrize("method", ["trained", "free"])
@pytest.mark.parametrize("size", [(32, 32), (45, 38), (64, 40)])
def test_known_pixels_come_back_bit_for_bit(everything: Pipeline, method: str, size: tuple[int, int]) -> None:
    start, mask = noise(*size), hole(*size, (5, 7, 21, 30))
    made = everything.inpaint(picture=start, mask=mask, method=method, seed=0, steps=2, label="cat")[0]
    kept = array(mask) == 0
    assert made.size == size
    assert np.array_equal(array(made)[kept], array(start)[kept])
    assert far(made, start) > 1


def test_a_model_that_was_not_trained_for_it_fills_too(nothing: Pipeline) -> None:
    start, mask = noise(32, 32), hole(32, 32, (0, 0, 16, 32))
    ones = [nothing.inpaint(picture=start, mask=mask, seed=0, steps=3, resample=r)[0] for r in (1, 3)]
    for made in ones:
        assert np.array_equal(array(made)[:, 16:], array(start)[:, 16:])
    assert far(*ones) > 0
    with pytest.raises(ValueError, match="not trained for inpainting"):
        nothing.inpaint(picture=start, mask=mask, method="trained")


@pytest.mark.parametrize("resample", [1, 2])
def test_a_model_that_was_not_trained_for_it_sees_what_is_around_the_hole(
    nothing: Pipeline, resample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its latents end at those of the picture with a filled hole, wherever there is no hole."""
    start, mask = noise(32, 32), hole(32, 32, (0, 0, 12, 32))
    seen: list[torch.Tensor] = []
    pictures = nothing.model.pictures
    monkeypatch.setattr(nothing.model, "pictures", lambda latents: seen.append(latents) or pictures(latents))
    nothing.inpaint(picture=start, mask=mask, seed=0, steps=2, resample=resample)
    holes = torch.from_numpy(array(mask) / 255.0).float()[None, None]
    known = nothing.model.codec.encode(smooth(image.to_tensor(start)[None], holes))
    torch.testing.assert_close(seen[0][..., 2:], known[..., 2:], atol=1e-4, rtol=1e-4)
    assert float((seen[0] - known)[..., :2].abs().max()) > 0.1


def test_soft_masks_and_softened_edges_are_mixtures(everything: Pipeline) -> None:
    start, mask = noise(32, 32), hole(32, 32, (8, 8, 24, 24))
    hard = everything.inpaint(picture=start, mask=mask, seed=0, steps=2)[0]
    half = everything.inpaint(picture=start, mask=mask.point(lambda v: v // 2), seed=0, steps=2)[0]
    inside = np.s_[8:24, 8:24]
    between_ = (array(hard)[inside].astype(float) * 127 + array(start)[inside].astype(float) * 128) / 255
    assert np.abs(array(half)[inside] - between_).max() <= 1.01
    soft = inpaint.softened(torch.from_numpy(array(mask) / 255.0).float()[None], 4)
    row = soft[0, 16].tolist()
    assert row[3:9] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    made = everything.inpaint(picture=start, mask=mask, seed=0, steps=2, soften=4)[0]
    assert np.array_equal(array(made)[:4], array(start)[:4])
    assert (array(made)[4:8, 8:24] != array(start)[4:8, 8:24]).any((1, 2)).all()
    assert np.array_equal(array(made)[inside], array(hard)[inside])


def test_a_step_that_is_taken_again_is_of_ddim_and_is_told_so(nothing: Pipeline) -> None:
    asked: dict[str, Any] = {"picture": noise(32, 32), "mask": hole(32, 32, (8, 8, 24, 24)), "seed": 0, "steps": 2}
    made = nothing.inpaint(**asked)[0]
    assert json.loads(made.info["sfumato"])["sampler"] == "ddim"
    assert "Sampler: DDIM" in made.info["parameters"]
    assert np.array_equal(array(made), array(nothing.inpaint(sampler="ddim", **asked)[0]))
    with pytest.raises(ValueError, match="takes each step again, by ddim; got 'heun'"):
        nothing.inpaint(sampler="heun", **asked)
    once = nothing.inpaint(sampler="heun", resample=1, **asked)[0]
    assert json.loads(once.info["sfumato"])["sampler"] == "heun"


def test_outpainting_adds_to_the_sides_and_keeps_the_middle(everything: Pipeline) -> None:
    start = noise(32, 24)
    made = everything.inpaint(picture=start, expand=(8, 3, 5, 0), seed=0, steps=2)[0]
    assert made.size == (45, 27)
    assert np.array_equal(array(made)[3:, 8:40], array(start))


# upscale


def test_upscale_multiplies_any_size_by_the_models_factor(everything: Pipeline) -> None:
    for size in ((8, 8), (5, 9), (21, 10)):
        made = everything.upscale(picture=noise(*size), seed=0, steps=2)[0]
        assert made.size == (4 * size[0], 4 * size[1])
    settings: dict[str, Any] = {"picture": noise(8, 8), "seed": 0, "steps": 2, "consistent": False}
    plain, level = (everything.upscale(level=v, **settings)[0] for v in (None, 0.4))
    assert far(plain, level) > 0
    with pytest.raises(ValueError, match="was not trained"):
        everything.upscale(picture=noise(8, 8), level=0.9)


def shrunk_again(big: Image.Image, small: Image.Image) -> float:
    """PSNR of a large picture, made small by bicubic averages, and the small one."""
    x = F.interpolate(image.to_tensor(big)[None], small.size[::-1], mode="bicubic", antialias=True)
    return float(psnr(x.clamp(-1, 1), image.to_tensor(small)[None]))


def test_an_upscaled_picture_made_small_again_is_the_one_that_was_given(everything: Pipeline) -> None:
    small = noise(12, 10).resize((30, 20), Image.Resampling.BICUBIC)
    settings: dict[str, Any] = {"picture": small, "seed": 0, "steps": 2}
    assert shrunk_again(everything.upscale(**settings)[0], small) > 45
    assert shrunk_again(everything.upscale(consistent=False, **settings)[0], small) < 30


def test_the_correction_is_the_smallest_one() -> None:
    """What is consistent stays as it is, and detail that the small picture does not show is kept."""
    whole = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    small = F.interpolate(whole, (8, 8), mode="bicubic", antialias=True)
    assert torch.allclose(upscale.corrected(whole[:1], small[0]), whole[:1], atol=1e-4)
    checker = (-1.0) ** (torch.arange(32)[:, None] + torch.arange(32)[None])
    made = upscale.corrected(whole[:1] + 0.05 + 0.2 * checker, small[0])
    assert float((made - whole[:1] - 0.2 * checker)[..., 4:-4, 4:-4].abs().max()) < 0.02


def test_white_grounds_come_back_too_each_picture_for_itself() -> None:
    """Where much of a picture lies at the end of the range, cutting undoes most of a correction."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.ones(1, 3, 32, 32)
    whole[..., 8:24, 8:24] = torch.rand(3, 16, 16, generator=generator) - 0.5
    small = F.interpolate(whole, (8, 8), mode="bicubic", antialias=True)[0]
    made = (whole + torch.randn(2, 3, 32, 32, generator=generator)).clamp(-1, 1)
    found = upscale.corrected(made, small)
    again = F.interpolate(found, (8, 8), mode="bicubic", antialias=True)
    assert float(psnr(again, small.expand(2, 3, 8, 8)).min()) > 48
    assert torch.allclose(upscale.corrected(made[1:], small), found[1:], atol=1e-5)


def test_what_is_the_average_of_no_picture_is_told_how_near_it_came(
    everything: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Image.fromarray(np.where(np.arange(16)[None].repeat(8, 0) % 2, 255, 0).astype(np.uint8)).convert("RGB")
    big = everything.upscale(picture=lines, seed=0, steps=1)[0]
    assert f"to {shrunk_again(big, lines):.0f}" in caplog.text  # dB
    caplog.clear()
    everything.upscale(picture=noise(12, 10).resize((30, 20), Image.Resampling.BICUBIC), seed=0, steps=1)
    assert not caplog.text


def test_rounds_end_where_they_are_worth_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = torch.where(torch.arange(8) % 2 == 0, -1.0, 1.0).expand(3, 8, 8)
    asked, inner = list[int](), upscale._inner
    monkeypatch.setattr(upscale, "_inner", lambda a, b: (asked.append(1), inner(a, b))[1])
    start = torch.zeros(1, 3, 32, 32)
    found, rounds = upscale.corrected(start, lines), len(asked) // 25
    assert rounds < 30
    more = upscale.corrected(start, lines, rounds=60, most=60)
    far = [
        float((F.interpolate(x, (8, 8), mode="bicubic", antialias=True) - lines).square().mean()) for x in (found, more)
    ]
    assert far[0] < 1.1 * far[1]


# layout, semantic


def test_layout_reads_boxes_of_every_form(everything: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('[{"label": "red apple", "box": [0.1, 0.2, 0.5, 0.9]}]')
    ways: list[Any] = [
        [("red apple", 0.1, 0.2, 0.5, 0.9)],
        "red apple 0.1 0.2 0.5 0.9",
        ["red apple 0.1, 0.2, 0.5, 0.9"],
        tmp_path / "b.json",
        {"label": "red apple", "box": [0.1, 0.2, 0.5, 0.9]},
    ]
    made = [everything.layout(boxes=way, seed=0, steps=2)[0] for way in ways]
    assert all(far(made[0], m) == 0 for m in made)
    assert far(made[0], everything.layout(boxes="red apple 0.5 0.2 0.9 0.9", seed=0, steps=2)[0]) > 0
    assert everything.layout(boxes=ways[0], width=48, height=16, seed=0, steps=1, count=2)[1].size == (48, 16)


def test_semantic_reads_numbers_palettes_and_colours(everything: Pipeline, tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).integers(0, 3, (40, 52), dtype=np.uint8)
    gray, indexed = Image.fromarray(numbers), Image.fromarray(numbers, "P")
    indexed.putpalette([9, 9, 9, 1, 2, 3, 7, 7, 7] + [0] * 759)
    colours = Image.fromarray(np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)[numbers])
    made = [everything.semantic(map=m, seed=0, steps=2)[0] for m in (gray, indexed, colours)]
    assert made[0].size == (52, 40)
    assert far(made[0], made[1]) == far(made[0], made[2]) == 0
    assert far(made[0], everything.semantic(map=Image.new("L", (52, 40), 1), seed=0, steps=2)[0]) > 0
    turned = Image.fromarray(2 - numbers, "P")  # as a program writes them that orders the same colours another way
    turned.putpalette([0, 0, 255, 255, 0, 0, 0, 0, 0])
    assert far(made[0], everything.semantic(map=turned, seed=0, steps=2)[0]) == 0


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("upscale", {"picture": noise(24, 8)}),
        ("semantic", {"map": Image.new("L", (96, 32), 1)}),
        ("layout", {"boxes": "cat 0.1 0.2 0.5 0.9", "width": 96}),
    ],
)
def test_large_pictures_are_made_in_windows_that_overlap_by_half(
    everything: Pipeline, task: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Window] = []

    def spied(denoise: None, size: int, stride: int, *, at: Callable[[Window], Denoise], wrap: bool) -> Denoise:
        def seen(window: Window) -> Denoise:
            asked.append(window)
            return at(window)

        return tiled(denoise, size, stride, at=seen, wrap=wrap)

    monkeypatch.setattr(walking, "tiled", spied)
    assert getattr(everything, task)(**given, seed=0, steps=1)[0].size == (96, 32)
    assert asked == [Window(0, left, 4, 4) for left in (0, 2, 4, 6, 8)]


# panorama, and what generate can do


def test_panorama_is_larger_than_trained_and_wraps(nothing: Pipeline) -> None:
    plain = nothing.panorama(width=96, height=40, seed=0, steps=3)[0]
    assert plain.size == (96, 40)
    assert far(plain, nothing.panorama(width=96, height=40, seed=0, steps=3, whole=True)[0]) > 0
    assert nothing.panorama(width=96, seed=0, steps=3, wrap=True)[0].size == (96, 32)


def test_a_canvas_that_wraps_has_no_edge(nothing: Pipeline) -> None:
    """Turned by a stride, its noise gives the same picture turned as far, also across the decoder's edge."""
    x = torch.randn(1, 4, 4, 24, generator=torch.Generator().manual_seed(0))

    def made(x: torch.Tensor, wrap: bool) -> torch.Tensor:
        latents = walk(nothing.model, x, Generate(steps=3), {}, stride=2, wrap=wrap)
        return panorama.around(nothing.model, latents) if wrap else nothing.model.pictures(latents)

    off = {w: float((made(x.roll(2, -1), w).roll(-16, -1) - made(x, w)).abs().mean()) for w in (True, False)}
    assert off[True] < 0.2 * off[False]


def test_generate_interpolates_and_varies(nothing: Pipeline) -> None:
    ends = [nothing.generate(seed=s, steps=3)[0] for s in (3, 9)]
    between_ = nothing.generate(seed=3, until=9, count=5, steps=3, batch=2)
    assert far(between_[0], ends[0]) < 0.5
    assert far(between_[-1], ends[1]) < 0.5
    assert far(between_[1], ends[0]) < far(between_[3], ends[0])
    a, b = (nothing.generate(seed=3, variation_seed=9, variation=v, steps=3)[0] for v in (0.05, 0.9))
    assert far(a, ends[0]) < far(b, ends[0])
    assert torch.equal(between(torch.ones(1, 1, 2), torch.zeros(1, 1, 2) + 0.5, 0.0), torch.ones(1, 1, 2))


@pytest.mark.parametrize(
    ("task", "fields", "words"),
    [
        ("vary", {"picture": "nowhere.png"}, "there is no file nowhere.png"),
        ("vary", {"picture": 3}, "path or a PIL picture"),
        ("vary", {"picture": noise(32, 32), "strength": 0}, "strength"),
        ("vary", {"picture": noise(32, 32), "source": "cat"}, "give both or neither"),
        ("vary", {"picture": noise(32, 32), "invert": True, "sampler": "heun"}, "comes back by ddim"),
        ("vary", {"picture": noise(1000, 1000)}, "no more than 256x256"),
        ("vary", {"picture": noise(32, 32), "prompt": "cat"}, "trained without text"),
        ("vary", {"picture": noise(32, 32), "label": "cta"}, "nearest: cat"),
        ("vary", {"picture": noise(32, 32), "label": "7"}, "out of range"),
        ("inpaint", {"picture": noise(32, 32)}, "give a mask, or expand"),
        ("inpaint", {"picture": noise(32, 32), "mask": Image.new("L", (32, 31), 255)}, "32x31 and the picture 32x32"),
        ("inpaint", {"picture": noise(32, 32), "mask": Image.new("L", (32, 32))}, "no hole"),
        ("inpaint", {"picture": noise(32, 32), "expand": "1,2,3"}, "left,top,right,bottom"),
        ("inpaint", {"picture": noise(32, 32), "expand": 4, "method": "magic"}, "method"),
        ("layout", {"boxes": "cat 0.5 0.2 0.1 0.9"}, "reversed"),
        ("layout", {"boxes": "cat 0.5 0.2 1.1 0.9"}, "outside the picture"),
        ("layout", {"boxes": "cot 0.1 0.2 0.5 0.9"}, "nearest: cat"),
        ("layout", {"boxes": "cat 0.1 0.2"}, "a class and four corners"),
        ("layout", {"boxes": []}, "list of boxes is empty"),
        ("layout", {"boxes": ["cat 0 0 1 1"] * 4}, "4 boxes, this model reads 3"),
        ("semantic", {"map": Image.new("L", (32, 32), 5)}, "unknown classes 5"),
        (
            "semantic",
            {"map": Image.new("RGB", (32, 32), "white")},
            r"colours \[\(255, 255, 255\)\] that the model does not know, which has \[\(0, 0, 0\), .*save it as PNG",
        ),
        (
            "semantic",
            {"map": Image.merge("RGB", [Image.linear_gradient("L").resize((32, 32))] * 3)},
            r"\] and [1-9]\d* more that the model",
        ),
        ("panorama", {"width": 50, "wrap": True}, "multiple of 8, try 48"),
        ("vary", {"picture": noise(32, 32), "negative": "cat"}, "trained without text, so it takes no negative"),
        ("panorama", {"width": 96, "wrap": True}, "models without pictures"),
        ("panorama", {"width": 96, "wrap": True, "whole": True}, "leave whole out"),
        ("panorama", {"width": 16384, "height": 16384}, "1,046,529 windows of 32 pixels"),
        ("panorama", {"width": 1600, "height": 1600, "overlap": 0.7}, "less overlap"),
        ("inpaint", {"picture": noise(32, 32), "expand": 1_000_000}, "at most 4,096 are worked on"),
        ("inpaint", {"picture": noise(2000, 2000), "mask": Image.new("L", (2000, 2000), 255)}, "ask for a smaller"),
        ("upscale", {"picture": noise(500, 500)}, "2000x2000 pixels are 15,376 windows"),
        ("semantic", {"map": Image.new("L", (2000, 2000))}, "ask for a smaller"),
        ("generate", {"until": 3, "count": 2}, "give all three"),
        (
            "vary",
            {"picture": noise(32, 32), "invert": True, "count": 3},
            "3 pictures would be the same; leave count out",
        ),
        ("layout", {"boxes": [("cat", 10**400, 0, 1, 1)]}, "corners as numbers"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    everything: Pipeline, task: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        getattr(everything, task)(**fields)


def test_a_model_without_the_condition_says_what_it_takes(nothing: Pipeline) -> None:
    for task, fields in (
        ("upscale", {"picture": noise(8, 8)}),
        ("layout", {"boxes": "cat 0 0 1 1"}),
        ("semantic", {"map": Image.new("L", (32, 32))}),
    ):
        with pytest.raises(
            ValueError, match=r"it takes no condition; use a model whose recipe has a conditioner of the kind '\w+'"
        ):
            getattr(nothing, task)(**fields)
    with pytest.raises(ValueError, match="takes no source; leave the source out"):
        nothing.vary(picture=noise(32, 32), invert=True, source="a cat", steps=1)


@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16", "P", "GIF"])
def test_pictures_of_every_mode_are_taken(nothing: Pipeline, tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.gif" if mode == "GIF" else "a.png")
    if mode == "GIF":
        noise(32, 32).save(path, save_all=True, append_images=[Image.new("RGB", (32, 32))])
    elif mode == "I;16":
        Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(path)
    else:
        noise(32, 32, "RGBA").convert(mode).save(path)
    assert nothing.vary(picture=path, strength=0.1, seed=0, steps=1)[0].size == (32, 32)


@pytest.mark.parametrize(("overlap", "stride"), [(0.5, 2), (0.75, 1), (0.25, 3)])
def test_windows_of_a_panorama_overlap_by_the_share_that_is_asked_for(
    nothing: Pipeline, overlap: float, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    real = panorama.canvas.parted
    monkeypatch.setattr(panorama.canvas, "parted", lambda m, w, h, s: told.append(s) or real(m, w, h, s))
    nothing.panorama(width=64, height=32, overlap=overlap, seed=0, steps=1)
    assert told == [stride]


@pytest.mark.parametrize("backbone", [UNET, DIT])
def test_pictures_of_half_precision_are_those_of_whole_nearly(backbone: dict[str, Any], tmp_path: Path) -> None:
    built({}, backbone).model.save(tmp_path / "model")
    whole, half = (
        Pipeline.load(tmp_path / "model", device="cpu", precision=p).generate(seed=0, steps=4)[0]
        for p in ("fp32", "bf16")
    )
    assert not np.array_equal(array(whole), array(half))
    assert far(whole, half) < 3


def test_a_map_may_be_larger_than_its_picture(everything: Pipeline) -> None:
    numbers = np.random.default_rng(0).integers(0, 3, (8, 8), dtype=np.uint8)
    small, large = (Image.fromarray(np.kron(numbers, np.ones((n, n), np.uint8))) for n in (4, 16))
    plain = everything.semantic(map=small, seed=0, steps=2)[0]
    assert everything.semantic(map=large, seed=0, steps=1)[0].size == (128, 128)
    for asked in ({"width": 32}, {"height": 32}, {"width": 32, "height": 32}):
        made = everything.semantic(map=large, seed=0, steps=2, **asked)[0]
        assert made.size == (32, 32)
        assert far(made, plain) < 1
    with pytest.raises(ValueError, match="crop it to that shape"):
        everything.semantic(map=large, seed=0, steps=1, width=32, height=64)
    nearly = Image.fromarray(np.zeros((40, 32), np.uint8))  # one place of the latent too high
    with pytest.raises(ValueError, match="crop it to that shape"):
        everything.vary(picture=noise(32, 32), map=nearly, seed=0, steps=1)


def test_a_model_that_wants_few_steps_takes_them_where_none_are_said() -> None:
    model = built({"hole": {"kind": "masked", "dropout": 0.0}}, steps=3)
    given: dict[str, Any] = {"picture": noise(32, 32), "mask": Image.new("L", (32, 32), 255), "seed": 0}
    plain = model.inpaint(**given)[0]
    assert json.loads(plain.info["sfumato"])["steps"] == 3
    assert far(plain, model.inpaint(**given, steps=3)[0]) == 0 < far(plain, model.inpaint(**given, steps=2)[0])
    free = model.inpaint(**given, method="free", resample=1)[0]
    assert json.loads(free.info["sfumato"])["steps"] == 25


def test_what_is_done_to_a_file_is_told_in_python_too(
    everything: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (32, 32), (9, 9, 9, 99)).save(path)
    for _ in range(2):
        everything.vary(picture=path, seed=0, steps=1)
    told = f"{path}: transparent, seen over white; others like it are not told"
    assert [record.message for record in caplog.records if str(path) in record.message] == [told]
    caplog.clear()
    for shown in (Image.new("RGBA", (32, 32)), Image.new("CMYK", (32, 32)), Image.new("RGBA", (32, 32), "red")):
        everything.vary(picture=shown, seed=0, steps=1)
    assert [record.message for record in caplog.records] == [
        "the picture: CMYK made RGB; others like it are not told"  # transparency was told before, and red is opaque
    ]


def test_a_model_that_cleans_small_pictures_is_not_held_to_them() -> None:
    cleaning = built({"small": {**CONDITIONERS["small"], "plain": False}})
    settings: dict[str, Any] = {"picture": noise(8, 8), "seed": 0, "steps": 2}
    made, held, free = (
        cleaning.upscale(**more, **settings)[0] for more in ({}, {"consistent": True}, {"consistent": False})
    )
    assert np.array_equal(array(made), array(free))
    assert far(made, held) > 0


def test_what_is_unsaid_is_the_same_on_both_sides_of_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    """In windows too: a canvas that is all hole, cut, is no window that is all hole."""
    model = built({"hole": {"kind": "masked", "dropout": 0.0}, "label": {"kind": "label", "labels": ["a", "b"]}})
    seen, steer = list[Any](), walking.steer

    def watched(whole: LatentDiffusion, given: Any, other: Any, *rest: Any) -> Any:
        seen.append((given, other if other is not None else whole.conditions.null(1)))
        return steer(whole, given, other, *rest)

    monkeypatch.setattr(walking, "steer", watched)
    model.panorama(width=96, label="a", guidance=4.0, seed=0, steps=1)
    assert len(seen) > 2
    for given, against in seen:
        torch.testing.assert_close(given.image, against.image)
        assert not torch.equal(given.vector, against.vector)


def test_a_level_and_consistency_exclude_each_other(everything: Pipeline) -> None:
    with pytest.raises(ValueError, match="leave consistent out"):
        everything.upscale(picture=noise(8, 8), level=0.4, consistent=True, seed=0, steps=1)
    picture = everything.upscale(picture=noise(8, 8), level=0.4, seed=0, steps=1)[0]
    assert json.loads(picture.info["sfumato"])["consistent"] is False


def test_inversion_takes_no_sampler_that_it_would_not_use(nothing: Pipeline) -> None:
    with pytest.raises(ValueError, match="comes back by ddim"):
        nothing.vary(picture=noise(16, 16), invert=True, sampler="deis", seed=0, steps=1)


def test_a_strip_of_a_map_is_a_strip(everything: Pipeline) -> None:
    size = everything.model.size
    strip = Image.new("L", (10 * size, size))
    assert everything.semantic(map=strip, width=4, seed=0, steps=1)[0].size == (4, 1)


def test_texts_that_are_no_utf8_are_told(everything: Pipeline) -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        everything.generate(prompt="a \udcff cat", seed=0, steps=1)


def test_boxes_that_were_always_told_are_planned_or_said() -> None:
    small = {"width": 16, "heads": 2}
    boxes = {"kind": "boxes", "labels": ["cat"], "most": 2, "dropout": 0.0, "always": True, "planner": small, **small}
    model = built({"caption": {"kind": "text", "layers": 1, **small}, "layout": boxes}, learned=["a cat"])
    assert model.generate(prompt="a cat", seed=0, steps=1)
    assert model.layout(boxes=[("cat", 0, 0, 1, 1)], seed=0, steps=1)
    for said in ({"plan": False}, {"width": 48}):
        with pytest.raises(ValueError, match="this model was told boxes"):
            model.generate(prompt="a cat", seed=0, steps=1, **said)


BIRD = [("cat", np.float32(0.125), np.float32(0.25), np.float32(0.5), np.float32(1.0))]


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("generate", {"label": np.int64(1), "boxes": BIRD}),
        ("vary", {"picture": noise(32, 24), "strength": 0.5}),
        ("inpaint", {"picture": noise(32, 32), "mask": hole(32, 32, (4, 4, 20, 20))}),
        ("upscale", {"picture": noise(8, 8)}),
        ("layout", {"boxes": [{"label": "cat", "box": np.array([0.125, 0.25, 0.5, 1.0])}]}),
        ("panorama", {"width": 48}),
    ],
)
def test_the_settings_in_a_picture_make_it_again(
    everything: Pipeline, task: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    made = getattr(everything, task)(**fields, seed=3, count=2, steps=2)[1]
    metadata.save(made, tmp_path / "a.png")
    told = metadata.read(tmp_path / "a.png")
    assert f"Size: {made.size[0]}x{made.size[1]}" in made.info["parameters"]
    assert told.pop("task") == task
    for name in ("model", "model_hash", "version"):
        told.pop(name)
    given = {name: fields[name] for name in ("picture", "mask") if name in fields}
    again = getattr(everything, task)(**{**told, **given})[0]
    assert far(again, made) < 0.05
