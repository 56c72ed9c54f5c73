"""Against the published samplers on their own problem: Stable Diffusion's table, x_0 ~ N(0.3, 0.7²), their x_T."""

import math
from typing import Any

import pytest
import torch
from oracles import gaussian, mixture
from safetensors import safe_open
from torch import Tensor

from sfumato.diffusion import grid, names
from sfumato.diffusion.samplers import last, sampler
from sfumato.diffusion.schedule import Betas, Linear, Scales, Schedule
from sfumato.streams import Stream
from tests.outside import GOLDEN


def x_t() -> Tensor:
    path = GOLDEN / "samplers.safetensors"
    if not path.is_file():
        pytest.skip("no golden tensors")
    with safe_open(path, "pt") as file:
        return file.get_tensor("sd_ddim_S10_cfg1.x_T").double()


def spread(name: str, g: grid.Grid, **options: Any) -> float:
    return float(last(sampler(name)(gaussian(Betas(), 0.3, 0.7), x_t(), g, **options)).std())


def test_the_exact_answer_carried_to_the_clean_end() -> None:
    alpha, sigma = (float(s) for s in Betas()(torch.ones((), dtype=torch.float64)))
    exact = 0.3 + 0.7 * (x_t() - 0.3 * alpha) / math.hypot(0.7 * alpha, sigma)
    assert float(exact.std()) == pytest.approx(0.6729, abs=5e-5)


@pytest.mark.parametrize(("evaluations", "within"), [(10, 0.003), (20, 0.001), (50, 0.001)])
def test_the_default_is_nearer_than_all_of_them(evaluations: int, within: float) -> None:
    assert spread(names.DEFAULT, grid.default(Betas(), evaluations)) == pytest.approx(0.67286, abs=within)


def test_the_published_ones_are_where_they_were_measured() -> None:
    """What is wrong with them is their grids: ours with theirs has their error."""
    for steps, ddim, plms, solver in (
        (10, 0.574, 0.6628, 0.6146),
        (20, 0.620, 0.6690, 0.7349),
        (50, 0.651, 0.6725, 0.6907),
    ):
        rows, even = grid.leading(Betas(), steps, clean=False), grid.even(Betas(), steps, clean=False)
        assert spread("ddim", rows) == pytest.approx(ddim, abs=6e-4)
        assert spread("plms", rows, published=True) == pytest.approx(plms, abs=6e-5)
        assert spread("dpmpp_2m", even, lower_last=steps < 15) == pytest.approx(solver, abs=6e-5)


def fine(schedule: Schedule, x: Tensor) -> Tensor:
    """Where the flow takes x: 600 steps to a ratio of 0.001, on a schedule that reaches it."""
    alpha, sigma = (float(s) for s in schedule(torch.ones((), dtype=torch.float64)))
    flow, high = Linear(), sigma / alpha if alpha else 1000.0
    t = flow.time(Scales.of(torch.linspace(math.log(high), math.log(1e-3), 600).double()))
    t[0] = t[0] if alpha else 1.0
    g = grid.Grid(
        torch.cat([t, t.new_zeros(1)]), 1 - torch.cat([t, t.new_zeros(1)]), torch.cat([t, t.new_zeros(1)]), flow
    )
    return last(sampler("heun")(mixture(flow), x * float(1 - t[0]) / alpha if alpha else x, g))


@pytest.mark.parametrize("schedule", [Betas(), Linear(), Betas(zero_terminal=True)], ids=repr)
def test_the_default_is_good_on_a_mixture_too(schedule: Schedule) -> None:
    """The mean distance of points to where they belong, data of unit size; the field's habit is beside it."""
    x = Stream([1]).normal((2, 32, 32), 0).double()
    truth, errors = fine(schedule, x), {}
    for n, limit in ((10, 0.016), (20, 0.005), (50, 0.002)):
        errors[n] = float(
            (last(sampler(names.DEFAULT)(mixture(schedule), x, grid.default(schedule, n))) - truth).abs().mean()
        )
        habit = float((last(sampler("dpmpp_2m")(mixture(schedule), x, grid.default(schedule, n))) - truth).abs().mean())
        assert errors[n] < limit, errors
        assert n == 50 or errors[n] < habit
