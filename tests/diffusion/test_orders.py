"""The order of convergence of the deterministic samplers, the admission test: on exact problems, and on which grids."""

import functools
import math
from typing import Any

import pytest
import torch
from oracles import between, flowed, gaussian, mixture
from torch import Tensor

from sfumato.diffusion import grid, names
from sfumato.diffusion.samplers import last, sampler
from sfumato.diffusion.schedule import Betas, Cosine, Exploding, Linear, Schedule

DETERMINISTIC = [n for n, traits in names.SAMPLERS.items() if traits.evaluations and not traits.stochastic]
POINTS = torch.tensor([[0.3, -1.0], [1.5, 0.2], [-0.7, 0.9]], dtype=torch.float64).reshape(3, 2, 1, 1)
START = 0.95  # a flow begins at pure noise, and ratio-spaced grids step from there at once
BENT: dict[str, dict[str, Any]] = {"polyexponential": {"rho": 1.3}}  # as it comes it is `exponential`


@functools.cache
def start_and_end(schedule: Schedule, target: Any) -> tuple[Tensor, Tensor]:
    """Three points in noise, and where the flow takes them."""
    ends = between(schedule, 1)
    x = POINTS * float(torch.hypot(ends.alpha[0], ends.sigma[0]))
    return x, flowed(target(schedule), x, ends, 500)


@pytest.mark.parametrize("target", [gaussian, mixture])
@pytest.mark.parametrize("schedule", [Linear(), Betas(), Exploding()], ids=repr)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence(name: str, schedule: Schedule, target: Any) -> None:
    """From 8 to 256 steps between two noisy rows the error falls at every doubling, at the end by 2^order."""
    denoise, order = target(schedule), names.SAMPLERS[name].order
    x, answer = start_and_end(schedule, target)
    errors = [
        float((last(sampler(name)(denoise, x, between(schedule, n))) - answer).abs().max())
        for n in (8, 16, 32, 64, 128, 256)
    ]
    assert all(b < a for a, b in zip(errors, errors[1:], strict=False)), errors
    assert math.log2(errors[3] / errors[5]) / 2 > order - 0.25, errors


@pytest.mark.parametrize("way", names.ORDERED)
@pytest.mark.parametrize("schedule", [Linear(), Betas(), Exploding()], ids=repr)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_order_holds_on_the_grids_that_are_said_to_keep_it(name: str, schedule: Schedule, way: str) -> None:
    """From 32 to 128 steps between the first and the last noisy row, which stay where they are."""
    errors = []
    for n in (32, 128):
        g = noisy(grid.grid(way)(schedule, n + 1, START, **BENT.get(way, {})))
        x, answer = on_grid(schedule, way)
        errors.append(float((last(sampler(name)(mixture(schedule), x, g)) - answer).abs().max()))
    assert math.log2(errors[0] / errors[1]) / 2 > names.SAMPLERS[name].order - 0.25, errors


@functools.cache
def on_grid(schedule: Schedule, way: str) -> tuple[Tensor, Tensor]:
    """Points at a grid's first row, and where the flow takes them until its last noisy one."""
    g = noisy(grid.grid(way)(schedule, 3, START, **BENT.get(way, {})))
    x = POINTS * float(torch.hypot(g.alpha[0], g.sigma[0]))
    return x, flowed(mixture(schedule), x, g, 500)


def noisy(g: grid.Grid) -> grid.Grid:
    """A grid without the clean end."""
    return grid.Grid(g.t[:-1], g.alpha[:-1], g.sigma[:-1], g.schedule)


@pytest.mark.parametrize("way", [way for way in names.GRIDS if way not in names.ORDERED])
def test_the_last_noisy_row_of_the_other_grids_moves(way: str) -> None:
    """Their errors are those of the last jump, and have no order between two rows."""
    few, many = (noisy(grid.grid(way)(Betas(), n)).rows() for n in (20, 200))
    assert (few[0].t, few[-1].t) != (many[0].t, many[-1].t)


@pytest.mark.parametrize(("name", "order", "expected"), [
    ("plms", 1, 1), ("plms", 2, 2), ("plms", 3, 3), ("deis", 1, 1), ("deis", 2, 2), ("unipc", 1, 2), ("unipc", 3, 3),
])  # fmt: skip
@pytest.mark.parametrize("schedule", [Linear(), Betas()], ids=repr)
def test_other_orders_than_the_default_ones(name: str, order: int, expected: int, schedule: Schedule) -> None:
    x, answer = on_grid(schedule, "karras")
    errors = []
    for n in (32, 128):
        g = noisy(grid.karras(schedule, n + 1, START))
        errors.append(float((last(sampler(name)(mixture(schedule), x, g, order=order)) - answer).abs().max()))
    assert math.log2(errors[0] / errors[1]) / 2 > expected - 0.25, errors


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "plms", "deis", "unipc"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=repr)
def test_even_steps_of_a_flow_are_beyond_first_order_to_the_clean_end(name: str, schedule: Schedule) -> None:
    """From pure noise, where log SNR is infinite, to x_0: the last jump leaves out an error of sigma², order 2 at best."""
    denoise, x = gaussian(schedule), torch.tensor([-1.3, 0.4, 2.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    answer = 1.5 + 0.5 * x  # the flow keeps quantiles
    errors = [
        float((last(sampler(name)(denoise, x, grid.even(schedule, n))) - answer).abs().max())
        for n in (8, 16, 32, 64, 128, 256)
    ]
    assert math.log2(errors[3] / errors[5]) / 2 > 1.5, errors


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_on_a_beta_table_with_even_steps_the_last_jump_makes_all_first_order(name: str) -> None:
    denoise, x = gaussian(Betas(), 0.3, 0.7), torch.tensor([-1.3, 0.4, 2.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    ends = [last(sampler(name)(denoise, x, grid.even(Betas(), n))) for n in (32, 64, 128, 256)]
    falls = [float((a - b).abs().max()) for a, b in zip(ends, ends[1:], strict=False)]
    assert 0.75 < math.log2(falls[0] / falls[-1]) / 2 < 1.5, falls
