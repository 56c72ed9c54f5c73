"""Few steps: the identities that make a consistency function, a toy on which one step must do, and a run of the real thing."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato.conditioning.base import ConditionerConfig, Draws
from sfumato.data.base import Data
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.prediction import flow
from sfumato.diffusion.schedule import Betas, Linear
from sfumato.model import LatentDiffusion
from sfumato.tasks import metadata
from sfumato.training import recipe, run
from sfumato.training.diffusion import Noisy
from sfumato.training.distillation import DistillationTurn, moved
from sfumato.training.shortcut import ShortcutTurn
from tests.conftest import SHORT, diffusion_recipe
from tests.data.test_renumbered import pictures

SPREAD = 0.7  # standard deviation of the Gaussian toy


class Exact(nn.Module):
    """What a network of flow predicts where its estimate of x_0 is `of(x_t, alpha, sigma)`: (x_t - x_0) / sigma."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = of
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
        sigma = (clock / 1000)[:, None, None, None]
        return (x - self.of(x, 1 - sigma, sigma)) / sigma.clamp(min=1e-6) + self.nothing


def stub(network: nn.Module) -> Any:
    """As much of a model as a turn wants."""

    def conditions(fields: Any, count: int, **more: Any) -> None:
        return None

    conditions.kept = frozenset()  # type: ignore[attr-defined]
    return SimpleNamespace(denoiser=Denoiser(network, Linear(), flow), conditions=conditions)


def batch(x_0: Tensor, seed: int, steps: int) -> Noisy:
    rng = torch.Generator().manual_seed(seed)
    t = torch.randint(1, steps + 1, (len(x_0),), generator=rng) / steps
    eps = torch.randn(x_0.shape, generator=rng)
    return Noisy(x_0, t, eps, {}, torch.zeros(len(x_0), 0).bool(), Draws.training(0, range(len(x_0))))


def mean(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of N(0, SPREAD²)."""
    return alpha * SPREAD**2 * x / (alpha**2 * SPREAD**2 + sigma**2)


def end(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The end of the probability flow of N(0, SPREAD²) from x."""
    return x * SPREAD / (alpha**2 * SPREAD**2 + sigma**2).sqrt()


def test_the_exact_consistency_function_has_no_loss_but_that_of_the_teachers_steps() -> None:
    x_0 = SPREAD * torch.randn(512, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    losses = []
    for steps in (8, 32, 128):
        turn = DistillationTurn(stub(Exact(end)), stub(Exact(mean)), 1.0, steps)
        losses.append(float(turn(batch(x_0, 1, steps))["loss"].detach()))
    assert losses[0] > 3 * losses[1] > 9 * losses[2]
    other = DistillationTurn(stub(Exact(mean)), stub(Exact(mean)), 1.0, 128)
    assert float(other(batch(x_0, 1, 128))["loss"].detach()) > 5 * losses[2]


def test_the_last_step_ends_at_the_picture_whatever_the_schedules_first_row() -> None:
    """Of a table of betas some noise is left at t = 0, where the student was never trained."""

    class Flow(nn.Module):
        def __init__(self, end: float) -> None:
            super().__init__()
            self.end, self.nothing = end, nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
            alpha, sigma = Betas()(clock / 1000)
            x_0 = torch.where(clock == 0, self.end, 0.5)[:, None, None, None]
            return (x - alpha[:, None, None, None] * x_0) / sigma[:, None, None, None] - x_0 + self.nothing

    student, teacher = stub(Flow(100.0)), stub(Flow(0.5))
    for one in (student, teacher):
        one.denoiser = Denoiser(one.denoiser.network, Betas(), flow)
    turn = DistillationTurn(student, teacher, 1.0, 8)
    noisy = batch(torch.full((4, 1, 2, 2), 0.5), 0, 8)._replace(t=torch.full((4,), 1 / 8))
    assert float(turn(noisy)["loss"].detach()) < 1e-6


def test_without_noise_the_estimate_is_x_itself() -> None:
    denoiser = Denoiser(Exact(lambda x, a, s: 7 * x), Linear(), flow)
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(denoiser(x, torch.zeros(3)), x)


def test_steps_of_a_batch_at_several_times_are_those_of_the_sampler() -> None:
    x, x_0 = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    t, s = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.75, 0.25, 0.0])
    made = moved(x, x_0, Linear(), t, s)
    assert torch.allclose(made[2], x_0[2], atol=1e-6)
    eps = (x[1] - 0.5 * x_0[1]) / 0.5
    assert torch.allclose(made[1], 0.75 * x_0[1] + 0.25 * eps, atol=1e-6)


class Small(nn.Module):
    """A network of two numbers and the time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))

    def forward(self, x: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
        found: Tensor = self.layers(torch.cat([x.flatten(1), clock[:, None] / 1000], 1))
        return found.reshape(x.shape)


def test_one_step_of_a_distilled_network_lands_where_the_teacher_needs_many() -> None:
    """Four points: the teacher's one step is their mean, the student's one step must be one of them."""
    points = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[:, None, None, :]

    def posterior(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        far = ((x[:, None] - alpha[:, None] * points) / sigma[:, None].clamp(min=1e-3)).square().sum((2, 3, 4))
        return torch.einsum("bk,kchw->bchw", (-0.5 * far).softmax(1), points)

    torch.manual_seed(0)
    student, teacher = stub(Small()), stub(Exact(posterior))
    turn = DistillationTurn(student, teacher, 1.0, 16)
    optimizer = torch.optim.AdamW(turn.denoiser.parameters(), 2e-3, weight_decay=0.0)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for step in range(1500):
        chosen = points[torch.randint(0, 4, (256,), generator=torch.Generator().manual_seed(step))]
        loss = turn(batch(chosen, step, 16))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
    x = torch.randn(1000, 1, 1, 2, generator=torch.Generator().manual_seed(7))
    ends = torch.ones(1000)
    with torch.no_grad():
        own, other = student.denoiser(x, ends), teacher.denoiser(x, ends)
    off = [(made[:, None] - points).flatten(2).norm(dim=2).min(1).values.mean() for made in (own, other)]
    assert float(off[1]) > 1.3  # at the mean of all
    assert float(off[0]) < 0.5 * float(off[1])
    shares = torch.bincount((own[:, None] - points).flatten(2).norm(dim=2).argmin(1), minlength=4) / 1000
    assert float(shares.min()) > 0.18


def distillation(teacher: Path, **training: Any) -> recipe.DistillationRecipe:
    read = recipe.parse(
        {
            "stage": "distillation", "teacher": str(teacher), "guidance": 2.0, "steps": 8, "sample": 2,
            "data": {"kind": "emoji", "size": 32}, "training": {**SHORT, **training},
        }
    )  # fmt: skip
    assert isinstance(read, recipe.DistillationRecipe)
    return read


class Convolved(nn.Module):
    """A network whose products autocast makes in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
        result: Tensor = self.two(torch.tanh(self.one(x) + (clock / 1000)[:, None, None, None]))
        return result.float()


def test_neighbours_are_told_apart_in_half_precision_too() -> None:
    torch.manual_seed(0)
    model, steps = stub(Convolved()), 64
    turn, drawn = DistillationTurn(model, model, 1.0, steps), batch(torch.randn(32, 3, 8, 8), 0, steps)
    exact = turn(drawn)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        half = turn(drawn)["loss"].item()
    assert half == pytest.approx(exact, rel=0.02)
    assert half != exact  # the teacher is still quick


def test_a_distillation_trains_resumes_and_is_sampled_in_few_steps(model_folder: Path, tmp_path: Path) -> None:
    asked = distillation(model_folder)
    model = run.train(asked, tmp_path / "a", device="cpu", quiet=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(sorted((tmp_path / "b/state").iterdir())[-1])
    shutil.rmtree(tmp_path / "b/model")
    run.train(asked, tmp_path / "b", resume=True, device="cpu", quiet=True)
    for name in ("metrics.jsonl", "model/denoiser.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    teacher, student = LatentDiffusion.load(model_folder), LatentDiffusion.load(model)
    assert student.config.distilled is not None
    for key, value in teacher.conditions.state_dict().items():
        assert torch.equal(value, student.conditions.state_dict()[key])
    assert any(
        not torch.equal(a, b) for a, b in zip(teacher.denoiser.parameters(), student.denoiser.parameters(), strict=True)
    )
    pipeline = sfumato.load(model, device="cpu")
    made = pipeline.generate(prompt="red heart", seed=0)[0]
    metadata.save(made, tmp_path / "a.png")
    told = metadata.read(tmp_path / "a.png")
    assert (told["sampler"], told["steps"], told["guidance"]) == ("lcm", 2, 1.0)
    metadata.save(pipeline.generate(prompt="red heart", seed=0, steps=3)[0], tmp_path / "b.png")
    assert metadata.read(tmp_path / "b.png")["steps"] == 3
    assert pipeline.vary(picture=made, invert=True, seed=0)[0].size == made.size  # by ddim, whatever its own sampler


def test_classes_of_other_data_are_told_as_the_teacher_knows_them(first_stage: Path, tmp_path: Path) -> None:
    def data(folder: Path) -> Data:
        return Data.model_validate({"kind": "folder", "path": str(folder), "size": 32, "held_out": 0.2})

    asked = diffusion_recipe(first_stage, images=32, checkpoint=32)
    labels = {"class": ConditionerConfig.model_validate({"kind": "label", "width": 6})}
    asked = asked.model_copy(
        update={"conditioners": labels, "data": data(pictures(tmp_path / "own", "bird", "cat", "dog"))}
    )
    teacher = run.train(asked, tmp_path / "teacher", device="cpu", quiet=True)

    def told(*classes: str) -> set[int]:
        more = distillation(teacher).model_copy(update={"data": data(pictures(tmp_path / "-".join(classes), *classes))})
        objective = run.distilling(more, tmp_path / "student", torch.device("cpu"))
        return set(objective.batch(range(32)).fields["label"])

    assert told("cat", "dog") == {1, 2}
    assert told("a", "b") == {0, 1}  # called otherwise
    with pytest.raises(
        ValueError, match="the model does not know the class 'hen' of the data; it knows bird, cat, dog"
    ):
        told("dog", "hen")


def test_data_of_another_size_are_refused(model_folder: Path, tmp_path: Path) -> None:
    asked = distillation(model_folder)
    other = asked.model_copy(update={"data": asked.data.model_copy(update={"size": 16})})
    with pytest.raises(ValueError, match="make them equal"):
        run.train(other, tmp_path / "a", device="cpu", quiet=True)


@pytest.mark.parametrize("how", ["consistency", "shortcut"])
def test_what_is_given_stands_on_both_sides_of_the_teachers_guidance(how: str) -> None:
    told: list[set[str]] = []

    def conditions(fields: Any, count: int, *words: Any, **more: Any) -> None:
        told.append({*fields})

    student, teacher = stub(Exact(mean)), stub(Exact(mean))
    for one in (student, teacher):
        one.conditions = conditions
        one.config = SimpleNamespace(conditioners={})
    conditions.kept = frozenset({"masked"})  # type: ignore[attr-defined]
    noisy = batch(torch.zeros(2, 1, 2, 2), 0, 8)._replace(fields={"masked": [1, 2], "caption": ["a", "b"]})
    if how == "consistency":
        DistillationTurn(student, teacher, 3.0, 8)(noisy)
    else:
        ShortcutTurn(student, teacher, 3.0, 8)._teachers(noisy, 3.0)
    assert told == [{"masked", "caption"}, {"masked"}]
