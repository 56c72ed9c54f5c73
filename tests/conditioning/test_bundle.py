"""All conditioners in one model: doors joined, draws apart, windows, gradients, the folder, a few steps of training."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.conditioning.base import ConditionerConfig, Draws
from sfumato.diffusion.combinators import tiled
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.training.diffusion import DenoiserTurn, Noisy
from sfumato.windows import Window

CONDITIONERS: dict[str, dict[str, Any]] = {
    "caption": {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 60},
    "class": {"kind": "label", "width": 6, "labels": ("cat", "dog", "car")},
    "layout": {"kind": "boxes", "width": 12, "heads": 2, "labels": ("cat", "dog")},
    "semantic": {"kind": "map", "width": 3, "classes": 3, "stages": 1},
    "small": {"kind": "lowres", "width": 2, "told": 8},
    "again": {"kind": "lowres", "width": 2, "told": 8},
    "hole": {"kind": "masked"},
    "picture": {"kind": "reference", "embedding": 5, "width": 4},
    "near": {"kind": "reference", "field": "near", "embedding": 5, "width": 4, "door": "tokens"},
}
NETWORKS: list[dict[str, Any]] = [
    {"kind": "unet", "width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2], "groups": 8},
    {"kind": "dit", "width": 16, "depth": 1, "heads": 2},
]


def configured() -> tuple[dict[str, ConditionerConfig], dict[str, dict[str, str]]]:
    found, texts = {}, {}
    for name, fields in CONDITIONERS.items():
        config = ConditionerConfig.model_validate(fields)
        found[name], texts[name] = config.learn([["a red cat", "a dog"]] if name == "caption" else [], ())
    return found, texts


def fields(side: int = 32) -> dict[str, list[Any]]:
    """Two examples, of which all is said of the first and every second thing of the other."""
    rng = torch.Generator().manual_seed(0)
    hole = torch.zeros(side, side)
    hole[: side // 2] = 1
    said: dict[str, list[Any]] = {
        "caption": ["a red cat", "a dog"],
        "label": [["cat", "car"], None],
        "boxes": [[("cat", 0.1, 0.1, 0.4, 0.4), ("dog", 0.5, 0.5, 0.9, 0.8)], [("dog", 0.5, 0.5, 0.9, 0.8)]],
        "map": [torch.randint(0, 3, (side, side), generator=rng), None],
        "lowres": [torch.rand(3, side // 4, side // 4, generator=rng) for _ in range(2)],
        "masked": [(torch.rand(3, side, side, generator=rng), hole), None],
        "reference": [torch.rand(5, generator=rng), None],
        "near": [torch.rand(3, 5, generator=rng), torch.rand(2, 5, generator=rng)],
    }
    return said


def whole(codec: Any, backbone: dict[str, Any]) -> LatentDiffusion:
    torch.manual_seed(0)
    conditioners, texts = configured()
    config = DiffusionConfig.model_validate({"backbone": backbone, "conditioners": conditioners})
    return LatentDiffusion(codec, config, 32, texts).eval()


def woken(model: LatentDiffusion) -> LatentDiffusion:
    """The model with weights that are nowhere zero."""
    torch.manual_seed(1)
    for parameter in [*model.denoiser.parameters(), *model.conditions.parameters()]:
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_all_doors_are_as_wide_as_their_conditioners(codec: Any) -> None:
    bundle = whole(codec, NETWORKS[0]).conditions
    assert bundle.sizes == (16 + 6 + 8 + 8 + 4, 16, 3 + 2 + 2 + 4 + 1)
    c = bundle(fields(), 2)
    null = bundle.null(2)
    for given, nothing, width in ((c.vector, null.vector, 42), (c.tokens, null.tokens, 16), (c.image, null.image, 12)):
        assert given is not None
        assert nothing is not None
        assert given.shape[0] == nothing.shape[0] == 2
        assert width in (given.shape[-1], given.shape[1])
    assert c.image is not None
    assert null.image is not None
    assert c.image.shape == null.image.shape == (2, 12, 4, 4)
    assert c.mask is not None
    assert c.mask.sum(1)[0] > c.mask.sum(1)[1]
    larger = {k: v for k, v in fields(64).items() if k in ("map", "lowres", "masked")}
    assert bundle(larger, 2, size=(8, 8)).image.shape == (2, 12, 8, 8)
    assert bundle({}, 2, size=(5, 9)).image.shape == (2, 12, 5, 9)


def test_each_draws_apart_and_only_from_its_position(codec: Any) -> None:
    bundle, said = whole(codec, NETWORKS[0]).conditions, fields()
    bundle.load_state_dict({k: bundle.state_dict()[k.replace(".again.", ".small.")] for k in bundle.state_dict()})
    noisy = bundle(said, 2, draws=Draws.training(0, [5, 6]), augment=True).image
    assert not torch.equal(noisy[:, 3:5], noisy[:, 5:7])  # two of one kind, with the same weights and values
    turned = bundle({k: v[::-1] for k, v in said.items()}, 2, draws=Draws.training(0, [6, 5]), augment=True).image
    torch.testing.assert_close(turned.flip(0), noisy)
    assert torch.equal(bundle(said, 2).image[:, 3:5], bundle(said, 2).image[:, 5:7])  # without noise they are the same
    with pytest.raises(ValueError, match="draws for 1 examples, and there are 2"):
        bundle(said, 2, draws=Draws.training(0, [5]))


def test_an_empty_list_says_nothing(codec: Any) -> None:
    bundle = whole(codec, NETWORKS[0]).conditions
    said, null = bundle({"boxes": [[]], "label": [[]], "caption": [" "]}, 1), bundle.null(1)
    for a, b in zip(said.parts(), null.parts(), strict=True):
        assert torch.equal(a, b)


def test_mirrored_fields_are_those_of_mirrored_pictures(codec: Any) -> None:
    bundle, said = whole(codec, NETWORKS[0]).conditions, fields()
    turned = bundle.mirrored({**said, "name": ["a", "b"]}, [True, False])
    assert turned["boxes"][0][0][1:] == pytest.approx((0.6, 0.1, 0.9, 0.4))
    assert turned["boxes"][1] is said["boxes"][1]
    assert torch.equal(turned["map"][0], said["map"][0].flip(-1))
    assert torch.equal(turned["lowres"][0]["picture"], said["lowres"][0].flip(-1))
    assert torch.equal(turned["masked"][0][0], said["masked"][0][0].flip(-1))
    assert turned["caption"] == said["caption"]
    assert turned["name"] == ["a", "b"]
    assert bundle.mirrored(said, [False, True])["map"][1] is None


def test_a_window_has_the_images_and_boxes_of_its_part(codec: Any) -> None:
    bundle, said, window = whole(codec, NETWORKS[0]).conditions, fields(64), Window(4, 2, 4, 4)
    canvas, part = bundle(said, 2, size=(8, 8)), bundle(said, 2, size=(8, 8), window=window)
    assert torch.equal(part.image, window.crop(canvas.image))
    assert torch.equal(part.vector, canvas.vector)
    assert part.tokens.shape[1] <= canvas.tokens.shape[1]
    assert not torch.equal(part.mask, canvas.mask)  # the cat is not in this part


@pytest.mark.parametrize("backbone", NETWORKS, ids=["unet", "dit"])
def test_gradients_reach_every_conditioner(codec: Any, backbone: dict[str, Any]) -> None:
    model = woken(whole(codec, backbone))
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([0.3, 0.7])
    drop = torch.zeros(2, len(CONDITIONERS), dtype=torch.bool)
    drop[1] = True
    batch = Noisy(x, t, torch.randn_like(x), fields(), drop, Draws.training(0, [0, 1]))
    DenoiserTurn(model)(batch)["loss"].backward()
    for name, parameter in [*model.conditions.named_parameters(), *model.denoiser.named_parameters()]:
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    assert all(p.grad is None for p in model.codec.parameters())


@pytest.mark.parametrize("backbone", NETWORKS, ids=["unet", "dit"])
def test_a_model_of_all_conditioners_comes_back_from_its_folder(
    codec: Any, backbone: dict[str, Any], tmp_path: Path
) -> None:
    model = woken(whole(codec, backbone))
    model.save(tmp_path)
    again, copied = LatentDiffusion.load(tmp_path), copy.deepcopy(model)
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([0.3, 0.7])
    with torch.no_grad():
        want = model.denoise(model.conditions(fields(), 2), scale=2.0)(x, t)
        assert want.isfinite().all()
        for other in (again, copied):
            assert torch.equal(other.denoise(other.conditions(fields(), 2), scale=2.0)(x, t), want)
        copied.codec.shift += 1
        assert not torch.equal(copied.conditions(fields(), 2).image, model.conditions(fields(), 2).image)


@torch.no_grad()
@pytest.mark.parametrize("backbone", NETWORKS, ids=["unet", "dit"])
def test_a_canvas_is_made_in_windows(codec: Any, backbone: dict[str, Any]) -> None:
    model, said = woken(whole(codec, backbone)), fields(64)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.5, 0.5])

    def at(window: Window) -> Any:
        return model.denoise(model.conditions(said, 2, size=(8, 8), window=window), scale=2.0)

    made = tiled(None, 8, 8, at=at)(x, t)
    torch.testing.assert_close(made, model.denoise(model.conditions(said, 2, size=(8, 8)), scale=2.0)(x, t))
    assert tiled(None, 4, 2, at=at)(x, t).shape == x.shape


def test_a_config_of_the_same_family_is_told_back_whole() -> None:
    for config in configured()[0].values():
        assert ConditionerConfig.model_validate(config.model_dump(mode="json")) == config
