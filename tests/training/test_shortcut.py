"""Shortcuts: a student that starts as its teacher, a toy whose every step is known, and runs of the real thing."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import sfumato
from sfumato import cli
from sfumato.autoencoder.codec import Codec
from sfumato.conditioning.base import ConditionerConfig, Draws
from sfumato.conditioning.stride import Stride, StrideConfig
from sfumato.data.base import Data
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.grid import even
from sfumato.diffusion.names import DEFAULT, DEFAULT_GRID
from sfumato.diffusion.prediction import PREDICTIONS, flow
from sfumato.diffusion.samplers import last
from sfumato.diffusion.samplers.ddim import ddim
from sfumato.diffusion.schedule import Betas, Cosine, Linear, Scales, Schedule
from sfumato.evaluation.run import requested
from sfumato.evaluation.source import Sampled
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.tasks import metadata
from sfumato.tasks.few import settled
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.requests import Generate
from sfumato.tasks.strides import teller
from sfumato.training import posthoc, recipe, run
from sfumato.training.diffusion import Noisy
from sfumato.training.distillation import moved
from sfumato.training.shortcut import Ending, Shortcutting, ShortcutTurn, between, strided
from tests.conftest import SHORT, diffusion_recipe

SPREAD, FINEST = 0.7, 16  # standard deviation of the Gaussian toy; its finest steps
UNET = {"kind": "unet", "width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2], "groups": 8}
DIT = {"kind": "dit", "width": 16, "depth": 2, "heads": 2}
LABEL = {"kind": "label", "width": 6, "labels": ("cat", "dog")}
MANY = {
    "class": LABEL,
    "small": {"kind": "lowres", "width": 2, "told": 8},
    "near": {"kind": "reference", "field": "near", "embedding": 5, "width": 4, "door": "tokens"},
}
SAID: dict[str, list[Any]] = {
    "label": ["cat", None, "dog"],
    "lowres": [torch.zeros(3, 8, 8), None, torch.ones(3, 8, 8)],
    "near": [torch.ones(2, 5), None, torch.ones(1, 5)],
}


def model(codec: Codec, backbone: dict[str, Any], conditioners: dict[str, Any], **more: Any) -> LatentDiffusion:
    """A model of weights that are nowhere zero."""
    torch.manual_seed(0)
    config = DiffusionConfig.model_validate({"backbone": backbone, "conditioners": conditioners, **more})
    made = LatentDiffusion(codec, config, 32, {}).eval()
    for parameter in [*made.denoiser.parameters(), *made.conditions.parameters()]:
        nn.init.normal_(parameter, std=0.1)
    return made


@pytest.mark.parametrize("backbone", [UNET, DIT], ids=["unet", "dit"])
@pytest.mark.parametrize(
    ("conditioners", "direct"),
    [({}, False), ({"class": LABEL}, False), (MANY, False), ({"class": LABEL}, True), ({}, True)],
    ids=["none", "vector", "all doors", "direct", "direct without"],
)
def test_a_student_starts_as_its_teacher_whatever_stride_it_is_told(
    codec: Codec, backbone: dict[str, Any], conditioners: dict[str, Any], direct: bool
) -> None:
    if direct and conditioners:
        conditioners = {"class": {**LABEL, "width": 64 if backbone is UNET else 16}}
    teacher = model(codec, {**backbone, "direct_vector": direct}, conditioners)
    student = strided(teacher, FINEST).eval()
    x, t = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 0.5, 0.01])
    said = {field: SAID[field] for field in teacher.conditions.fields.values()}
    with torch.no_grad():
        expected = teacher.denoiser(x, t, teacher.conditions(said, 3))
        for strides in ([0.0, 0.0, 0.0], [0.25, 0.5, 1.0], [None, None, None]):
            made = student.denoiser(x, t, student.conditions({**said, "stride": strides}, 3))
            assert float((made - expected).abs().max()) < 1e-6 * float(expected.abs().max().clamp(min=1))
    assert student.config.conditioners["stride"] == StrideConfig(finest=FINEST)
    assert student.conditions.kept >= {"stride"}
    LatentDiffusion(codec, DiffusionConfig.model_validate(student.config.model_dump(mode="json")), 32, {})


def test_the_stride_is_learned_although_it_says_nothing_at_first(codec: Codec) -> None:
    student = strided(model(codec, UNET, {}), FINEST)
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([1.0, 0.5])
    student.denoiser(x, t, student.conditions({"stride": [1.0, 0.5]}, 2)).square().sum().backward()
    final = student.conditions.reader("stride").tell.layers[-1]
    assert float(final.weight.grad.abs().max()) > 0


# the toy: N(0, SPREAD²), whose flow is known, so every shortcut is


def mean(x: Tensor, s: Scales) -> Tensor:
    """The exact denoiser, the flow itself."""
    return s.alpha * SPREAD**2 * x / (s.alpha**2 * SPREAD**2 + s.sigma**2)


def size(s: Scales) -> Tensor:
    return (s.alpha**2 * SPREAD**2 + s.sigma**2).sqrt()


class Exact(nn.Module):
    """A network of flow that knows where the step of any stride ends; it is told strides (B,) as its conditions."""

    def __init__(self, of: float = 1.0) -> None:
        super().__init__()
        self.of = of  # where the step's end is, in strides
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
        t = clock / 1000
        here = Scales(1 - t, t).like(x)
        x_0 = mean(x, here)
        if cond is not None:
            s = (t - self.of * cond).clamp(min=0)
            end = x * size(Scales(1 - s, s).like(x)) / size(here)
            leaps = (cond > 0).reshape(-1, 1, 1, 1)
            x_0 = torch.where(leaps, between(x, end, Linear(), t, torch.where(cond > 0, s, 0.5 * t)), x_0)
        return (x - x_0) / here.sigma + self.nothing


def stub(network: nn.Module, guided: bool = False) -> Any:
    """As much of a model as a turn wants; its conditions are the strides, or whether a class is said."""
    stride = StrideConfig(width=4, finest=FINEST).build({})

    def conditions(fields: Any, count: int, drop: Any = None, **more: Any) -> Tensor | None:
        if guided:
            return torch.tensor([float("label" in fields)] * count)
        known = [stride.known(v) for v in fields["stride"]] if "stride" in fields else None
        return None if known is None else torch.tensor(known)

    conditions.kept = frozenset()  # type: ignore[attr-defined]
    conditions.reader = lambda field: stride  # type: ignore[attr-defined]
    config = SimpleNamespace(conditioners={})
    return SimpleNamespace(denoiser=Denoiser(network, Linear(), flow), conditions=conditions, config=config)


def batch(count: int, strides: list[float], seed: int = 0) -> Noisy:
    """Examples of the Gaussian whose steps have these strides in turn."""
    rng = torch.Generator().manual_seed(seed)
    length = torch.tensor([strides[k % len(strides)] for k in range(count)])
    u = torch.rand(count, generator=rng)
    t = torch.where(length > 0, length * (1 + (u / length.clamp(min=1e-3)).floor()), 1 - 0.9 * u)
    x_0, eps = torch.randn(2, count, 1, 2, 2, generator=rng)
    drop, draws = torch.zeros(count, 0).bool(), Draws.training(0, range(count))
    return Noisy(SPREAD * x_0, t, eps, {"stride": length.tolist()}, drop, draws)


def test_exact_shortcuts_agree_with_two_of_half_their_length() -> None:
    turn = ShortcutTurn(stub(Exact()), stub(Exact()), 1.0, FINEST)
    some = batch(256, [0.0, 4 / FINEST, 0.5, 1.0])
    found = {name: float(value.detach()) for name, value in turn(some).items()}
    assert found["loss"] < 1e-11
    assert found["loss"] == pytest.approx(found["flow"] + found["shortcut"], abs=1e-12)
    # from the finest rows, where halves are the flow's own, only the error of two steps of Euler's is left
    finest = float(turn(batch(256, [2 / FINEST]))["shortcut"].detach())
    assert 1e-4 < finest < 1e-2


def test_a_target_of_another_place_is_seen() -> None:
    """The flow taken for its own shortcuts, and shortcuts that end too early or too late, are far from agreeing."""

    class Flow(Exact):
        def forward(self, x: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
            return super().forward(x, clock, None)

    some = batch(256, [4 / FINEST, 0.5, 1.0])
    for wrong in (Flow(), Exact(of=0.8), Exact(of=0.5)):
        assert float(ShortcutTurn(stub(wrong), stub(Exact()), 1.0, FINEST)(some)["loss"].detach()) > 1e-4


def test_the_target_is_where_two_known_steps_end() -> None:
    turn = ShortcutTurn(stub(Exact()), stub(Exact()), 1.0, FINEST)
    some = batch(64, [0.5, 1.0])
    t, end = some.t, some.t - torch.tensor(some.fields["stride"])
    x = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    landed = moved(x, turn.target(x, some), Linear(), t, end)
    expected = x * size(Scales(1 - end, end).like(x)) / size(Scales(1 - t, t).like(x))
    assert torch.allclose(landed, expected, atol=1e-5)
    assert not torch.allclose(landed, x * size(Scales(1 - t, t).like(x)), atol=1e-2)


class Two(nn.Module):
    """x_0 is 3 where a class is said, else 1."""

    def forward(self, x: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
        return (x - (1 + 2 * cond[:, None, None, None])) / (clock / 1000)[:, None, None, None]


def of_a_class(count: int, strides: list[float]) -> Noisy:
    some = batch(count, strides)
    return some._replace(fields={**some.fields, "label": ["cat"] * count})


def test_without_a_stride_it_is_the_teacher_with_its_guidance() -> None:
    turn = ShortcutTurn(stub(Exact()), stub(Two(), guided=True), 2.0, FINEST)
    some = of_a_class(8, [0.0])
    target = turn.target(some.eps, some)
    assert torch.allclose(target, torch.full_like(target, 5.0), atol=1e-4)


def test_a_plain_flow_is_the_teacher_as_it_is_and_its_shortest_steps_follow_the_guided_one() -> None:
    turn = ShortcutTurn(stub(Exact()), stub(Two(), guided=True), 2.0, FINEST, plain=True)
    for stride, expected in ((0.0, 3.0), (2 / FINEST, 5.0)):
        some = of_a_class(8, [stride])
        target = turn.target(some.eps, some)
        assert torch.allclose(target, torch.full_like(target, expected), atol=1e-4)
    some = of_a_class(64, [0.5, 1.0])  # longer ones are learned from the student's own, as ever
    other = ShortcutTurn(stub(Exact()), stub(Exact()), 1.0, FINEST)
    assert torch.equal(turn.target(some.eps, some), other.target(some.eps, some))


def test_a_plain_flow_stays_the_teachers_where_conditions_are_dropped(codec: Codec) -> None:
    teacher = model(codec, UNET, {"class": LABEL})
    turn = ShortcutTurn(strided(teacher, FINEST).eval(), teacher, 3.0, FINEST, plain=True)
    x, t = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 0.5, 0.25, 0.9])
    fields = {"label": ["cat", "dog", "cat", "dog"], "stride": [0.0] * 4}
    drop = torch.tensor([[True, False], [False, False], [True, False], [False, False]])
    some = Noisy(x, t, x, fields, drop, Draws.training(0, range(4)))
    with torch.no_grad():
        said = teacher.conditions({"label": [None, "dog", None, "dog"]}, 4)
        assert torch.allclose(turn.target(x, some), teacher.denoiser(x, t, said), atol=1e-5)
        assert float(turn(some._replace(latents=x))["loss"]) < 1e-8  # and the student is told the same


@pytest.mark.parametrize(
    "schedule", [Linear(), Linear(2.0), Cosine(), Betas()], ids=["flow", "shift", "cosine", "betas"]
)
@pytest.mark.parametrize("name", ["flow", "v", "clean", "edm", "noise"])
def test_steps_are_solved_for_under_every_schedule_and_prediction(schedule: Schedule, name: str) -> None:
    x, x_0 = torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    t, s = torch.tensor([0.9, 0.75, 0.5, 0.25]).double(), torch.tensor([0.25, 0.5, 0.25, 0.0]).double()
    ended = Ending(schedule)
    made = moved(x, x_0, ended, t, s)
    assert torch.allclose(between(x, made, ended, t, s), x_0, atol=1e-9)
    assert torch.equal(made[3], x_0[3])  # the last step ends clean, as a sampler's does
    assert torch.equal(ended.time(ended(t)), schedule.time(schedule(t)))

    class Told(nn.Module):
        def forward(self, x: Tensor, clock: Tensor, cond: Any) -> Tensor:
            result: Tensor = cond
            return result

    outputs = torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    denoiser = Denoiser(Told(), schedule, PREDICTIONS[name])
    change = denoiser(x, t, outputs[0]) - denoiser(x, t, outputs[1])
    assert torch.allclose(change / denoiser.slope(t)[:, None, None, None], outputs[0] - outputs[1], atol=1e-9)


class Small(nn.Module):
    """A network of two numbers, the time and the stride."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))

    def forward(self, x: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
        told = torch.stack([clock / 1000, torch.zeros_like(clock) if cond is None else cond], 1)
        found: Tensor = self.layers(torch.cat([x.flatten(1), told], 1))
        return found.reshape(x.shape)


@pytest.mark.parametrize("plain", [False, True], ids=["guided", "plain"])
def test_one_step_of_a_shortcut_lands_where_the_teacher_needs_many(plain: bool) -> None:
    """Four points: the teacher's one step is their mean; the student's is near one of them, and four are nearer."""
    points = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[:, None, None, :]

    class Points(nn.Module):
        def forward(self, x: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
            sigma = (clock / 1000).clamp(min=1e-3)[:, None, None, None]
            far = ((x[:, None] - (1 - sigma[:, None]) * points) / sigma[:, None]).square().sum((2, 3, 4))
            return (x - torch.einsum("bk,kchw->bchw", (-0.5 * far).softmax(1), points)) / sigma

    torch.manual_seed(0)
    student, teacher = stub(Small()), stub(Points())
    turn = ShortcutTurn(student, teacher, 1.0, FINEST, plain)
    optimizer = torch.optim.AdamW(turn.denoiser.parameters(), 2e-3, weight_decay=0.0)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for step in range(1000):
        some = batch(256, [0.0, 0.0, 2 / FINEST, 0.0, 0.25, 0.5, 0.0, 1.0], step)
        chosen = points[torch.randint(0, 4, (256,), generator=torch.Generator().manual_seed(step))]
        loss = turn(some._replace(latents=chosen, eps=some.eps[..., :1, :]))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
    x = torch.randn(1000, 1, 1, 2, generator=torch.Generator().manual_seed(7))

    @torch.no_grad()
    def off(steps: int, of: Any, told: float) -> float:
        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            found: Tensor = of.denoiser(x_t, t, torch.full((len(x_t),), told))
            return found

        ends = last(ddim(denoise, x, even(Linear(), steps)))
        return float((ends[:, None] - points).flatten(2).norm(dim=2).min(1).values.mean())

    assert off(1, teacher, 0.0) > 1.4  # at the mean of all
    assert off(1, student, 0.0) > 2 * off(1, student, 1.0)  # told the flow, it goes there too
    assert off(1, student, 1.0) < 0.45
    assert off(4, student, 0.25) < min(0.35, 0.8 * off(4, student, 0.0))


# runs


def distillation(teacher: Path, changes: dict[str, Any] | None = None, **training: Any) -> recipe.DistillationRecipe:
    read = recipe.parse(
        {
            "stage": "distillation", "how": "shortcut", "teacher": str(teacher), "guidance": 2.0, "steps": 8, "sample": 2,
            "data": {"kind": "emoji", "size": 32}, "training": {**SHORT, **training}, **(changes or {}),
        }
    )  # fmt: skip
    assert isinstance(read, recipe.DistillationRecipe)
    return read


@pytest.fixture(scope="module")
def shortcut(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a shortcut."""
    folder = tmp_path_factory.mktemp("shortcut") / "run"
    run.train(distillation(model_folder, ema=[0.05, 0.15], snapshots=32), folder, device="cpu", quiet=True)
    return folder


def test_lengths_and_times_are_those_of_steps_and_each_part_has_its_share(model_folder: Path, tmp_path: Path) -> None:
    objective = run.distilling(distillation(model_folder), tmp_path / "run", torch.device("cpu"))
    assert isinstance(objective, Shortcutting)
    whole = range(4096)
    length, t = objective.lengths(whole), objective.times(whole)
    leaps = length > 0
    assert set(length.tolist()) == {0.0, 0.25, 0.5, 1.0}
    assert torch.equal(t[leaps] / length[leaps], (t[leaps] / length[leaps]).round())
    assert float((t - length)[leaps].min()) == 0
    assert float(t.max()) == 1.0
    assert 1 / 8 < float(t[~leaps].min()) < 0.14
    counts = [int((length == d).sum()) for d in (0.25, 0.5, 1.0)]
    assert max(counts) < 1.25 * min(counts)
    for part in (range(64), range(64, 128), range(64)[::2], range(64)[1::2], range(16, 32)):
        assert abs(float((objective.lengths(part) == 0).float().mean()) - 0.75) < 0.1
    some = objective.batch(range(40, 56))
    assert torch.equal(torch.tensor(some.fields["stride"]), length[40:56])
    assert torch.equal(some.t, t[40:56])
    torch.manual_seed(0)
    nn.init.normal_(objective.model.conditions.reader("stride").tell.layers[-1].weight)
    losses = [
        objective.turns["denoiser"](objective.batch(part)) for part in (range(32), range(32)[::2], range(32)[1::2])
    ]
    for name, value in losses[0].items():  # lanes sum to the whole batch
        assert float(value.detach()) > 0
        assert torch.allclose(value, 0.5 * (losses[1][name] + losses[2][name]), rtol=1e-5), name
    other = run.distilling(distillation(model_folder, {"share": 0.5}), tmp_path / "run", torch.device("cpu"))
    assert isinstance(other, Shortcutting)
    assert float((other.lengths(whole) == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("how", ["consistency", "shortcut"])
def test_a_distillation_can_be_a_proof_in_float64(how: str, model_folder: Path, tmp_path: Path) -> None:
    asked = distillation(model_folder, {"how": how}, precision="fp64")
    objective = run._ready(asked, tmp_path / "run", torch.device("cpu"), torch.float64)
    assert objective.turns["denoiser"](objective.batch(range(8)))["loss"].dtype == torch.float64


def test_it_resumes_to_the_byte_and_trains_the_denoiser_and_the_stride(
    shortcut: Path, model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(shortcut, tmp_path / "b")
    shutil.rmtree(sorted((tmp_path / "b/state").iterdir())[-1])
    shutil.rmtree(tmp_path / "b/model")
    asked = distillation(model_folder, ema=[0.05, 0.15], snapshots=32)
    run.train(asked, tmp_path / "b", resume=True, device="cpu", quiet=True)
    for name in ("metrics.jsonl", "model/denoiser.safetensors", "model/conditioners.safetensors"):
        assert (shortcut / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    teacher, student = LatentDiffusion.load(model_folder), LatentDiffusion.load(shortcut / "model")
    told = student.config.distilled
    assert told is not None
    assert (told.how, told.sampler, told.steps, told.guidance) == ("shortcut", "ddim", 2, 2.0)
    for key, value in teacher.conditions.state_dict().items():
        assert torch.equal(value, student.conditions.state_dict()[key])
    assert float(student.conditions.reader("stride").tell.layers[-1].weight.detach().abs().max()) > 0
    name = "network.vector.weight"
    columns = teacher.denoiser.state_dict()[name].shape[1]
    assert not torch.equal(student.denoiser.state_dict()[name][:, :columns], teacher.denoiser.state_dict()[name])


def test_averages_of_a_shortcut_are_rebuilt(shortcut: Path) -> None:
    _, rebuilt, parameters = posthoc.opened(shortcut)
    assert isinstance(rebuilt, LatentDiffusion)
    expected = copy.deepcopy(rebuilt)
    for parameter in parameters:
        parameter.data.zero_()
    posthoc.rebuild(posthoc.found(shortcut), 0.05, parameters)
    for key, value in expected.state_dict().items():
        assert torch.allclose(value, rebuilt.state_dict()[key], atol=1e-5), key


def test_what_is_dropped_learns_the_plain_flow_alone(model_folder: Path, tmp_path: Path) -> None:
    where, whole = torch.device("cpu"), range(4096)
    objective = run.distilling(distillation(model_folder, {"flow": "plain"}), tmp_path / "run", where)
    assert isinstance(objective, Shortcutting)
    drop, flow = objective.dropped(whole), objective.lengths(whole) == 0
    assert not bool(drop[~flow].any())
    rates = drop[flow].float().mean(0).tolist()  # by themselves, and a tenth together: 1 - 0.9 ** 2
    assert rates == [pytest.approx(0.19, abs=0.025), pytest.approx(0.19, abs=0.025), 0.0]
    assert not bool(run.distilling(distillation(model_folder), tmp_path / "run", where).dropped(whole).any())


@pytest.fixture(scope="module")
def both(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a shortcut that keeps its teacher's flow."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run.train(distillation(model_folder, {"flow": "plain", "steps": 16}), folder, device="cpu", quiet=True)
    return folder


def test_a_plain_flow_is_asked_for_by_what_only_it_can_do(both: Path) -> None:
    opened = LatentDiffusion.load(both / "model")
    facts = ("sampler", "grid", "steps", "guidance")

    def asked(**more: Any) -> tuple[Any, ...]:
        found = settled(opened, Generate(prompt="sun", **more))
        return tuple(getattr(found, name) for name in facts)

    few, many = ("ddim", "even", 2, 2.0), (DEFAULT, DEFAULT_GRID, 25, 2.0)
    assert asked() == asked(guidance=2.0) == asked(sampler="ddim") == few
    assert asked(steps=8) == ("ddim", "even", 8, 2.0)
    assert asked(steps=8, guidance=1.0) == ("ddim", "even", 8, 1.0)
    assert asked(negative="heart") == asked(interval=(0.2, 0.8)) == many
    assert asked(guidance=4.0) == (*many[:3], 4.0)
    assert asked(guidance=1.0) == (*many[:3], 1.0)
    assert asked(steps=9) == (DEFAULT, DEFAULT_GRID, 9, 2.0)
    assert asked(steps=4, sampler="heun", guidance=5.0) == ("heun", DEFAULT_GRID, 4, 5.0)
    assert asked(steps=25, sampler="ddim", guidance=5.0)[3] == 5.0
    with pytest.raises(
        ValueError, match=r"in 8 steps .* guidance of 2 baked in, so guidance and negative would do"
    ) as e:
        asked(steps=8, guidance=4.0, negative="heart")
    assert "take 9 steps or more" in str(e.value)


def test_what_only_the_flow_can_do_takes_more_steps_than_there_are_strides(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = LatentDiffusion.load(both / "model")
    monkeypatch.setattr(opened.conditions.reader("stride"), "finest", 64)
    said: dict[str, Any] = {"prompt": "sun", "sampler": "ddim", "guidance": 7.0, "negative": "heart"}
    found = settled(opened, Generate(**said))
    assert found.steps == 33
    assert teller(opened, found) is None  # no stride, whose guidance is baked in, in place of what was said
    assert settled(opened, Generate(**said, steps=33)) == found  # as its PNG asks again


def test_a_plain_flow_is_guided_and_its_strides_are_not(
    both: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = sfumato.load(both, device="cpu")
    seen = told(pipeline, monkeypatch)
    one = [pipeline.generate(prompt="sun", seed=0, steps=2, guidance=g)[0].tobytes() for g in (1.0, 2.0)]
    assert one[0] == one[1]  # it is baked in, not amplified again
    assert set(seen) == {0.5}
    many = [pipeline.generate(prompt="sun", seed=0, guidance=g)[0].tobytes() for g in (1.5, 4.0)]
    assert many[0] != many[1]
    seen.clear()  # also where a grid has some steps as long as a stride
    pipeline.generate(prompt="sun", negative="heart", seed=0, steps=9, guidance=4.0, sampler="ddim", grid="karras")
    assert set(seen) <= {0.0}
    # told nothing, before it has learned anything, it is the teacher to the pixel
    teacher = LatentDiffusion.load(model_folder)
    student = strided(teacher, 16)
    student.config = student.config.model_copy(update={"distilled": pipeline.model.config.distilled})
    settings: dict[str, Any] = {"prompt": "sun", "negative": "heart", "seed": 0, "steps": 9, "guidance": 3.0}
    made = [Pipeline(m, "name", torch.float32, "digest").generate(**settings)[0].tobytes() for m in (teacher, student)]
    assert made[0] == made[1]


def test_an_evaluation_samples_as_generate_does(both: Path, shortcut: Path, model_folder: Path) -> None:
    def asked(folder: Path, **more: Any) -> tuple[str, int, float]:
        none = dict.fromkeys(("steps", "guidance", "sampler", "grid"))
        found = requested(LatentDiffusion.load(folder), **{**none, **more})
        return found.sampler, found.steps, found.guidance

    assert asked(model_folder) == (DEFAULT, 25, 3.0)
    assert asked(shortcut / "model") == ("ddim", 2, 1.0)
    assert asked(both / "model") == ("ddim", 2, 2.0)
    assert asked(both / "model", steps=25) == (DEFAULT, 25, 2.0)
    assert asked(model_folder, sampler="heun", guidance=1.0) == ("heun", 25, 1.0)


def told(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every stride that the model's conditions are made with from now on, in order, without repetition."""
    stride, seen = pipeline.model.conditions.reader("stride"), list[float]()
    assert isinstance(stride, Stride)
    inner = stride.forward

    def forward(values: Any, setting: Any = None) -> Any:
        seen.extend(v for v in map(stride.known, values) if not seen or v != seen[-1])
        return inner(values, setting)

    monkeypatch.setattr(stride, "forward", forward)
    monkeypatch.setattr(stride, "null", lambda count, setting=None: inner([0.0] * count))
    return seen


def test_what_baked_in_guidance_leaves_nothing_to_do_is_refused(shortcut: Path) -> None:
    pipeline = sfumato.load(shortcut, device="cpu")
    for more, what in (({"negative": "heart"}, "a negative"), ({"interval": (0.2, 0.8)}, "an interval")):
        with pytest.raises(ValueError, match=f"guidance baked in and needs none, so {what} would do nothing"):
            pipeline.generate(prompt="sun", seed=0, **more)
        assert pipeline.generate(prompt="sun", seed=0, guidance=2.0, **more)


def test_any_number_of_steps_is_told_to_the_model(
    shortcut: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipeline = sfumato.load(shortcut, device="cpu")
    seen = told(pipeline, monkeypatch)
    makes = {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.25, 7: 0.0, 8: 0.0, 20: 0.0}
    for steps, stride in makes.items():
        made = pipeline.generate(prompt="red heart", seed=0, steps=steps)[0]
        assert seen == [stride], steps
        seen.clear()
    metadata.save(made, tmp_path / "a.png")
    facts = metadata.read(tmp_path / "a.png")
    assert [facts[name] for name in ("sampler", "grid", "steps", "guidance")] == ["ddim", "even", 20, 1.0]
    pipeline.generate(prompt="red heart", seed=0, steps=4, grid="beta", guidance=2.0)
    assert len(set(seen)) > 1  # rows of other grids are steps of several lengths
    seen.clear()
    pipeline.generate(prompt="red heart", seed=0, steps=4, sampler="deis")
    assert seen == []  # nothing said: the flow


def test_every_task_of_a_shortcut_works(shortcut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = sfumato.load(shortcut, device="cpu")
    start = pipeline.generate(prompt="red heart", seed=0)[0]
    seen = told(pipeline, monkeypatch)
    pipeline.vary(picture=start, prompt="sun", strength=0.6, seed=0)
    assert seen == [0.25]  # 0.3 a step
    seen.clear()
    pipeline.vary(picture=start, prompt="sun", source="red heart", strength=0.6, invert=True, seed=0)
    assert set(seen) == {0.25}
    mask = Image.new("L", (32, 32))
    mask.paste(255, (4, 4, 20, 20))
    seen.clear()
    for resample in (1, 2):
        assert pipeline.inpaint(picture=start, mask=mask, seed=0, resample=resample)[0].size == (32, 32)
    assert set(seen) == {0.5}
    with pytest.raises(ValueError, match="got 'deis'"):  # which was asked for, as the flow that it would be
        pipeline.inpaint(picture=start, mask=mask, seed=0, sampler="deis", steps=4)
    seen.clear()
    request = Generate(seed=0, steps=2, guidance=1.0, sampler="euler", grid="even")
    part = Data.model_validate({"kind": "emoji", "size": 32}).open("train")
    assert len(Sampled(pipeline.model, request, 4, part).pictures([0, 2])) == 2  # as an evaluation does
    assert set(seen) == {0.5}
    seen.clear()
    assert pipeline.panorama(width=48, prompt="sun", seed=0)[0].size == (48, 32)
    assert set(seen) == {0.5}


def test_a_shortcut_from_the_command_line_in_two_steps(
    first_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher without any condition, so that the student's network has a door that the teacher's had not."""
    plain = diffusion_recipe(first_stage, images=32, checkpoint=32).model_copy(update={"conditioners": {}})
    teacher = run.train(plain, tmp_path / "teacher", device="cpu", quiet=True)
    path = tmp_path / "shortcut.yaml"
    dumped = recipe.dump(distillation(teacher, {"steps": 2, "guidance": 1.0}, images=32, checkpoint=32))
    path.write_text(yaml.safe_dump(dumped), encoding="utf-8")
    words = [["train", path, "--run", tmp_path / "run", "--device", "cpu", "--quiet"]]
    words.append(["generate", tmp_path / "run", "--seed", 3, "--count", 2, "--out", tmp_path / "made"])
    words.append(["show", path])
    for one in words:
        cli.main([str(w) for w in one])
    assert "stride" in capsys.readouterr().out
    made = sorted((tmp_path / "made").iterdir())
    assert len(made) == 2
    assert (metadata.read(made[0])["sampler"], metadata.read(made[0])["steps"]) == ("ddim", 2)


def test_folders_that_say_not_how_they_were_distilled_are_consistency_models(
    model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "old")
    path = tmp_path / "old" / "model.yaml"
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**fields, "distilled": {"steps": 3, "guidance": 2.0}}), encoding="utf-8")
    pipeline = sfumato.load(tmp_path / "old", device="cpu")
    assert pipeline.model.config.distilled is not None
    assert pipeline.model.config.distilled.how == "consistency"
    metadata.save(pipeline.generate(prompt="sun", seed=0)[0], tmp_path / "a.png")
    assert (metadata.read(tmp_path / "a.png")["sampler"], metadata.read(tmp_path / "a.png")["steps"]) == ("lcm", 3)
    with pytest.raises(ValueError, match="was distilled into few steps itself"):
        run.train(distillation(tmp_path / "old"), tmp_path / "run", device="cpu", quiet=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 24}, "steps is a power of two, such as 32; got 24"),
        ({"how": "consistency", "share": 0.5}, "share is of a shortcut's batches"),
        ({"how": "longcut"}, "how"),
        ({"how": "consistency", "flow": "plain"}, "a consistency model keeps no flow"),
        ({"flow": "plain", "steps": 8, "sample": 8}, "8 of 8 steps would not be guided; sample in 4 or fewer"),
        ({"share": 1.0}, "share"),
    ],
)
def test_settings_that_make_no_shortcut_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as found:
        distillation(Path("teacher"), changes)
    assert len(str(found.value).splitlines()) == 1


def test_teachers_of_which_no_shortcut_can_be_made_are_refused(
    codec: Codec, shortcut: Path, first_stage: Path, tmp_path: Path
) -> None:
    other = distillation(shortcut / "model", {"how": "consistency"})
    with pytest.raises(ValueError, match="give the model that it was distilled from"):
        run.train(other, tmp_path / "a", device="cpu", quiet=True)
    with pytest.raises(ValueError, match="'noise' says nothing under this schedule; give a teacher with prediction v"):
        strided(model(codec, UNET, {}, prediction="noise"), FINEST)
    with pytest.raises(ValueError, match="a condition called 'stride' already"):
        strided(model(codec, UNET, {"stride": LABEL}), FINEST)
    told = ConditionerConfig.model_validate({"kind": "stride"})
    asked = diffusion_recipe(first_stage).model_copy(update={"conditioners": {"stride": told}})
    with pytest.raises(ValueError, match="how: shortcut"):
        run.train(asked, tmp_path / "b", device="cpu", quiet=True)
