"""The mathematics against exact answers: a Gaussian's ideal denoiser is known, so every error is the sampler's."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.diffusion import grid
from sfumato.diffusion.denoiser import Denoiser, row, thousand
from sfumato.diffusion.guidance import Branches, guided
from sfumato.diffusion.prediction import PREDICTIONS, prediction
from sfumato.diffusion.samplers import SAMPLERS, ddim, dpmpp_2m, heun, last, sampler
from sfumato.diffusion.schedule import Betas, Linear, Schedule, ScheduleConfig
from sfumato.streams import Stream

MEAN, STD = 1.5, 0.5
SCHEDULES: list[Schedule] = [Linear(), Betas()]


def exact(schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    """The posterior mean of N(MEAN, STD²): the ideal denoiser."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, o = schedule(t).like(x_t)
        return MEAN + a * STD**2 / (a**2 * STD**2 + o**2) * (x_t - a * MEAN)

    return denoise


class Perfect(nn.Module):
    """The network whose denoiser is exact, whatever it predicts."""

    def __init__(self, schedule: Schedule, name: str) -> None:
        super().__init__()
        self.schedule, self.name = schedule, name

    def forward(self, x_in: Tensor, clock: Tensor, cond: Any) -> Tensor:
        t = clock / 1000
        scales = self.schedule(t).like(x_in)
        into, p, q = PREDICTIONS[self.name](scales)
        x_t = x_in / into
        x_0 = exact(self.schedule)(x_t, t)
        return p * x_0 + q * (x_t - scales.alpha * x_0) / scales.sigma


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", list(PREDICTIONS))
def test_every_prediction_recovers_the_same_denoiser(schedule: Schedule, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(16, 2, 3, 5, dtype=torch.float64, generator=generator)
    t = torch.rand(16, dtype=torch.float64, generator=generator) * 0.98 + 0.01
    denoiser = Denoiser(Perfect(schedule, name), schedule, prediction(name), thousand)
    torch.testing.assert_close(denoiser(x_t, t), exact(schedule)(x_t, t))


@given(
    st.sampled_from(SCHEDULES),
    st.sampled_from(list(PREDICTIONS)),
    st.sampled_from([0.0, 1e-6, 0.3, 1 - 1e-6, 1.0]),
)
@settings(deadline=None)
def test_losses_and_gradients_are_finite_at_both_ends(schedule: Schedule, name: str, time: float) -> None:
    network = nn.Conv2d(2, 2, 1)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor, clock: Tensor, cond: Any) -> Tensor:
            return network(x)  # type: ignore[no-any-return]

    x_0, eps = torch.ones(3, 2, 3, 5), torch.ones(3, 2, 3, 5)
    loss = Denoiser(Wrapped(), schedule, prediction(name)).loss(x_0, torch.full((3,), time), eps)
    loss.sum().backward()
    assert loss.shape == (3,)
    assert loss.isfinite().all()
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_inverts_the_schedule_and_is_finite_at_the_ends(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule(t)), t, atol=1e-9, rtol=0)


def test_the_table_of_stable_diffusion() -> None:
    scales = Betas()(torch.tensor([0.0, 1.0], dtype=torch.float64))
    betas = [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * k / 999) ** 2 for k in range(1000)]
    assert float(scales.alpha[1]) == pytest.approx(math.prod(1 - b for b in betas) ** 0.5, rel=1e-12)
    assert float(scales.alpha[0]) == pytest.approx((1 - 0.00085) ** 0.5, rel=1e-12)
    assert float(row(torch.tensor(1.0))) == 999


@pytest.mark.parametrize(
    ("run", "order", "steps"),
    [(ddim, 1, (32, 64, 128)), (heun, 2, (32, 64, 128)), (dpmpp_2m, 2, (64, 128, 256))],
)
def test_order_of_convergence(run: Callable[..., Any], order: int, steps: tuple[int, ...]) -> None:
    """Halving the step divides the error by 2^order, on a flow that starts below pure noise and has an exact answer."""
    schedule, start, end = Linear(), 0.9, 0.02
    errors = []
    for n in steps:
        t = torch.linspace(start, end, n + 1, dtype=torch.float64)
        way = grid.Grid(t, 1 - t, t)
        x = torch.tensor([2.3], dtype=torch.float64).reshape(1, 1, 1, 1)
        y = last(run(exact(schedule), x, way))
        spread = [math.hypot((1 - s) * STD, s) for s in (start, end)]
        answer = (1 - end) * MEAN + (2.3 - (1 - start) * MEAN) * spread[1] / spread[0]
        errors.append(abs(float(y) - answer))
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(abs(o - order) < 0.2 for o in orders), (errors, orders)


@given(st.sampled_from(SAMPLERS), st.sampled_from(SCHEDULES), st.integers(1, 64))
@settings(deadline=None, max_examples=40)
def test_every_sampler_takes_just_the_steps_it_was_asked_and_ends_clean(name: str, schedule: Schedule, n: int) -> None:
    x = torch.ones(2, 1, 3, 5, dtype=torch.float64)
    steps = list(sampler(name)(exact(schedule), x, grid.even(schedule, n)))
    assert len(steps) == n
    assert torch.isfinite(steps[-1].x).all()
    torch.testing.assert_close(steps[-1].x, steps[-1].x_0)


@pytest.mark.parametrize("n", [*range(1, 40), 333, 999, 1000])
def test_grids_have_just_the_asked_rows_and_end_clean(n: int) -> None:
    for schedule in SCHEDULES:
        g = grid.even(schedule, n)
        assert len(g.t) == n + 1
        assert (float(g.alpha[-1]), float(g.sigma[-1])) == (1.0, 0.0)
        assert (g.t.diff() < 0).all()


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 1000"):
        grid.even(Linear(), steps)


def test_ancestral_noise_keeps_the_distribution() -> None:
    n, schedule = 20_000, Linear()
    x = Stream([1]).normal((n, 1, 1), 0).reshape(n, 1, 1, 1)

    class Same(Stream):
        def normal(self, shape: Any, step: int, like: Tensor | None = None) -> Tensor:
            return super().normal((n, 1, 1), step).reshape(n, 1, 1, 1)

    y = last(ddim(exact(schedule), x, grid.even(schedule, 100), eta=1.0, noise=Same([1])))
    assert abs(float(y.mean()) - MEAN) < 0.02
    assert abs(float(y.std()) - STD) < 0.02
    with pytest.raises(ValueError, match="stream"):
        last(ddim(exact(schedule), x, grid.even(schedule, 2), eta=1.0))


def test_guidance_is_one_batched_forward() -> None:
    calls = []

    def network(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        calls.append(len(x_t))
        return cond.reshape(-1, 1, 1, 1).expand_as(x_t)

    branches = Branches(network, [torch.full((3,), 5.0), torch.full((3,), 2.0)], torch.cat)
    out = guided(branches, 4.0)(torch.zeros(3, 1, 2, 2), torch.ones(3))
    assert calls == [6]
    torch.testing.assert_close(out, torch.full((3, 1, 2, 2), 2 + 4 * (5 - 2.0)))


def test_the_loss_of_noise_is_the_simple_loss() -> None:
    class Third(nn.Module):
        def forward(self, x: Tensor, clock: Tensor, cond: Any) -> Tensor:
            return x / 3

    schedule, t = Betas(), torch.tensor([0.1, 0.8])
    x_0, eps = torch.full((2, 1, 2, 2), 0.7), torch.full((2, 1, 2, 2), -0.4)
    a, o = schedule(t).like(x_0)
    simple = ((a * x_0 + o * eps) / 3 - eps).square().flatten(1).mean(1)
    torch.testing.assert_close(Denoiser(Third(), schedule, prediction("noise")).loss(x_0, t, eps), simple)


def test_names_are_the_public_samplers_and_unknown_ones_are_told() -> None:
    assert all(callable(sampler(name)) for name in SAMPLERS)
    with pytest.raises(ValueError, match="known: ddim, heun, dpmpp_2m"):
        sampler("eular")
    with pytest.raises(ValueError, match="known: clean"):
        prediction("epsilon")


def test_a_schedule_is_built_from_its_recipe() -> None:
    assert ScheduleConfig.model_validate({"kind": "betas", "end": 0.02}).build() == Betas(end=0.02)
    assert ScheduleConfig().build() == Linear()
