"""The first stage's objective: each defect of the scripts that people use today is a test here."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sfumato import device as devices
from sfumato import files
from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.vq import VQAutoencoder
from sfumato.features.perceptual import Perceptual
from sfumato.training import checkpoint, discriminator
from sfumato.training.autoencoder import Balance, Coder, Pictures, Reconstruction, last_layer, stack
from sfumato.training.critic import CriticConfig
from sfumato.training.discriminator import PatchDiscriminator, coder_loss, critic_loss, gradient_penalty
from sfumato.training.loop import Loop
from sfumato.training.recipe import AutoencoderRecipe, Recipe, ReconstructionConfig
from sfumato.training.run import reconstruction, train
from tests.conftest import CODER, adversarial_recipe, autoencoder_recipe
from tests.training import several

CPU = torch.device("cpu")
CRITIC: dict[str, Any] = {"width": 8, "layers": 2, "ramp": 1, "rate": 0.002}


class Blur(Perceptual):
    """A perceptual distance without a file: between averages of 4 x 4 pixels."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(a - b, 4).square().flatten(1).mean(1)


def objective_of(recipe: AutoencoderRecipe) -> Reconstruction:
    torch.manual_seed(0)
    objective = reconstruction(recipe, CPU)
    for p in objective.codec.autoencoder.parameters():
        p.data += 0.02  # a fresh network's zeroed branches hide gradients
    return objective


def loop_of(recipe: AutoencoderRecipe, lanes: int = 1, dtype: torch.dtype = torch.float32) -> Loop:
    objective = objective_of(recipe)
    for module in objective.turns.values():
        module.to(dtype)
    loop = Loop(objective, recipe.training, Path(), "", CPU, dtype, quiet=True)
    loop.lanes = lanes
    loop.ahead = loop._ahead()  # which cuts a step into as many parts
    return loop


def gradients(modules: Any) -> list[Tensor]:
    return [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]


def test_the_perceptual_term_gives_a_gradient() -> None:
    objective = objective_of(autoencoder_recipe({"l1": 0.0, "l2": 0.0, "kl": 0.0}))
    objective.coder.perceptual = Blur()
    objective.coder.weights = objective.coder.weights.model_copy(update={"perceptual_weight": 1.0})
    found = objective.coder(objective.batch(range(4)))
    found["loss"].backward()
    assert max(float(g.abs().max()) for g in gradients([objective.codec.autoencoder])) > 0
    torch.testing.assert_close(found["loss"].detach(), found["perceptual"])


def test_weights_stay_in_float32_under_mixed_precision(tmp_path: Path) -> None:
    """As they lie in the files: those of the coder, its averages, the critic, and both optimisers."""
    folder = train(adversarial_recipe(images=64, precision="bf16"), tmp_path / "run", device="cpu", quiet=True)
    last = checkpoint.found(tmp_path / "run" / "state")[-1]
    held = {path.name: path for path in last.glob("*.safetensors")}
    assert set(held) == {f"{n}.safetensors" for n in ("weights", "averages", "optimizer-coder", "optimizer-critic")}
    for path in (*held.values(), folder / "weights.safetensors"):
        with safe_open(path, "pt") as opened:
            assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"F32"}, path  # noqa: SIM118
        tensors = files.load_tensors(path)
        finer = [name for name, t in tensors.items() if not torch.equal(t, t.bfloat16().float())]
        assert len(finer) > len(tensors) / 3, path  # masters, not half-precision weights that were widened


@pytest.mark.parametrize("critic", [{}, {"loss": "non_saturating"}, {"loss": "logistic"}, {"adaptive": False}])
@pytest.mark.parametrize("variance", [False, True])
def test_one_way_back_through_the_critic_is_the_gradient_of_the_sum(critic: dict[str, Any], variance: bool) -> None:
    weights: dict[str, Any] = {"variance": variance, "critic": {**CRITIC, **critic}}
    objective = objective_of(autoencoder_recipe(weights))
    coder, balance = objective.coder, objective.coder.balance
    coder.perceptual = Blur()
    balance.lengths.copy_(torch.tensor([2.0, 0.5]))
    balance.log_variance.data.fill_(0.3)
    batch = objective.batch(range(8, 14))._replace(heed=torch.linspace(0, 1, 6), heeded=True)
    found = coder(batch)
    found["loss"].backward()
    got = gradients([objective.codec.autoencoder, balance])
    for p in [*objective.codec.autoencoder.parameters(), *balance.parameters()]:
        p.grad = None

    encoded, rebuilt = objective.codec.autoencoder.rebuild(batch.images, batch.noise)
    error = coder.compare(rebuilt, batch.images, {})
    assert coder.critic is not None
    assert coder.weights.critic is not None
    opinions = coder_loss(coder.weights.critic.loss, coder.critic.judge(rebuilt))
    opinion = (batch.heed * opinions).mean()
    weight = 0.5 * (4.0 if coder.weights.critic.adaptive else 1.0)
    last = last_layer(objective.codec)
    (slope,) = torch.autograd.grad(error, last, retain_graph=True)
    (push,) = torch.autograd.grad(opinions.mean(), last, retain_graph=True)  # of the whole: the ramp comes after
    whole = error + weight * opinion + coder.weights.kl * encoded.penalty.mean()
    whole.backward()
    torch.testing.assert_close(found["loss"], whole)
    for a, b in zip(got, gradients([objective.codec.autoencoder, balance]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    if coder.weights.critic.adaptive:
        torch.testing.assert_close(found["slope"], slope, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found["push"], push, rtol=1e-3, atol=1e-6)
    else:
        assert "slope" not in found


def test_the_adversarial_share_of_the_gradient_follows_the_ramp() -> None:
    objective = objective_of(autoencoder_recipe({"kl": 0.0, "critic": {**CRITIC, "weight": 0.5}}))
    coder, last, whole = objective.coder, last_layer(objective.codec), objective.batch(range(6))
    shares = []
    for heed in (0.04, 0.25, 1.0):
        coder.balance.lengths.zero_()
        at: list[Tensor] = []
        for listened in (heed, heed, 0.0):  # the first only measures, the second has a weight, the third no critic
            found = coder(whole._replace(heed=torch.full((6,), listened), heeded=listened > 0))
            if "slope" in found:
                coder.balance.settle(found["slope"], found["push"])
            at += torch.autograd.grad(found["loss"], last)
        shares.append(float((at[1] - at[2]).norm() / at[2].norm()))
    assert shares == pytest.approx([0.02, 0.125, 0.5], rel=1e-3)


def test_latents_are_measured_over_the_whole_training_part(first_stage: Path) -> None:
    codec, part = Codec.load(first_stage), autoencoder_recipe().data.open("train")
    with torch.no_grad():
        means, variances = codec.moments(stack(part, range(len(part)))).double().chunk(2, 1)
    shift = means.mean((0, 2, 3))
    scale = (means.var((0, 2, 3), correction=0) + variances.exp().mean((0, 2, 3))).sqrt()
    torch.testing.assert_close(codec.shift.double(), shift, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codec.scale.double(), scale, rtol=1e-5, atol=1e-6)


def test_the_output_variance_learns() -> None:
    loop = loop_of(autoencoder_recipe({"variance": True}, warmup=0.0))
    assert isinstance(loop.objective, Reconstruction)
    balance = loop.objective.coder.balance
    for step in range(3):
        loop.step(range(16 * step, 16 * step + 16))
    assert float(balance.log_variance.detach().abs()) > 1e-4
    fixed = Balance(False)
    assert not any(p.requires_grad for p in fixed.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_both_turns_are_the_same_however_a_batch_is_split(kind: str) -> None:
    found = []
    for lanes, accumulate in ((1, 1), (2, 1), (1, 3), (2, 2)):
        critic = {**CRITIC, "r1": 0.1}
        autoencoder = {} if kind == "kl" else {"kind": "vq", "codebook": {"size": 32}}
        recipe = autoencoder_recipe(
            {"critic": critic}, autoencoder, accumulate=accumulate, optimizer="adamw", warmup=0.0
        )
        loop = loop_of(recipe, lanes, torch.float64)
        before = {k: v.clone() for k, v in loop.modules.state_dict().items()}
        advance(loop, 3)
        assert isinstance(loop.objective, Reconstruction)
        assert float(loop.objective.coder.balance.lengths.min()) > 0
        found.append({k: v.clone() for k, v in loop.modules.state_dict().items()})
        weights = [p for p in found[-1] if p.endswith("weight")]
        assert min(float((found[-1][p] - before[p]).abs().max()) for p in weights) > 1e-3
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(value, other[name], rtol=1e-6, atol=1e-8, msg=name)


def test_nothing_is_paid_before_the_critic_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    judge = PatchDiscriminator.judge

    def counted(self: PatchDiscriminator, pictures: Tensor) -> Tensor:
        calls.append(len(pictures))
        return judge(self, pictures)

    monkeypatch.setattr(PatchDiscriminator, "judge", counted)
    loop = loop_of(autoencoder_recipe({"critic": {**CRITIC, "start": 32, "ramp": 64}}))
    assert isinstance(loop.objective, Reconstruction)
    critic = loop.objective.coder.critic
    assert critic is not None
    before = [p.detach().clone() for p in critic.parameters()]
    loop.step(range(16))
    loop.step(range(16, 32))
    assert calls == []
    assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))
    assert "adversarial" not in loop.sums
    loop.step(range(32, 48))
    assert sum(calls) > 0
    assert not torch.equal(before[0], next(critic.parameters()))
    assert loop.counts["loss"] == 3
    assert loop.counts["critic_loss"] == 1
    heed = [float(loop.objective.batch([p]).heed) for p in (0, 32, 64, 79, 96, 1000)]
    assert heed == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


def test_whether_the_critic_is_heeded_is_told_where_the_batch_is_made() -> None:
    """An accelerator that is asked for it has to be waited for, in every step."""
    objective = objective_of(autoencoder_recipe({"critic": {**CRITIC, "start": 16, "ramp": 32}}))
    assert [objective.batch([p]).heeded for p in (0, 16, 31, 32, 100)] == [False, False, False, True, True]
    unread = objective.batch(range(4))._replace(heed=torch.empty(4, device="meta"))  # whose values nobody can tell
    found = objective.coder(unread)
    assert "adversarial" not in found
    assert bool(found["loss"].isfinite())


def test_the_adaptive_weight_is_finite_and_bounded() -> None:
    balance, critic = Balance(False), CriticConfig(weight=0.5, largest=10.0)
    assert float(balance.weight(critic)) == 0  # nothing was measured yet
    balance.settle(torch.ones(4), torch.zeros(4))  # a fresh critic whose opinion is flat
    assert float(balance.weight(critic)) == 0
    balance.settle(torch.ones(4), torch.full((4,), 1e-20))
    assert float(balance.weight(critic)) == 5.0
    before = balance.lengths.clone()
    for bad in (float("nan"), float("inf")):
        balance.settle(torch.full((4,), bad), torch.ones(4))
        balance.settle(torch.ones(4), torch.full((4,), bad))
    assert torch.equal(balance.lengths, before)
    for _ in range(200):
        balance.settle(torch.full((4,), 3.0), torch.ones(4))
    assert abs(float(balance.weight(critic)) - 1.5) < 1e-3


def test_the_critic_s_losses_are_their_formulas() -> None:
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 0.25]])
    assert float(critic_loss("hinge", real, fake)) == pytest.approx(0.5 * (0.25 + 0.625))
    log = (torch.sigmoid(real).log() + torch.sigmoid(-fake).log()).mean()
    assert float(critic_loss("logistic", real, fake)) == pytest.approx(-0.5 * float(log))
    assert float(coder_loss("hinge", fake)) == float(coder_loss("logistic", fake)) == pytest.approx(1.375)
    assert float(coder_loss("non_saturating", fake)) == pytest.approx(-float(torch.sigmoid(fake).log().mean()))


def test_the_gradient_penalty_is_half_the_squared_slope() -> None:
    class Linear(PatchDiscriminator):
        def judge(self, pictures: Tensor) -> Tensor:
            return 3.0 * pictures.flatten(1).sum(1, keepdim=True)

    got = gradient_penalty(Linear(width=8, layers=1), torch.rand(2, 3, 4, 4))
    torch.testing.assert_close(got, torch.full((2,), 0.5 * 9 * 48))


def test_the_critic_has_its_published_size_and_judges_each_picture_alone() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_765_633
    torch.manual_seed(0)
    critic, pictures = PatchDiscriminator(width=8, layers=2), torch.rand(3, 3, 32, 32)
    assert critic.judge(pictures[..., :12, :12]).shape == (3, 1)
    torch.testing.assert_close(critic.judge(pictures)[1:2], critic.judge(pictures[1:2]))
    with pytest.raises(ValueError, match="needs pictures of 12 pixels"):
        critic.judge(torch.rand(1, 3, 8, 8))
    assert discriminator.PatchDiscriminator(layers=2)(torch.rand(1, 3, 16, 16)).shape == (1, 1, 2, 2)


def test_an_autoencoder_without_a_decoder_takes_no_critic() -> None:
    recipe = autoencoder_recipe({"critic": CRITIC})
    with pytest.raises(ValueError, match=r"leave objective\.critic out"):
        reconstruction(recipe.model_copy(update={"autoencoder": FirstStage.model_validate("identity")}), CPU)


def small(objective: dict[str, Any], autoencoder: dict[str, Any] | None = None, images: int = 1600) -> Loop:
    """A loop over small pictures, for the ways in which trainings fail."""
    recipe = autoencoder_recipe(objective, autoencoder, images=images, rate=0.005, decay=0.0, warmup=0.0)
    loop = loop_of(recipe)
    loop.objective.begin()
    return loop


def advance(loop: Loop, steps: int) -> dict[str, float]:
    """So many steps; the means of what they measured."""
    loop.sums, loop.counts = {}, {}
    for _ in range(steps):
        loop.step(range(loop.images, loop.images + 16))
        loop.images += 16
    return loop._means()


@pytest.mark.slow
def test_the_divergence_does_not_grow_without_bound() -> None:
    """The weight of `emoji-autoencoder` holds it below six nats a latent value; the published one lets it grow on."""
    held, free = small({"kl": 2e-2}), small({"kl": 1e-6})
    for loop in (held, free):
        advance(loop, 60)
    a, b = advance(held, 10)["kl"], advance(free, 10)["kl"]
    per_value = a * (3 * 32 * 32) / (4 * 4 * 4)
    assert per_value < 6
    assert a < b / 1.5


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [True, False])
def test_quality_survives_the_critic_s_start(adaptive: bool) -> None:
    """And does not where the critic's weight is a fixed one, which without the balance is two orders too large."""
    loop = small({"critic": {**CRITIC, "start": 1280, "ramp": 320, "weight": 0.5 if adaptive else 1.0,
                             "adaptive": adaptive}}, images=3200)  # fmt: skip
    advance(loop, 70)
    before = advance(loop, 10)
    advance(loop, 40)
    after = advance(loop, 10)
    if not adaptive:
        assert after["l1"] > 1.3 * before["l1"]
        return
    assert after["l1"] < before["l1"]
    assert 0 < after["adaptive"] <= 50


@pytest.mark.slow
def test_a_codebook_does_not_collapse() -> None:
    book = {"kind": "vq", "codebook": {"size": 64, "patience": 10}}
    kept, plain = (
        small({}, book),
        small({}, {"kind": "vq", "codebook": {"size": 64, "patience": None, "kmeans": False}}),
    )
    for loop in (kept, plain):
        advance(loop, 60)
    a, b = advance(kept, 10), advance(plain, 10)
    assert a["usage"] > 0.9
    assert a["perplexity"] > 2 * b["perplexity"]


def plain(kind: str, image: Tensor) -> tuple[Codec, Tensor, Tensor]:
    """A codec whose sides see one latent place at a time, its latents of a picture, and the picture rebuilt."""
    torch.manual_seed(0)
    c = CODER["channels"]
    book = {"codebook": {"size": 8, "decay": None}} if kind == "vq" else {}
    codec = Codec(FirstStage.model_validate({"kind": kind, "bottleneck": False, "coder": CODER, **book}))
    model = codec.autoencoder
    model.encoder = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, c if kind == "vq" else 2 * c, 1))
    model.decoder = nn.Sequential(nn.Upsample(scale_factor=8), nn.Conv2d(c, 3, 1))
    if isinstance(model, VQAutoencoder):
        model.codebook.embedding.weight.data.normal_()
    return codec, model.encoder(image), model.rebuild(image)[1]


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_published_sums_are_means_here(kind: str) -> None:
    """The loss of a picture, its latent's penalty included, is that of the picture repeated fourfold; times the number of
    values it is the published sum with the published weight (KL), and as it is the published mean (VQ)."""
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    codec, latent, rebuilt = plain(kind, image)
    coder = Coder(codec, ReconstructionConfig(l1=1.0, l2=0.0, kl=0.5, codebook=0.7))
    losses = []
    for n in (1, 2):
        pictures, noise = image.repeat(1, 1, n, n), torch.zeros(1, CODER["channels"], 4 * n, 4 * n)
        losses.append(coder(Pictures(pictures, noise, torch.zeros(1), False, (0,)))["loss"])
    torch.testing.assert_close(losses[0], losses[1])
    error = (rebuilt - image).abs()
    if kind == "kl":
        mean, log_variance = latent.chunk(2, 1)
        normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        nats = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum()
        torch.testing.assert_close(losses[0] * image.numel(), error.sum() + 0.5 * nats)
    else:
        book = codec.autoencoder.codebook
        chosen = nn.functional.embedding(book(latent).codes, book.embedding.weight).movedim(-1, 1)
        torch.testing.assert_close(losses[0], error.mean() + 0.7 * 1.25 * (latent - chosen).square().mean())


@pytest.mark.slow
def test_two_processes_share_the_gradient_of_the_perceptual_term(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        looks = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.Flatten())
        torch.jit.script(looks).save(str(tmp_path / "looks.pt"))
    found = {"kind": "torchscript", "network": str(tmp_path / "looks.pt")}
    some = {"images": 64, "checkpoint": 64, "precision": "fp64", "optimizer": "adamw"}
    objective = {"l1": 0.1, "l2": 0.0, "critic": {**CRITIC, "start": 16, "ramp": 16}}
    looking = {**objective, "perceptual": found, "perceptual_weight": 1.0}
    recipes: dict[str, Recipe] = {"looking": autoencoder_recipe(looking, **some)}
    several.trained({**recipes, "blind": autoencoder_recipe(objective, **some)}, tmp_path / "one")
    several.together(2, several.trained, recipes, tmp_path / "two")

    def state(processes: str, name: str) -> Tensor:
        path = checkpoint.found(tmp_path / processes / name / "state")[-1] / "weights.safetensors"
        return torch.cat([t.double().flatten() for _, t in sorted(files.load_tensors(path).items())])

    one, two = state("one", "looking"), state("two", "looking")
    assert float((one - two).abs().max()) < 1e-10
    assert float((one - state("one", "blind")).abs().max()) > 1e-3


def test_free_memory_is_a_number_of_this_machine() -> None:
    assert 1 << 24 < devices.free(CPU) < 1 << 50


def test_equivariance_is_the_error_of_moved_latents_the_same_for_all_parts_of_a_step(tmp_path: Path) -> None:
    recipe = autoencoder_recipe({"equivariance": 0.5}, batch=16)
    objective = reconstruction(recipe, torch.device("cpu"))
    whole, half = objective.batch(range(32, 48)), objective.batch(range(32, 48, 2))
    assert whole.moved == half.moved
    assert len({objective.batch([16 * k]).moved for k in range(12)}) > 6
    side, turns = whole.moved
    coder, found = objective.coder, dict[str, torch.Tensor]()
    encoded = objective.codec.autoencoder.encode(whole.images, whole.noise)
    error = coder.moved(encoded.latent, whole, found)
    small = torch.nn.functional.interpolate(encoded.latent, (side, side), mode="bilinear", antialias=True)
    pixels = torch.nn.functional.interpolate(whole.images, (8 * side, 8 * side), mode="bilinear", antialias=True)
    made = objective.codec.autoencoder.decode(torch.rot90(small, turns, (2, 3)))
    torch.testing.assert_close(error, (made - torch.rot90(pixels, turns, (2, 3))).abs().mean())
    with_, without = (coder(b)["loss"] for b in (whole, whole._replace(moved=(0, 0))))
    torch.testing.assert_close(with_ - without, 0.5 * error.detach(), atol=1e-5, rtol=1e-4)


def test_parts_of_a_step_agree_where_a_run_was_made_longer(tmp_path: Path) -> None:
    """A run of 20 images that goes on to 36 steps from 20, in batches of 16."""
    recipe = autoencoder_recipe({"equivariance": 0.5, "critic": {**CRITIC, "start": 32, "ramp": 32}}, batch=16)
    loop = Loop(reconstruction(recipe, CPU), recipe.training, tmp_path, "", CPU, torch.float32, quiet=True)
    objective = loop.objective
    assert isinstance(objective, Reconstruction)
    objective.offset = 4
    for first in (20, 36):
        parts = [objective.batch(range(first + k, first + 16, 4)) for k in range(4)]
        assert {part.begun for part in parts} == {first == 36} == {objective.active("critic", range(first, first + 16))}
        assert len({part.moved for part in parts}) == 1
        assert len({float(h) for part in parts for h in part.heed}) == 1


def test_a_run_that_goes_on_knows_where_its_steps_begin(tmp_path: Path) -> None:
    short = autoencoder_recipe(images=20)
    train(short, tmp_path, device="cpu", quiet=True)
    longer = autoencoder_recipe(images=36)
    seen: list[int] = []

    def watch(images: int, path: Path | None) -> None:
        seen.append(images)

    objective = reconstruction(longer, CPU)
    loop = Loop(objective, longer.training, tmp_path, "", CPU, torch.float32, True, watch)
    loop.resume()
    loop.run()
    assert (objective.offset, seen[-1]) == (4, 36)


def test_equivariance_makes_moved_latents_mean_moved_pictures(tmp_path: Path) -> None:
    found = {}
    for weight in (0.0, 1.0):
        recipe = autoencoder_recipe({"equivariance": weight}, images=1600, report=1600)
        model = train(recipe, tmp_path / str(weight), device="cpu", quiet=True)
        objective = reconstruction(autoencoder_recipe({"equivariance": 1.0}), torch.device("cpu"))
        objective.coder.codec = Codec.load(model)
        batch = objective.batch(range(64))._replace(moved=(2, 1))
        with torch.no_grad():
            latent = objective.coder.codec.autoencoder.encode(batch.images).latent
            found[weight] = float(objective.coder.moved(latent, batch, {}))
    assert found[1.0] < 0.8 * found[0.0]
