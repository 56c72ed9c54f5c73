"""Guidance against its formulas, by hand; and one batched forward for all the branches of a network."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from oracles import gaussian
from torch import Tensor

from sfumato.diffusion import grid
from sfumato.diffusion.combinators import clamped, keeping, tiled, within
from sfumato.diffusion.guidance import Branches, apg, autoguided, cfg_zero, cfgpp, guided, weighted
from sfumato.diffusion.samplers import Denoise, adaptive, ddim, last
from sfumato.diffusion.samplers.base import times
from sfumato.diffusion.schedule import Betas, Cosine, Linear, Schedule

SHAPE = (3, 2, 3, 5)


def draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Fixed:
    """A network whose estimate is its condition; it counts what it is given."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        assert len(x_t) == len(t) == len(cond)
        self.calls.append(len(x_t))
        return cond


def fixed(*conditions: Tensor) -> Branches:
    return Branches(Fixed(), conditions, torch.cat)


def at(denoise: Denoise, t: float, x: Tensor | None = None) -> Tensor:
    x = draw(9) if x is None else x
    return denoise(x, times(x, t))


def targets(schedule: Schedule, count: int = 3) -> Branches:
    """Branches whose conditions are the means of Gaussian targets (B,)."""

    def network(x_t: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        return gaussian(schedule, mean.reshape(-1, 1, 1, 1), 0.5)(x_t, t)  # type: ignore[arg-type]

    return Branches(network, [torch.full((count,), 1.0).double(), torch.full((count,), -0.5).double()], torch.cat)


def test_guidance_is_one_batched_forward() -> None:
    g = grid.even(Linear(), 5)
    makers: list[tuple[int, Callable[[Branches], Denoise]]] = [
        (2, lambda b: guided(b, 2.0)),
        (2, lambda b: guided(b, 2.0, rescale=0.5)),
        (3, lambda b: weighted(b, [1.0, 2.0])),
        (2, lambda b: apg(b, 2.0)),
        (2, lambda b: cfgpp(b, 0.5, g)),
        (2, lambda b: cfg_zero(b, 2.0, Linear())),
    ]
    for count, make in makers:
        branches = fixed(*(draw(k) for k in range(count)))
        at(make(branches), 0.5)
        assert branches.network.calls == [3 * count]  # type: ignore[attr-defined]


def test_guidance_by_hand() -> None:
    given, base = draw(0), draw(1)
    torch.testing.assert_close(at(guided(fixed(given, base), 4.0), 0.5), base + 4 * (given - base))
    assert torch.equal(at(guided(fixed(given, base), 1.0), 0.5), given)
    assert torch.equal(at(guided(fixed(given, base), 0.0), 0.5), base)


def test_rescale_gives_back_the_deviation_of_the_conditional() -> None:
    given, base = draw(0), draw(1)
    out = at(guided(fixed(given, base), 8.0, rescale=1.0), 0.5)
    torch.testing.assert_close(out.flatten(1).std(1), given.flatten(1).std(1))
    half = at(guided(fixed(given, base), 8.0, rescale=0.5), 0.5)
    plain = at(guided(fixed(given, base), 8.0), 0.5)
    torch.testing.assert_close(half, (out + plain) / 2)
    with pytest.raises(ValueError, match="rescale lies between"):
        guided(fixed(given, base), 8.0, rescale=2.0)


def test_several_conditions_have_their_own_weights() -> None:
    a, b, c, base = (draw(k) for k in range(4))
    out = at(weighted(fixed(a, b, c, base), [2.0, 0.5, -1.0]), 0.5)
    torch.testing.assert_close(out, base + 2 * (a - base) + 0.5 * (b - base) - (c - base))
    torch.testing.assert_close(at(weighted(fixed(a, base), [3.0]), 0.5), at(guided(fixed(a, base), 3.0), 0.5))
    with pytest.raises(ValueError, match="one weight fewer"):
        weighted(fixed(a, b, base), [1.0])


def test_apg_keeps_to_the_side_and_within_its_limit() -> None:
    given, base = draw(0), draw(1)
    plain = at(apg(fixed(given, base), 5.0, parallel=1.0, limit=0.0, momentum=0.0), 0.5)
    torch.testing.assert_close(plain, at(guided(fixed(given, base), 5.0), 0.5))  # all of it switched off is guidance
    update = at(apg(fixed(given, base), 5.0, limit=0.7, momentum=0.0), 0.5) - given
    torch.testing.assert_close((update * given).flatten(1).sum(1), torch.zeros(3).double(), atol=1e-9, rtol=0)
    assert (update.flatten(1).norm(dim=1) <= 4 * 0.7 + 1e-9).all()

    def side(gap: torch.Tensor) -> torch.Tensor:
        along = given / given.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        return gap - (gap * along).flatten(1).sum(1).reshape(-1, 1, 1, 1) * along

    length = (given - base).flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(update, 4 * side((given - base) * (0.7 / length).clamp(max=1)))
    free = at(apg(fixed(given, base), 5.0, limit=1e9, momentum=0.0), 0.5) - given
    torch.testing.assert_close(free, 4 * side(given - base))


def test_apg_remembers_a_run_and_forgets_it_at_the_next() -> None:
    given, base = draw(0), draw(1)
    denoise = apg(fixed(given, base), 2.0, parallel=1.0, limit=0.0, momentum=-0.5)
    first, second = at(denoise, 1.0), at(denoise, 0.5)
    torch.testing.assert_close(first, given + (given - base))
    torch.testing.assert_close(second, given + 0.5 * (given - base))
    assert torch.equal(at(denoise, 1.0), first)


def test_a_time_that_is_asked_again_stands_in_for_itself() -> None:
    """Heun's method ends one step and begins the next at one time."""
    given, base = draw(0), draw(1)
    denoise = apg(fixed(given, base), 2.0, parallel=1.0, limit=0.0, momentum=-0.5)
    asked = [at(denoise, t) for t in (1.0, 1.0, 0.5, 0.5, 0.2)]
    for out, share in zip(asked, (1.0, 1.0, 0.5, 0.5, 0.75), strict=True):
        torch.testing.assert_close(out, given + share * (given - base))


def test_what_a_cancelled_run_left_is_forgotten() -> None:
    x, fresh, used = draw(3), apg(targets(Linear()), 3.0), clamped(apg(targets(Linear()), 3.0), -99, 99)
    steps = ddim(used, x, grid.even(Linear(), 9))
    next(steps), next(steps)
    steps.close()
    g = grid.even(Linear(), 9, 0.5)
    assert torch.equal(last(ddim(used, x, g)), last(ddim(fresh, x, g)))


def test_windows_have_memories_of_their_own() -> None:
    """With all that looks at a whole picture switched off, windows of APG are APG, at every step of a run."""
    g, x = grid.even(Linear(), 9), draw(3)

    def momentous(branches: Branches) -> Denoise:
        return apg(branches, 3.0, parallel=1.0, limit=0.0)

    whole = last(ddim(momentous(targets(Linear())), x, g))
    parts = tiled(None, 3, 2, at=lambda w: momentous(targets(Linear()).at(w)))
    torch.testing.assert_close(last(ddim(parts, x, g)), whole)
    torch.testing.assert_close(last(ddim(parts, x, g)), whole)  # and again
    shared = momentous(targets(Linear()))
    for wrap in (lambda d: d, lambda d: clamped(d, -9, 9)):
        with pytest.raises(ValueError, match="windows share guidance that remembers a run's steps"):
            tiled(wrap(shared), 3, 2)
        with pytest.raises(ValueError, match="give each its own, at=lambda w: apg"):
            at(tiled(None, 3, 2, at=lambda w, wrap=wrap: wrap(shared)), 0.5)  # type: ignore[misc]


@pytest.mark.parametrize("schedule", [Linear(), Betas(), Cosine()], ids=repr)
def test_cfgpp_is_its_algorithm(schedule: Schedule) -> None:
    branches, g, scale = targets(schedule), grid.even(schedule, 9), 0.6
    x = draw(3)
    y = last(ddim(cfgpp(branches, scale, g), x, g))
    both = branches.bound()
    for here, there in g.pairs():  # Chung et al. (2025), algorithm 2
        conditional, base = both(x, torch.full((3,), here.t).double())
        eps = (x - here.alpha * base) / here.sigma
        x = there.alpha * torch.lerp(base, conditional, scale) + there.sigma * eps
    torch.testing.assert_close(y, x)
    with pytest.raises(ValueError, match="between 0 and 1"):
        cfgpp(branches, 7.5, g)


def test_cfg_zero_is_its_algorithm_on_velocities() -> None:
    schedule = Linear()
    branches, x, t = targets(schedule), draw(3), 0.6
    conditional, base = branches.bound()(x, torch.full((3,), t).double())
    v_cond, v_base = (x - conditional) / t, (x - base) / t
    s = (v_cond * v_base).flatten(1).sum(1) / v_base.square().flatten(1).sum(1)
    s = s.reshape(-1, 1, 1, 1)
    v = s * v_base + 3 * (v_cond - s * v_base)
    torch.testing.assert_close(at(cfg_zero(branches, 3.0, schedule), t, x), x - t * v)


def test_cfg_zero_may_stand_still_at_first() -> None:
    schedule, x = Linear(), draw(3)
    steps = list(ddim(cfg_zero(targets(schedule), 3.0, schedule, still=0.85), x, grid.even(schedule, 10)))
    torch.testing.assert_close(steps[0].x, x)
    torch.testing.assert_close(steps[1].x, x)
    assert float((steps[2].x - x).abs().max()) > 0.01


def test_autoguidance_moves_away_from_the_weaker_model() -> None:
    strong, weak = gaussian(Linear(), 1.0), gaussian(Linear(), 0.0)
    out = at(autoguided(strong, weak, 2.0), 0.5)
    torch.testing.assert_close(out, 2 * at(strong, 0.5) - at(weak, 0.5))


def test_guidance_in_an_interval_runs_one_of_the_two() -> None:
    inside, outside = fixed(draw(0), draw(1)), fixed(draw(2))
    denoise = within(guided(inside, 2.0), lambda x, t: outside.bound()(x, t)[0], 0.3, 0.7)
    x = draw(9)
    last(ddim(denoise, x, grid.even(Linear(), 10)))
    assert len(inside.network.calls) == 5  # type: ignore[attr-defined]
    assert len(outside.network.calls) == 5  # type: ignore[attr-defined]


def test_an_interval_holds_for_every_picture_of_the_adaptive_sampler() -> None:
    x = draw(4)
    strong, plain = gaussian(Linear(), 2.0), gaussian(Linear(), 0.0)
    denoise = within(strong, plain, 0.3, 0.7)
    alone = torch.cat([last(adaptive(denoise, x[k : k + 1], grid.even(Linear(), 9), tolerance=1e-4)) for k in range(3)])
    torch.testing.assert_close(
        last(adaptive(denoise, x, grid.even(Linear(), 9), tolerance=1e-4)), alone, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("make", [lambda b, g: cfgpp(b, 0.5, g), lambda b, g: apg(b, 2.0)])
def test_guidance_that_reads_the_time_refuses_mixed_ones(make: Any) -> None:
    g = grid.even(Linear(), 5)
    with pytest.raises(ValueError, match="`adaptive` does not"):
        make(targets(Linear()), g)(draw(0), torch.tensor([0.1, 0.2, 0.3]).double())


def test_cfg_zero_holds_for_every_picture_of_the_adaptive_sampler() -> None:
    x, schedule = draw(4), Linear()
    rows, t = grid.even(schedule, 9), torch.tensor([0.0, 0.5, 0.9]).double()

    def make(count: int) -> Denoise:
        return cfg_zero(targets(schedule, count), 2.0, schedule, still=0.85)

    together, mixed = last(adaptive(make(3), x, rows, tolerance=1e-4)), make(3)(x, t)
    for k in range(3):
        one = x[k : k + 1]
        torch.testing.assert_close(
            together[k : k + 1], last(adaptive(make(1), one, rows, tolerance=1e-4)), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(mixed[k : k + 1], make(1)(one, t[k : k + 1]))


def test_cfgpp_is_refused_under_adaptive_for_one_picture_too() -> None:
    g = grid.even(Linear(), 5)
    with pytest.raises(ValueError, match="`adaptive` does not"):
        last(adaptive(cfgpp(targets(Linear()), 0.5, g), draw(0)[:1], g))


def test_a_pair_is_a_pair() -> None:
    with pytest.raises(ValueError, match="a condition and a base; got 3"):
        guided(fixed(draw(0), draw(1), draw(2)), 2.0)


def test_kept_parts_are_refused_inside_of_guidance() -> None:
    kept = keeping(gaussian(Linear()), draw(0), torch.ones(1, 1, 3, 5))
    with pytest.raises(ValueError, match="must be outermost"):
        autoguided(kept, gaussian(Linear()), 2.0)

    def join(several: Sequence[Any]) -> Any:
        return several[0]

    with pytest.raises(ValueError, match="must be outermost"):
        Branches(kept, [None, None], join)  # type: ignore[arg-type]


def test_guided_sampling_of_gaussians_moves_the_mean() -> None:
    """Between two Gaussians of one width the guided flow ends on a Gaussian of that width, moved outwards."""
    x = draw(5)
    y = last(ddim(guided(targets(Linear()), 2.0), x, grid.even(Linear(), 400)))
    torch.testing.assert_close(y.mean() - 0.5 * x.mean(), torch.tensor(2.5).double(), atol=0.02, rtol=0)
    assert math.isclose(float(y.std() / x.std()), 0.5, rel_tol=0.02)
