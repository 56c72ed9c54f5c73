"""The adaptive sampler: its order and tolerance, what it does with every grid, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import between, flowed, gaussian, mixture
from torch import Tensor

from sfumato.diffusion import grid, names, samplers
from sfumato.diffusion.combinators import clamped, tiled, within
from sfumato.diffusion.guidance import Branches, apg
from sfumato.diffusion.samplers import Denoise, last
from sfumato.diffusion.schedule import Betas, Cosine, Exploding, Linear, Schedule, Sigmoid
from sfumato.streams import Stream

SCHEDULES: list[Schedule] = [Linear(), Cosine(), Betas(), Exploding(), Betas(zero_terminal=True), Sigmoid()]


def counting(denoise: Denoise) -> tuple[Denoise, list[None]]:
    """The denoiser, and a list that grows with every call of it."""
    calls: list[None] = []

    def counted(x_t: Tensor, t: Tensor) -> Tensor:
        calls.append(None)
        return denoise(x_t, t)

    return counted, calls


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_adaptive_sampler_meets_its_tolerance(schedule: Schedule) -> None:
    g = grid.even(schedule, 50)
    noisy = grid.Grid(g.t[:-1], g.alpha[:-1], g.sigma[:-1], schedule)
    x = Stream([1, 2]).normal((2, 3, 5), 0).double() * float(torch.hypot(g.alpha[0], g.sigma[0]))
    answer = flowed(mixture(schedule), x, noisy, 500)
    for tolerance, most in ((1e-2, 120), (1e-3, 180), (1e-4, 350)):
        counted, calls = counting(mixture(schedule))
        y = last(samplers.adaptive(counted, x, noisy, tolerance=tolerance))
        assert len(calls) < most, (tolerance, len(calls))
        assert float((y - answer).square().mean().sqrt()) < 10 * tolerance
    with pytest.raises(ValueError, match="raise its tolerance"):
        last(samplers.adaptive(mixture(schedule), x, noisy, tolerance=1e-6, limit=3))


@pytest.mark.parametrize("target", [gaussian, mixture])
@pytest.mark.parametrize("schedule", [Linear(), Betas(), Exploding()], ids=repr)
def test_the_error_falls_with_the_third_power_of_the_evaluations(schedule: Schedule, target: Any) -> None:
    x = torch.tensor([[0.3, -1.0], [1.5, 0.2], [-0.7, 0.9]], dtype=torch.float64).reshape(3, 2, 1, 1)
    g = between(schedule, 1)
    x = x * float(torch.hypot(g.alpha[0], g.sigma[0]))
    answer, found = flowed(target(schedule), x, g, 500), []
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6):
        counted, calls = counting(target(schedule))
        y = last(samplers.adaptive(counted, x, g, tolerance=tolerance))
        found.append((len(calls), float((y - answer).abs().max())))
    (few, high), *_, (many, low) = found
    assert math.log(high / low) / math.log(many / few) > names.SAMPLERS["adaptive"].order - 0.25, found


@given(st.sampled_from(names.GRIDS), st.sampled_from(SCHEDULES), st.integers(1, 64), st.sampled_from([(1, 1), (3, 5)]))
@settings(deadline=None, max_examples=60)
def test_on_any_grid_it_ends_finite_and_clean(way: str, schedule: Schedule, n: int, places: tuple[int, int]) -> None:
    g = grid.grid(way)(schedule, n)
    x = torch.ones(2, 2, *places) * float(torch.hypot(g.alpha[0], g.sigma[0]))
    steps = list(samplers.adaptive(gaussian(schedule), x, g))
    assert all(s.x.shape == x.shape and s.x.isfinite().all() for s in steps)
    assert torch.equal(steps[-1].x, steps[-1].x_0)
    times = torch.stack([s.time for s in steps])
    assert (times.diff() <= 0).all()
    assert float(times[-1]) == float(g.t[-1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_estimate_that_is_not_finite_is_told_and_not_taken_for_the_end(value: float) -> None:
    """One NaN in one image of two, half-way."""

    def broken(x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = gaussian(Linear())(x_t, t).clone()
        x_0[1, 0, 0, 0] = torch.where(t[1] < 0.5, value, x_0[1, 0, 0, 0])
        return x_0

    with pytest.raises(FloatingPointError, match=r"images \[1\]: x_0 is not finite; try float32"):
        last(samplers.adaptive(broken, torch.ones(2, 1, 2, 3), grid.even(Linear(), 9)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d,
        lambda d: clamped(d, -9, 9),
        lambda d: within(gaussian(Linear()), d, 0.7, 1.0),
        lambda d: within(gaussian(Linear()), tiled(None, 8, 8, at=lambda w: d), 0.7, 1.0),
    ],
)
def test_guidance_that_remembers_steps_is_refused(wrap: Any) -> None:
    """Tries that were not taken would be remembered too, and images go at their own pace."""

    def network(x_t: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        return gaussian(Linear())(x_t, t) + mean

    branches = Branches(network, [torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)], torch.cat)
    x, g = torch.ones(1, 1, 2, 3), grid.even(Linear(), 9)
    with pytest.raises(ValueError, match="remembers a run's steps"):
        last(samplers.adaptive(wrap(apg(branches, 2.0)), x, g))
    assert last(samplers.adaptive(wrap(apg(branches, 2.0, momentum=0.0)), x, g)).isfinite().all()
