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
from sfumato.features import lpips
from sfumato.features.perceptual import Perceptual
from sfumato.training import recipe, resumed, run
from sfumato.training.decoded import Decoded
from sfumato.training.diffusion import Denoising
from sfumato.training.memory import Needs
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
    monkeypatch.setattr(ScriptConfig, "present", lambda self, without: None)
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
    found = look(codec, estimate, crops, range(4))["perceptual"]
    y, x = crops.corners[0]
    whole = codec.autoencoder.decode(codec.unwhitened(estimate))
    assert (y, x) == (0, 0)
    far = (whole - pictures)[:, :, :8, :8].square().sum((1, 2, 3)) / (3 * 16 * 16)
    assert float(found) == pytest.approx(float(far.mean()), rel=0.2)  # a crop is decoded without its surroundings
    none = crops._replace(made=torch.zeros_like(crops.made))
    assert float(look(codec, estimate, none, range(4))["perceptual"]) == 0


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


JUDGE = {"width": 8, "layers": 1, "ramp": 16, "weight": 0.5, "matching": 2.0}


def test_a_critic_needs_no_network_and_is_listened_to_little_by_little(first_stage: Path, tmp_path: Path) -> None:
    objective = objective_of(first_stage, tmp_path, critic={**JUDGE, "start": 16, "r1": 0.1})
    denoiser, critic = (objective.turns[name] for name in ("denoiser", "critic"))
    batch = objective.recipe.training.batch
    steps = [range(k * batch, (k + 1) * batch) for k in range(0, 64 // batch, 16 // batch)]
    assert [objective.active("critic", step) for step in steps] == [False, True, True, True]
    told = []
    for step in steps:
        found = objective.batch(step)
        values = denoiser(found)
        told.append(values)
        if objective.active("critic", step):
            judged = critic(found)
            assert {"loss", "logits_real", "logits_fake", "r1"} == set(judged)
    assert not objective.decoded.kept  # type: ignore[union-attr]
    assert "denoising" not in told[0]  # before it begins it costs nothing, and the loss is that on latents
    assert "adversarial" not in told[1]
    for values in told[2:]:
        parts = values["denoising"] + 0.5 * values["adversarial"] + 2.0 * values["matching"]
        torch.testing.assert_close(values["loss"].detach(), parts)
    again = objective.batch(steps[2])
    half = denoiser(again._replace(crops=again.crops._replace(heed=0.5 * again.crops.heed)))
    torch.testing.assert_close(half["matching"], 0.5 * told[2]["matching"])
    assert objective.tuned("critic", objective.recipe.training).rate == pytest.approx(4e-4)
    assert objective.tuned("denoiser", objective.recipe.training) is objective.recipe.training


def test_the_critic_is_shown_what_the_denoiser_made_with_what_is_given_around_it(
    first_stage: Path, tmp_path: Path
) -> None:
    fields = yaml.safe_load(yaml.safe_dump(diffusion_recipe(first_stage).model_dump(mode="json")))
    fields |= {
        "conditioners": {"hole": {"kind": "masked", "dropout": 0.0}},
        "data": {"kind": "emoji", "size": 32, "masks": {"all": 0.0}},
        "decoded": {"critic": JUDGE},
    }
    torch.manual_seed(0)
    objective = run.denoising(recipe.parse(fields), tmp_path / "run", CPU)  # type: ignore[arg-type]
    batch = objective.batch(range(8))
    objective.turns["denoiser"](batch)
    pictures, made = objective.decoded.kept[tuple(range(8))]  # type: ignore[union-attr]
    assert torch.equal(pictures, batch.crops.pictures)  # type: ignore[union-attr]
    given = (batch.crops.made == 0).expand_as(made)  # type: ignore[union-attr]
    assert 0 < int(given.sum()) < given.numel()
    assert torch.equal(made[given], pictures[given])
    assert float((made - pictures)[~given].abs().mean()) > 0.05


def test_all_parts_of_a_batch_make_what_a_critic_says_and_learns(first_stage: Path, tmp_path: Path) -> None:
    objective = objective_of(first_stage, tmp_path, critic=JUDGE)
    turns = objective.turns

    def both(positions: range) -> dict[str, Tensor]:
        late = range(64 + positions.start, 64 + positions.stop)
        batch = objective.batch(late)
        return {f"{name} {key}": v for name in turns for key, v in turns[name](batch).items()}

    whole, parts = both(range(8)), [both(range(k, k + 4)) for k in (0, 4)]
    assert {"denoiser adversarial", "denoiser matching", "critic loss"} <= set(whole)
    for name, value in whole.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), value, rtol=1e-4, atol=1e-5)


def test_a_critic_teaches_the_denoiser_and_the_denoiser_no_critic(first_stage: Path, tmp_path: Path) -> None:
    def gradient(**critic: float) -> Tensor:
        objective = objective_of(first_stage, tmp_path, critic={**JUDGE, **critic})
        denoiser = list(objective.model.denoiser.parameters())
        found = objective.turns["denoiser"](objective.batch(range(64, 72)))
        found["loss"].backward(inputs=denoiser)
        for module in (objective.model.codec, objective.decoded.critic):  # type: ignore[union-attr]
            assert all(p.grad is None for p in module.parameters())  # type: ignore[union-attr]
        learned = list(objective.learned("critic")[0].parameters())
        objective.turns["critic"](objective.batch(range(64, 72)))["loss"].backward()
        assert all(
            p.grad is not None and (bool(p.grad.any()) or p.ndim == 1) for p in learned
        )  # last bias: real and fake cancel
        return torch.cat([p.grad.flatten() for p in denoiser if p.grad is not None])

    none, opinion, maps = gradient(weight=0, matching=0), gradient(weight=1, matching=0), gradient(weight=0, matching=1)
    for one in (opinion, maps):
        assert float((one - none).norm()) > 1e-3 * float(none.norm())
    assert float((opinion - maps).norm()) > 1e-3 * float(none.norm())


def test_a_run_with_a_critic_goes_on_to_the_same_bits(first_stage: Path, tmp_path: Path) -> None:
    from sfumato import files

    training = {"batch": 8, "images": 48, "checkpoint": 24, "optimizer": "adamw", "warmup": 0.0}
    asked = diffusion_recipe(first_stage, **training).model_copy(
        update={"decoded": DecodedConfig.model_validate({"critic": {**JUDGE, "start": 8}})}
    )

    def weights(name: str, *, halted: bool = False) -> dict[str, Tensor]:
        folder = tmp_path / name
        if halted:
            run.train(asked, folder, device="cpu", quiet=True)
            for gone in ("state/000000048", "published"):
                path = folder / gone
                path.rename(tmp_path / f"gone-{path.name}")
        run.train(asked, folder, device="cpu", quiet=True, resume=halted)
        return files.load_tensors(folder / "state" / "000000048" / "weights.safetensors")

    whole, resumed = weights("whole"), weights("halted", halted=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "neither perceptual nor critic"),
        ({"critic": {}, "every": 2}, "judges every example"),
    ],
)
def test_what_is_compared_by_nothing_and_a_critic_that_sees_some_are_refused(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        DecodedConfig.model_validate(settings)


def test_crops_too_small_for_a_critic_are_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="the critic needs 24"):
        Decoded(DecodedConfig.model_validate({"critic": {"layers": 3}, "places": 2}), codec, 8)


def test_a_missing_network_is_told_before_pictures_are_looked_at(first_stage: Path, tmp_path: Path) -> None:
    network = {"kind": "lpips", "network": "weights/squeezenet1_1-b8a52dc0.pth"}
    asked = diffusion_recipe(first_stage).model_copy(
        update={"decoded": DecodedConfig.model_validate({"perceptual": network})}
    )
    with pytest.raises(ValueError, match=r"`sfumato fetch squeezenet` gets it, .* or do without: decoded=null"):
        run.train(asked, tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "latents").exists()


def test_what_a_critic_needs_of_memory_is_told(first_stage: Path, tmp_path: Path) -> None:
    def needed(**critic: Any) -> Needs:
        decoded = DecodedConfig.model_validate({"critic": {**JUDGE, **critic}})
        return run.needed(diffusion_recipe(first_stage).model_copy(update={"decoded": decoded}), tmp_path / "run", CPU)

    few, many = needed(width=8), needed(width=32)
    assert many.weights > few.weights
    assert many.learned > few.learned


def test_the_critic_s_rate_may_be_lowered_when_a_run_goes_on(
    first_stage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def asked(images: int, **critic: Any) -> recipe.DiffusionRecipe:
        decoded = DecodedConfig.model_validate({"critic": {**JUDGE, **critic}})
        return diffusion_recipe(first_stage, batch=8, images=images).model_copy(update={"decoded": decoded})

    run.train(asked(8), tmp_path / "run", device="cpu", quiet=True)
    run.train(asked(16, rate=1e-5), tmp_path / "run", device="cpu", quiet=True, resume=True)
    assert "goes on with decoded.critic.rate=1e-05; until now it was 0.0004" in caplog.text
    with pytest.raises(ValueError, match="holds another recipe"):
        run.train(asked(16, width=16), tmp_path / "run", device="cpu", quiet=True, resume=True)


def test_a_run_of_before_goes_on_with_the_heads_that_are_installed(first_stage: Path, tmp_path: Path) -> None:
    heads = tmp_path / "vgg.pth"
    heads.write_bytes(lpips.published("VGG16").read_bytes())
    for path, alike in ((heads, True), (first_stage / "model.yaml", False), (tmp_path / "gone.pth", False)):
        for one, other in ((str(path), None), (None, str(path))):
            assert resumed._alike({"heads": one}, {"heads": other}) is alike
    assert resumed._alike({"heads": None}, {"heads": None})
    assert not resumed._alike({"heads": 4}, {"heads": None})  # of attention
