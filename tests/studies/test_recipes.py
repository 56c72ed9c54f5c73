"""What studies train is of one size, whatever the latents."""

from pathlib import Path

import pytest

from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.studies import limits, recipes
from sfumato.training.recipe import parse

SIDE = 32


def weights(factor: int) -> int:
    stage = {"kind": "identity"} if factor == 1 else recipes.first("kl", factor)["autoencoder"]
    fields = recipes.denoiser(Path("stage"), **recipes.fitting(SIDE // factor))
    config = DiffusionConfig.model_validate({k: fields[k] for k in ("backbone", "schedule", "prediction")})
    model = LatentDiffusion(Codec(FirstStage.model_validate(stage)), config, SIDE, {})
    return sum(p.numel() for p in model.denoiser.parameters())


def test_denoisers_are_of_one_size_on_pixels_and_on_latents() -> None:
    several = [weights(f) for f in (1, 2, 4, 8, 16, 32)]
    assert max(several) < 1.2 * min(several)


@pytest.mark.parametrize(
    ("size", "factor", "channels"),
    [(16, 2, 2), (32, 2, 2), (64, 4, 3), (96, 4, 3), (132, 4, 3), (128, 8, 4), (256, 16, 16), (2048, 32, 64)],
)
def test_shared_latents_have_sixteen_places_a_side(size: int, factor: int, channels: int) -> None:
    coder = FirstStage.model_validate(recipes.latents(size)["autoencoder"]).coder
    assert (coder.factor, coder.channels) == (factor, channels)


def test_latents_of_few_steps_have_eight_places_of_four_channels() -> None:
    coder = FirstStage.model_validate(recipes.latents(SIDE, **limits.LATENTS)["autoencoder"]).coder
    assert (SIDE // coder.factor, coder.channels) == (8, 4)


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
def test_first_stages_have_the_published_channels(kind: str, factor: int) -> None:
    from sfumato.training.recipe import read

    fields = recipes.first(kind, factor)
    parse(
        {**fields, "data": {"kind": "emoji", "size": SIDE}, "training": {**fields["training"], "images": 64}}, "first"
    )
    if factor in (4, 8, 16) or (kind == "kl" and factor > 2):
        published = read(f"{kind}-f{factor}", ["data.path=."]).autoencoder
        assert fields["autoencoder"]["coder"]["channels"] == published.coder.channels
