"""Grids: exactly the asked number of steps, falling, clean at the end, and what the published ones were."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.diffusion import grid, names
from sfumato.diffusion.schedule import Betas, Cosine, Exploding, Linear, Schedule, Sigmoid

SCHEDULES: list[Schedule] = [
    Linear(),
    Linear(3.0),
    Cosine(),
    Betas(),
    Betas(zero_terminal=True),
    Exploding(),
    Sigmoid(),
]


@pytest.mark.parametrize("name", names.GRIDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_number_of_steps_from_one_to_a_thousand(name: str, schedule: Schedule) -> None:
    some = [*range(1, 65), 99, 100, 101, 250, 251, 333, 499, 500, 501, 666, 750, 999, 1000]
    for steps in range(1, 1001) if schedule in (Linear(), Betas()) else some:  # a flow and a table: every one
        g = grid.grid(name)(schedule, steps)
        assert g.steps == steps
        assert (float(g.alpha[-1]), float(g.sigma[-1])) == (1.0, 0.0)
        assert (torch.atan2(g.sigma, g.alpha).diff() < 0).all(), (name, steps)
        assert (g.t.diff()[:-1] < 0).all()
        assert (g.sigma[:-1] > 0).all()
        if name not in ("leading",):
            assert float(g.t[0]) == 1


@given(st.sampled_from(names.GRIDS), st.sampled_from(SCHEDULES), st.integers(1, 1000), st.floats(0.02, 1.0))
@settings(deadline=None, max_examples=100)
def test_a_later_start_is_where_image_to_image_begins(name: str, schedule: Schedule, steps: int, start: float) -> None:
    g = grid.grid(name)(schedule, steps, start)
    assert g.steps == steps
    assert float(g.t[0]) <= start + 0.002
    if name != "leading":
        assert float(g.t[0]) == pytest.approx(start, abs=0.002)
    assert (torch.atan2(g.sigma, g.alpha).diff() < 0).all()


def test_published_rows() -> None:
    rows = (grid.leading(Betas(), 50, clean=False).t[:-1] * 999).round().long().tolist()
    assert rows == list(range(981, 0, -20))
    assert (grid.trailing(Betas(), 50).t[:-1] * 999).round().long().tolist() == list(range(999, 0, -20))
    assert (grid.sgm_uniform(Betas(), 4).t[:-1] * 999).round().long().tolist() == [999, 749, 499, 249]
    unclean = grid.leading(Betas(), 10, clean=False)
    assert float(unclean.sigma[-1]) == pytest.approx(0.00085**0.5)


def test_karras_rows_are_the_papers() -> None:
    g = grid.karras(Exploding(0.002, 80.0), 18, end=0.002)
    expected = [(80 ** (1 / 7) + k / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for k in range(18)]
    assert g.sigma[:-1].tolist() == pytest.approx(expected, rel=1e-9)


def test_exponential_rows_have_one_ratio() -> None:
    r = [row.ratio for row in grid.exponential(Betas(), 20, end=0.1).rows()[:-1]]
    assert r[-1] == pytest.approx(0.1)
    assert [b / a for a, b in zip(r, r[1:], strict=False)] == pytest.approx([r[1] / r[0]] * 19)


def test_shifted_rows_are_those_of_the_shifted_flow() -> None:
    a, b = grid.shifted(Linear(), 12, shift=2.5), grid.even(Linear(2.5), 12)
    torch.testing.assert_close(a.sigma, b.sigma)
    torch.testing.assert_close(a.alpha, b.alpha)


def test_beta_rows_are_quantiles() -> None:
    def below(t: float) -> float:  # the regularised incomplete beta function, by its power series
        term, total = 1.0, 0.0
        for k in range(2000):
            total += term / (0.6 + k)
            term *= (k + 0.4) * t / (k + 1)
        return total * t**0.6 * math.gamma(1.2) / math.gamma(0.6) ** 2

    t = grid.beta(Linear(), 10).t
    assert [below(x) for x in t[5:].tolist()] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], abs=1e-4)
    torch.testing.assert_close(t, 1 - t.flip(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_rows_between_rows(schedule: Schedule) -> None:
    g = grid.even(schedule, 7)
    for ratio in (0.5, 1.0, 4.0):
        assert g.at(ratio).ratio == pytest.approx(ratio, rel=1e-9)
    top = g.at(math.inf)
    assert top.t == 1
    assert g.at(0.0).t == 0


def test_rows_between_rows_need_the_schedule() -> None:
    t = torch.tensor([0.5, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="give the grid its schedule"):
        grid.Grid(t, 1 - t, t).at(1.0)


@pytest.mark.parametrize("name", names.GRIDS)
@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 1001}, {"steps": 5, "start": 0.0}, {"steps": 5, "start": 1.1}])
def test_impossible_grids_are_refused(name: str, bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="lie"):
        grid.grid(name)(Linear(), **bad)


def test_names_are_the_public_grids() -> None:
    assert tuple(grid.GRIDS) == names.GRIDS
    with pytest.raises(ValueError, match="known: even, trailing"):
        grid.grid("evn")
    with pytest.raises(ValueError, match="above 0; got -1"):
        grid.shifted(Linear(), 3, shift=-1)
    with pytest.raises(ValueError, match="ratio sigma / alpha above 0"):
        grid.karras(Linear(), 3, end=0.0)


def test_the_beta_grid_has_no_poles() -> None:
    for wrong in ({"a": 0.4}, {"b": 0.1}):
        with pytest.raises(ValueError, match="1/2 at the least"):
            grid.beta(Linear(), 4, **wrong)
