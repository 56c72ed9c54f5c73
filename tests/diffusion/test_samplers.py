"""Samplers against exact answers: the order of the deterministic ones, the distribution of the stochastic ones."""

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import gaussian, mixture, mixture_samples
from safetensors import safe_open
from torch import Tensor, nn

from sfumato.diffusion import grid, names, samplers
from sfumato.diffusion.combinators import clamped, quantised, tiled, within
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.guidance import Branches, apg, cfgpp, guided
from sfumato.diffusion.prediction import prediction
from sfumato.diffusion.samplers import Denoise, last, sampler
from sfumato.diffusion.schedule import Betas, Cosine, Exploding, Linear, Schedule, Sigmoid
from sfumato.streams import Stream
from tests.outside import GOLDEN

SCHEDULES: list[Schedule] = [Linear(), Cosine(), Betas(), Exploding(), Betas(zero_terminal=True), Sigmoid()]
BOUND = [n for n, traits in names.SAMPLERS.items() if traits.evaluations]
DETERMINISTIC = [n for n in BOUND if not names.SAMPLERS[n].stochastic]
STOCHASTIC = [n for n in BOUND if names.SAMPLERS[n].stochastic]


def run(name: str, denoise: Denoise, x: Tensor, g: grid.Grid, seeds: tuple[int, ...] = (7,), **options: Any) -> Tensor:
    if names.SAMPLERS[name].stochastic:
        options["noise"] = Stream(seeds)
    return last(sampler(name)(denoise, x, g, **options))


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde"])
@pytest.mark.parametrize("target", ["gaussian", "mixture"])
@pytest.mark.parametrize("schedule", [Linear(), Betas(zero_terminal=True), Exploding()], ids=repr)
def test_stochastic_samplers_converge_in_distribution(name: str, schedule: Schedule, target: str) -> None:
    # the first-order ones need more steps, and those that read a path take longer for each
    steps = 50 if name.startswith("dpmpp") else 400 if target == "gaussian" else 100
    shape, g = (1, 2, 64, 96), grid.karras(schedule, steps, end=0.02)
    x = torch.hypot(g.alpha[0], g.sigma[0]) * Stream([1]).normal(shape[1:], 0).double()
    options = {"eta": 1.0, "noise": Stream([2])} if name == "ddim" else {"noise": Stream([2])}
    if target == "gaussian":
        y = last(sampler(name)(gaussian(schedule), x, g, **options))
        assert abs(float(y.mean()) - 1.5) < 0.02
        assert abs(float(y.std()) - 0.5) < 0.015
        exact = 1.5 + 0.5 * Stream([3]).normal((y.numel(),), 0).double().flatten()
        assert ks(y.flatten(), exact) < 1.95 * math.sqrt(2 / y.numel())
        return
    points = last(sampler(name)(mixture(schedule), x, g, **options)).movedim(1, -1).reshape(-1, 2)
    exact = mixture_samples(len(points), seed=3)
    torch.testing.assert_close(points.mean(0), exact.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(points.T.cov(), exact.T.cov(), atol=0.05, rtol=0)
    for angle in (0.0, 0.8, 1.6, 2.4):  # Kolmogorov and Smirnov's two-sample test, at 1 in 1000
        side = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        assert ks(points @ side, exact @ side) < 1.95 * math.sqrt(2 / len(points)), angle


def ks(a: Tensor, b: Tensor) -> float:
    """The largest gap between two empirical distributions of equal size."""
    _, order = torch.cat([a, b]).sort()
    return float(torch.where(order < len(a), 1.0, -1.0).cumsum(0).abs().max() / len(a))


def test_the_two_sample_test_sees_a_wrong_variance() -> None:
    """Noise that is a tenth too strong fails it: the test above can fail."""
    exact = mixture_samples(8192, 3)[:, 0]
    assert ks(exact * 1.1, mixture_samples(8192, 4)[:, 0]) > 1.95 * math.sqrt(2 / 8192)


def test_consistency_sampling_of_a_perfect_map_is_exact() -> None:
    """lcm needs a network that maps to the end of the flow; that of a Gaussian is known."""

    def map_to_end(x_t: Tensor, t: Tensor) -> Tensor:
        a, o = Linear()(t).like(x_t)
        return 1.5 + 0.5 * (x_t - a * 1.5) / (a**2 * 0.25 + o**2).sqrt()

    x = Stream([1]).normal((1, 100, 200), 0).double()
    y = last(samplers.lcm(map_to_end, x, grid.even(Linear(), 4), noise=Stream([2])))
    assert abs(float(y.mean()) - 1.5) < 0.02
    assert abs(float(y.std()) - 0.5) < 0.02


@given(
    st.sampled_from(BOUND),
    st.sampled_from(names.GRIDS),
    st.sampled_from(SCHEDULES),
    st.integers(1, 64),
    st.sampled_from([(1, 1), (3, 5), (7, 2)]),
)
@settings(deadline=None, max_examples=150)
def test_any_sampler_on_any_grid_ends_finite_and_clean(
    name: str, way: str, schedule: Schedule, n: int, places: tuple[int, int]
) -> None:
    calls = 0
    exact = gaussian(schedule)

    def counted(x_t: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert t.shape == (2,)
        return exact(x_t, t)

    g = grid.grid(way)(schedule, n)
    x = torch.ones(2, 2, *places) * float(torch.hypot(g.alpha[0], g.sigma[0]))
    options = {"noise": Stream([3, 4])} if names.SAMPLERS[name].stochastic else {}
    steps = list(sampler(name)(counted, x, g, **options))
    assert len(steps) == n
    assert calls == names.SAMPLERS[name].count(n)
    assert all(s.x.shape == x.shape and s.x.isfinite().all() for s in steps)
    assert torch.equal(steps[-1].x, steps[-1].x_0)
    assert torch.equal(torch.stack([s.time for s in steps]), g.t[1:])


@pytest.mark.parametrize("name", [*DETERMINISTIC, *STOCHASTIC, "adaptive"])
def test_a_batch_gives_the_pictures_of_its_singles(name: str) -> None:
    schedule, seeds = Cosine(), (5, 6, 7)
    x = Stream(seeds).normal((2, 3, 5), 0).double()
    g = grid.even(schedule, 12)
    many = run(name, mixture(schedule), x, g, seeds)
    for k, seed in enumerate(seeds):
        torch.testing.assert_close(
            many[k : k + 1], run(name, mixture(schedule), x[k : k + 1], g, (seed,)), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde"])
def test_twice_the_steps_see_the_same_path(name: str) -> None:
    """Refined on one path a sampler settles on one picture; on other noise it would not."""
    schedule, x = Linear(), Stream([1]).normal((2, 16, 16), 0).double()
    ends = [run(name, mixture(schedule), x, grid.exponential(schedule, n), (9,)) for n in (50, 100, 200)]
    other = run(name, mixture(schedule), x, grid.exponential(schedule, 200), (10,))
    gaps = [float((a - b).abs().median()) for a, b in ((ends[0], ends[1]), (ends[1], ends[2]), (other, ends[2]))]
    assert gaps[1] < 0.8 * gaps[0] < 0.4 * gaps[2], gaps


def test_ancestral_sampling_has_three_names_and_one_formula() -> None:
    schedule, g = Betas(), grid.even(Betas(), 9)
    x = Stream([1]).normal((2, 3, 5), 0).double()
    posterior = run("ddpm", mixture(schedule), x, g)
    torch.testing.assert_close(run("euler_ancestral", mixture(schedule), x, g), posterior)
    torch.testing.assert_close(last(samplers.ddim(mixture(schedule), x, g, eta=1.0, noise=Stream([7]))), posterior)


def test_the_sde_sampler_without_noise_is_the_solver() -> None:
    schedule, g, x = Betas(), grid.even(Betas(), 9), Stream([1]).normal((2, 3, 5), 0).double()
    plain = last(samplers.dpmpp_2m(mixture(schedule), x, g))
    torch.testing.assert_close(last(samplers.dpmpp_2m_sde(mixture(schedule), x, g, eta=0.0, noise=Stream([1]))), plain)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_churn_keeps_the_distribution(name: str) -> None:
    schedule, g = Exploding(), grid.karras(Exploding(), 400 if name == "euler" else 100)
    x = 80 * Stream([1]).normal((1, 100, 200), 0).double()
    y = last(sampler(name)(gaussian(schedule), x, g, churn=30.0, noise=Stream([2])))
    plain = last(sampler(name)(gaussian(schedule), x, g))
    assert float((y - plain).abs().mean()) > 0.1
    assert abs(float(y.mean()) - 1.5) < 0.02
    assert abs(float(y.std()) - 0.5) < 0.02
    with pytest.raises(ValueError, match="give the images' `noise` stream"):
        last(sampler(name)(gaussian(schedule), x, g, churn=30.0))


def golden() -> dict[str, Tensor]:
    path = GOLDEN / "samplers.safetensors"
    if not path.is_file():
        pytest.skip("no golden tensors")
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("table", ["ldm", "sd"])
@pytest.mark.parametrize("name", ["ddim", "plms", "dpm_solver"])
def test_published_trajectories(name: str, table: str, steps: int) -> None:
    schedule = Betas() if table == "sd" else Betas(0.0015, 0.0195)
    case, tensors = f"{table}_{name}_S{steps}_cfg1", golden()
    x, denoise = tensors[f"{case}.x_T"].double(), gaussian(schedule, 0.3, 0.7)
    rows = grid.leading(schedule, steps, clean=False)
    way = {
        "ddim": lambda: samplers.ddim(denoise, x, rows),
        "plms": lambda: samplers.plms(denoise, x, rows, published=True),
        "dpm_solver": lambda: samplers.dpmpp_2m(
            denoise, x, grid.even(schedule, steps, clean=False), lower_last=steps < 15
        ),
    }[name]
    done = list(way())
    torch.testing.assert_close(done[-1].x.float(), tensors[f"{case}.out"], atol=1e-4, rtol=0)
    if f"{case}.traj" in tensors:
        path = torch.stack([x, *(s.x for s in done)]).float()
        torch.testing.assert_close(path, tensors[f"{case}.traj"], atol=1e-4, rtol=0)


def test_names_are_the_public_samplers_and_know_what_they_are() -> None:
    public = {n for n in samplers.__all__ if inspect.isfunction(getattr(samplers, n))} - {"last", "sampler"}
    assert set(names.SAMPLERS) == public
    for name, traits in names.SAMPLERS.items():
        needs = inspect.signature(sampler(name)).parameters.get("noise")
        if traits.stochastic:
            assert needs is not None
            with pytest.raises(ValueError, match="draws noise: give the images' `noise` stream"):
                last(sampler(name)(gaussian(Linear()), torch.ones(1, 1, 1, 1), grid.even(Linear(), 3)))
    with pytest.raises(ValueError, match="known: ddim, ddpm"):
        sampler("eular")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("ddim", {"eta": 1.5}),
        ("plms", {"order": 5}),
        ("deis", {"order": 0}),
        ("unipc", {"order": 4}),
        ("euler", {"churn": -1.0}),
        ("adaptive", {"tolerance": 0.0}),
    ],
)
def test_options_out_of_range_are_told(name: str, bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="lies between"):
        last(sampler(name)(gaussian(Linear()), torch.ones(1, 1, 1, 1), grid.even(Linear(), 3), **bad))


def test_steps_can_be_left_early_and_leave_no_trace() -> None:
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    steps = samplers.dpmpp_2m(gaussian(Linear()), x, grid.even(Linear(), 5))
    first = next(steps)
    steps.close()
    assert not first.x.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", BOUND)
def test_no_step_asks_the_device_for_a_number(name: str) -> None:
    """On the meta device, which has no numbers to give, any such question is an error."""
    schedule, x = Betas(), torch.empty(2, 4, 6, 5, device="meta")
    branches = Branches(
        lambda x_t, t, cond: gaussian(schedule)(x_t, t) + cond, [torch.zeros(2, 1, 1, 1, device="meta")] * 2, torch.cat
    )
    g = grid.default(schedule, 3)
    for denoise in (
        guided(branches, 3.0, rescale=0.5),
        apg(branches, 3.0),
        cfgpp(branches, 0.5, g),
        within(guided(branches, 2.0), gaussian(schedule), 0.3, 0.7),
        quantised(clamped(tiled(gaussian(schedule), 4, 2)), torch.round),
    ):
        y = run(name, denoise, x, g, (1, 2))
        assert y.device.type == "meta"
        assert y.shape == x.shape
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run("adaptive", gaussian(schedule), x, g)


@pytest.mark.parametrize("name", BOUND)
def test_no_step_of_a_denoiser_asks_the_device_for_a_number(name: str) -> None:
    """Noise prediction where the schedule's end is pure noise: alone, and as guidance runs it."""

    class Noise(nn.Module):
        def forward(self, x: Tensor, clock: Tensor, cond: Tensor | None) -> Tensor:
            return x * clock.reshape(-1, 1, 1, 1)

    schedule, x = Betas(zero_terminal=True), torch.empty(2, 4, 6, 5, device="meta")
    denoiser = Denoiser(Noise(), schedule, prediction("noise"))
    branches = Branches(denoiser, [torch.zeros(2, device="meta")] * 2, torch.cat)
    for denoise in (denoiser, guided(branches, 3.0), tiled(None, 4, 2, at=lambda w: apg(branches.at(w), 3.0))):
        assert run(name, denoise, x, grid.default(schedule, 3, 0.999), (1, 2)).device.type == "meta"
        with pytest.raises(ValueError, match="start the grid below 1"):
            run(name, denoise, x, grid.default(schedule, 3), (1, 2))


@pytest.mark.parametrize(
    ("name", "order"), [(n, k) for n, most in (("plms", 4), ("deis", 3), ("unipc", 3)) for k in range(1, most + 1)]
)
def test_every_order_begins_at_pure_noise(name: str, order: int) -> None:
    x = torch.tensor([-1.3, 0.4, 2.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    y = run(name, gaussian(Linear()), x, grid.even(Linear(), 100), order=order)
    torch.testing.assert_close(y, 1.5 + 0.5 * x, atol=0.02 if order == 1 else 2e-3, rtol=0)


@pytest.mark.parametrize("name", ["heun", "plms"])
@pytest.mark.parametrize(
    "schedule",
    [Linear(), Betas(form="cosine"), Sigmoid(-3.0, 2.0, 0.9)],
    ids=["linear", "cosine table", "sigmoid"],
)
@pytest.mark.parametrize("start", [1.0, 0.9999])
def test_nearly_pure_noise_is_no_worse_a_beginning_than_pure_noise(name: str, schedule: Schedule, start: float) -> None:
    """Ratio-spaced grids jump from a ratio of thousands to 20: averaged in eps that step was wrong by its length."""
    g = grid.grid("karras")(schedule, 50, start)
    x = g.begin(Stream([1]).normal((1, 100, 100), 0))
    assert abs(float(run(name, gaussian(schedule), x, g, (1,)).std()) - 0.5) < 0.03
