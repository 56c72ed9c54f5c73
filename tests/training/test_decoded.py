"""The estimate as a picture: where it is looked at, what counts, and that it teaches the denoiser."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from sfumato.autoencoder.codec import Codec
from sfumato.conditioning.base import Latents
from sfumato.conditioning.bundle import Bundle
from sfumato.conditioning.masked import MaskedConfig
from sfumato.data import loader
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.prediction import prediction
from sfumato.diffusion.schedule import ScheduleConfig
from sfumato.features.perceptual import Perceptual
from sfumato.training import recipe, run
from sfumato.training.decoded import Decoded
from sfumato.training.diffusion import Denoising
from sfumato.training.recipe import DecodedConfig
from tests.conftest import SHORT, diffusion_recipe

CPU = torch.device("cpu")


class Plain(Perceptual):
    """The mean square error, as a distance."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().flatten(1).mean(1)


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Fields of a distance that needs no file."""
    from sfumato.features.torchscript import ScriptConfig

    monkeypatch.setattr(ScriptConfig, "build", lambda self: Plain())
    return {"kind": "torchscript", "network": "none.pt"}


def decoded(looking: dict[str, Any], codec: Codec, side: int = 8, **settings: Any) -> Decoded:
    return Decoded(DecodedConfig.model_validate({"perceptual": looking, "places": 2, **settings}), codec, side)


def objective_of(first_stage: Path, folder: Path, **settings: Any) -> Denoising:
    asked = diffusion_recipe(first_stage).model_copy(update={"decoded": DecodedConfig.model_validate(settings)})
    torch.manual_seed(0)
    objective = run.denoising(asked, folder / "run", CPU)
    for p in objective.model.denoiser.parameters():
        p.data += 0.02  # a fresh network's zeroed branches hide gradients
    return objective


@pytest.mark.parametrize("kind", ["clean", "noise", "v", "flow", "edm"])
def test_the_estimate_that_is_told_is_the_denoiser_s(kind: Any) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    schedule = ScheduleConfig.model_validate({"kind": "linear"}).build()
    denoiser = Denoiser(lambda x, t, cond: conv(x), schedule, prediction(kind))  # type: ignore[arg-type]
    x_0, eps, t = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6), torch.tensor([0.1, 0.5, 0.9])
    alpha, sigma = schedule(t).like(x_0)
    loss, estimate = denoiser.told(x_0, t, eps)
    torch.testing.assert_close(estimate, denoiser(alpha * x_0 + sigma * eps, t))
    torch.testing.assert_close(loss, denoiser.loss(x_0, t, eps))


def test_crops_lie_about_the_hole_and_everywhere_where_nothing_is_given(looking: dict[str, Any], codec: Codec) -> None:
    look = decoded(looking, codec)
    pictures = torch.rand(40, 3, 64, 64)
    hole = torch.zeros(1, 64, 64)
    hole[:, 3, 60] = 1
    rows = range(40)
    about = look.crops(pictures, rows, [hole] * 40, 0, rows)
    assert set(about.corners) == {(0, 6)}
    assert about.made.sum((1, 2, 3)).tolist() == [1.0] * 40
    torch.testing.assert_close(about.pictures, pictures[:, :, :16, 48:])
    anywhere = look.crops(pictures, rows, [None] * 40, 0, rows)
    assert {y for y, _ in anywhere.corners} == {x for _, x in anywhere.corners} == set(range(7))
    assert bool(anywhere.made.all())
    assert look.crops(pictures, rows, [torch.ones(1, 64, 64)] * 40, 0, rows).corners == anywhere.corners
    few = look.crops(pictures[5:7], [5, 6], [None] * 40, 0, rows)
    assert few.corners == anywhere.corners[5:7]
    none = look.crops(pictures, rows, [torch.zeros(1, 64, 64)] * 40, 0, rows)
    assert float(none.made.max()) == 0


@torch.no_grad()
def test_what_is_given_does_not_count_and_what_is_made_does(looking: dict[str, Any], codec: Codec) -> None:
    look = decoded(looking, codec)
    pictures = torch.rand(4, 3, 64, 64) * 2 - 1
    estimate = torch.randn(4, 4, 8, 8)
    hole = torch.zeros(1, 64, 64)
    hole[:, :8, :8] = 1
    crops = look.crops(pictures, range(4), [hole] * 4, 0, range(4))
    found = look(codec, estimate, crops)
    y, x = crops.corners[0]
    whole = codec.autoencoder.decode(codec.unwhitened(estimate))
    assert (y, x) == (0, 0)
    far = (whole - pictures)[:, :, :8, :8].square().sum((1, 2, 3)) / (3 * 16 * 16)
    assert float(found) == pytest.approx(float(far.mean()), rel=0.2)  # a crop is decoded without its surroundings
    none = crops._replace(made=torch.zeros_like(crops.made))
    assert float(look(codec, estimate, none)) == 0


def test_all_parts_of_a_batch_make_its_mean(looking: dict[str, Any], first_stage: Path, tmp_path: Path) -> None:
    objective = objective_of(first_stage, tmp_path, perceptual=looking, places=2, every=3)
    turn = objective.turns["denoiser"]
    whole = turn(objective.batch(range(12)))
    parts = [turn(objective.batch(range(k, 12, 4))) for k in range(4)]
    assert set(whole) == {"loss", "denoising", "perceptual"}
    assert float(whole["perceptual"]) > 0
    for name, value in whole.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), value)
    every = objective_of(first_stage, tmp_path, perceptual=looking, places=2)
    those = every.turns["denoiser"](every.batch(range(0, 12, 3)))
    torch.testing.assert_close(whole["perceptual"], those["perceptual"])
    none = turn(objective.batch([1, 2]))
    assert (float(none["perceptual"]), set(none)) == (0.0, set(whole))


def test_the_distance_teaches_the_denoiser_and_no_first_stage(
    looking: dict[str, Any], first_stage: Path, tmp_path: Path
) -> None:
    def gradient(weight: float) -> Tensor:
        objective = objective_of(first_stage, tmp_path, perceptual=looking, weight=weight)
        found = objective.turns["denoiser"](objective.batch(range(8)))
        torch.testing.assert_close(found["loss"].detach(), found["denoising"] + weight * found["perceptual"])
        found["loss"].backward()
        assert all(p.grad is None for p in objective.model.codec.parameters())
        weights = objective.model.denoiser.parameters()
        return torch.cat([p.grad.flatten() for p in weights if p.grad is not None])

    one, two, four = (gradient(w) for w in (1.0, 2.0, 4.0))
    assert float((two - one).norm()) > 1e-3 * float(one.norm())
    torch.testing.assert_close(four - two, 2 * (two - one), rtol=1e-3, atol=1e-6)


def test_mirrored_pictures_are_compared_with_their_own_latents(
    looking: dict[str, Any], first_stage: Path, tmp_path: Path
) -> None:
    """What a picture's latents decode to lies near the picture as it is shown, and not near its mirror image."""
    objective = objective_of(first_stage, tmp_path, perceptual=looking)
    batch = objective.batch(range(32))
    assert batch.crops is not None
    training = objective.recipe.training
    plan = loader.plan(objective.train, training.seed, range(32), training.flip, ())
    assert set(plan.flips) == {False, True}
    shown = [
        objective.train.image(k).flip(-1) if flip else objective.train.image(k)
        for k, flip in zip(plan.indices, plan.flips, strict=True)
    ]
    assert torch.equal(batch.crops.pictures, torch.stack(shown).float() / 127.5 - 1)
    made = objective.model.codec.decode(batch.latents)
    own = (made - batch.crops.pictures).square().mean((1, 2, 3))
    other = (made - batch.crops.pictures.flip(-1)).square().mean((1, 2, 3))
    assert float(own.mean()) < float(other.mean())
    assert torch.equal(batch.latents, objective.batch(range(32)).latents)


def test_what_a_masked_picture_leaves_open_is_told_unless_it_is_dropped(codec: Codec) -> None:
    latents: Latents = codec
    bundle = Bundle({"hole": MaskedConfig().build({}, latents)})
    picture, mask = torch.zeros(3, 16, 16), torch.zeros(16, 16)
    mask[4:8] = 1
    found = bundle.unknown(
        {"masked": [(picture, mask), (picture, mask), None]}, 3, torch.tensor([[0], [1], [0]]).bool()
    )
    assert found[0] is not None
    assert torch.equal(found[0], mask[None])
    assert found[1:] == [None, None]


def test_a_recipe_of_holes_trains_with_it_and_its_loss_is_logged(
    looking: dict[str, Any], first_stage: Path, tmp_path: Path
) -> None:
    fields = yaml.safe_load(yaml.safe_dump(diffusion_recipe(first_stage).model_dump(mode="json")))
    fields |= {
        "conditioners": {"hole": {"kind": "masked", "dropout": 0.0}},
        "data": {"kind": "emoji", "size": 32, "masks": {}},
        "decoded": {"perceptual": looking, "places": 2, "every": 2},
        "training": {**SHORT, "images": 32, "report": 32},
        "cache": False,
    }
    folder = run.train(recipe.parse(fields), tmp_path / "holes", device="cpu", quiet=True)
    assert (folder / "model.yaml").is_file()
    text = (tmp_path / "holes" / "metrics.jsonl").read_text(encoding="utf-8")
    assert '"perceptual"' in text
