"""Parity with diffusers, where its schedulers do the same: one network function, one grid, float64, 1e-5 relative."""

import importlib
import math
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from oracles import mixture
from torch import Tensor

from sfumato.diffusion import grid, samplers
from sfumato.diffusion.grid import Grid, Row
from sfumato.diffusion.samplers import Denoise, last
from sfumato.diffusion.samplers.base import snr
from sfumato.diffusion.schedule import Betas, Linear
from sfumato.streams import Stream

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = Betas()
SEEDS = (3, 4)


def rows_of(timesteps: Tensor, ratios: Tensor) -> Grid:
    """The grid with these table rows as times and these ratios; times between rows are those of the ratio."""
    ratios = ratios.double()
    alpha = 1 / (1 + ratios**2).sqrt()
    t = torch.cat([timesteps.double() / 999, torch.zeros(1).double()])
    return Grid(t, alpha, ratios * alpha, SCHEDULE)


def noise(x: Tensor, t: Tensor, denoise: Denoise) -> Tensor:
    """What the network of noise prediction says, for an exact denoiser that reads the time."""
    alpha, sigma = SCHEDULE(t).like(x)
    return (x - alpha * denoise(x, t)) / sigma


def network(x: Tensor, timestep: Tensor) -> Tensor:
    """eps of the mixture, at a row of the table."""
    t = (timestep.double() / 999).reshape(-1).expand(len(x))
    return noise(x, t, mixture(SCHEDULE))


def estimate(x: Tensor, t: Tensor) -> Tensor:
    """The clean estimate of that very network for x at this row, as diffusers forms it from its own scales."""
    alpha, sigma = SCHEDULE(t).like(x)
    return (x - sigma * noise(x, t, mixture(SCHEDULE))) / alpha


def start() -> Tensor:
    return Stream(SEEDS).normal((2, 3, 5), 0).double()


def theirs(
    scheduler: Any, x: Tensor, steps: int, feed: Callable[[int], Tensor] | None = None, **options: Any
) -> Tensor:
    """Run a scheduler of diffusers to its end in float64; `feed(step)` is the noise it is to add."""
    if not options.pop("set", False):
        scheduler.set_timesteps(steps)
    x = x * float(scheduler.init_noise_sigma)
    for k, t in enumerate(scheduler.timesteps):
        out = network(scheduler.scale_model_input(x, t), t)
        given = {} if feed is None else {"variance_noise": feed(k)}
        x = scheduler.step(out, t, x, **given, **options).prev_sample
    return x


def same(a: Tensor, b: Tensor) -> None:
    """Equal to 1e-5 relative to the pictures' size: diffusers keeps its tables in float32."""
    assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def exact(scheduler: Any) -> Any:
    """The scheduler with its tables in float64, so that differences are those of the method."""
    betas = SCHEDULE.betas()
    if "alphas_cumprod" in vars(scheduler):
        scheduler.betas, scheduler.alphas = betas, 1 - betas
        scheduler.alphas_cumprod = (1 - betas).cumprod(0)
        for name, value in {
            "alpha_t": scheduler.alphas_cumprod.sqrt(),
            "sigma_t": (1 - scheduler.alphas_cumprod).sqrt(),
            "lambda_t": (scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)).sqrt().log(),
        }.items():
            if name in vars(scheduler):
                setattr(scheduler, name, value)
    return scheduler


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim(steps: int, spacing: str) -> None:
    scheduler = exact(
        diffusers.DDIMScheduler(
            **SD, timestep_spacing=spacing, steps_offset=1, clip_sample=False, set_alpha_to_one=True
        )
    )
    scheduler.final_alpha_cumprod = torch.ones(()).double()
    scheduler.set_timesteps(steps)
    ours = getattr(grid, spacing)(SCHEDULE, steps)
    assert (ours.t[:-1] * 999).round().tolist() == scheduler.timesteps.tolist()
    same(last(samplers.ddim(estimate, start(), ours)), theirs(scheduler, start(), steps))


def test_ddim_of_a_zero_terminal_table() -> None:
    """Velocity prediction where the first row is pure noise."""
    schedule = Betas(zero_terminal=True)
    scheduler = diffusers.DDIMScheduler(
        **SD,
        timestep_spacing="trailing",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(10)
    t = torch.arange(1000).double() / 999
    abar = schedule(t).alpha ** 2
    assert float((scheduler.alphas_cumprod.double() - abar).abs().max()) < 1e-6
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = abar, torch.ones(()).double()
    x = start()
    for step in scheduler.timesteps:
        now = (step.double() / 999).expand(2)
        alpha, sigma = schedule(now).like(x)
        x_0 = mixture(schedule)(x, now)
        velocity = (alpha * x - x_0) / sigma
        x = scheduler.step(velocity, step, x).prev_sample
    same(last(samplers.ddim(mixture(schedule), start(), grid.trailing(schedule, 10))), x)


@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_with_fresh_noise_and_ddpm(steps: int) -> None:
    stream = Stream(SEEDS)
    scheduler = exact(diffusers.DDIMScheduler(**SD, timestep_spacing="trailing", clip_sample=False))
    scheduler.final_alpha_cumprod = torch.ones(()).double()

    def feed(k: int) -> Tensor:
        return stream.normal((2, 3, 5), k + 1).double() if k + 1 < steps else torch.zeros(2, 2, 3, 5).double()

    for eta in (0.5, 1.0):
        x = theirs(scheduler, start(), steps, feed, eta=eta)
        same(last(samplers.ddim(estimate, start(), grid.trailing(SCHEDULE, steps), eta=eta, noise=stream)), x)
    same(last(samplers.ddpm(estimate, start(), grid.trailing(SCHEDULE, steps), noise=stream)), x)


def test_ddpm(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = exact(diffusers.DDPMScheduler(**SD, timestep_spacing="trailing", clip_sample=False))
    scheduler.one = torch.ones(()).double()
    draws = iter(range(1, 100))
    module = __import__("diffusers.schedulers.scheduling_ddpm", fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: Stream(SEEDS).normal((2, 3, 5), next(draws)).double())
    ours = last(samplers.ddpm(estimate, start(), grid.trailing(SCHEDULE, 20), noise=Stream(SEEDS)))
    same(ours, theirs(scheduler, start(), 20))


def ve_grid(scheduler: Any) -> Grid:
    """The grid of a scheduler that works in sigma / alpha."""
    times = scheduler.timesteps
    if len(times) != len(scheduler.sigmas) - 1:  # Heun's lists every inner row twice
        times, ratios = torch.cat([times[:1], times[1::2]]), torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
        return rows_of(times, torch.cat([ratios, torch.zeros(1)]))
    return rows_of(times, scheduler.sigmas)


def at_table(g: Grid, x: Tensor, scheduler: Any) -> Tensor:
    """Our start for diffusers' x: its x / alpha is our y."""
    first = g.rows()[0]
    return x * float(scheduler.init_noise_sigma) * first.alpha


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_euler_and_heun(name: str, karras: bool) -> None:
    kind = {"euler": diffusers.EulerDiscreteScheduler, "heun": diffusers.HeunDiscreteScheduler}[name]
    scheduler = kind(**SD, timestep_spacing="trailing", use_karras_sigmas=karras)
    scheduler.set_timesteps(20)
    g = ve_grid(scheduler)
    scheduler.sigmas = scheduler.sigmas.double()
    there = theirs(scheduler, start(), 20, set=True)
    asked = g.rows()[:-1] if name == "euler" else [r for pair in g.pairs() for r in pair][:-1]
    same(last(samplers.sampler(name)(told(asked), at_table(g, start(), scheduler), g)), there)


def told(rows: Iterable[Row], same_times: bool = True) -> Denoise:
    """The network at these rows, call by call, with their own scales: timesteps are rounded to rows of the table.

    Half-way rows are at one ratio in both, at times of diffusers' own interpolation unless `same_times`.
    """
    ahead = iter(rows)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        row = next(ahead)
        assert float(t[0]) == row.t or not same_times
        t = torch.full_like(t, row.t)
        return (x - row.sigma * noise(x, t, mixture(SCHEDULE))) / row.alpha

    return denoise


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_multistep(name: str, karras: bool, steps: int) -> None:
    common = {**SD, "timestep_spacing": "trailing", "use_karras_sigmas": karras, "final_sigmas_type": "zero"}
    scheduler = {
        "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(**common),
        "dpmpp_2m_sde": lambda: diffusers.DPMSolverMultistepScheduler(**common, algorithm_type="sde-dpmsolver++"),
        "unipc": lambda: diffusers.UniPCMultistepScheduler(**common),
    }[name]()
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    g, stream = rows_of(scheduler.timesteps, scheduler.sigmas), Stream(SEEDS)
    options = {"noise": stream} if name.endswith("sde") else {}
    rows = g.rows()

    def feed(k: int) -> Tensor:
        if not rows[k + 1].sigma:
            return torch.zeros(2, 2, 3, 5).double()
        return stream.between((2, 3, 5), snr(rows[k]), snr(rows[k + 1])).double()

    there = theirs(scheduler, start(), steps, feed if name.endswith("sde") else None, set=True)
    same(last(samplers.sampler(name)(told(rows), start(), g, **options)), there)


@pytest.mark.parametrize("order", [1, 3])
def test_orders_of_unipc(order: int) -> None:
    """Theirs takes the second-last step by order 2 where 3 was asked, ours does not: equal up to it."""
    scheduler = diffusers.UniPCMultistepScheduler(
        **SD, timestep_spacing="trailing", final_sigmas_type="zero", solver_order=order
    )
    scheduler.set_timesteps(20)
    scheduler.sigmas = scheduler.sigmas.double()
    g = rows_of(scheduler.timesteps, scheduler.sigmas)
    there, x = [], start()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
        there.append(x)
    for k, step in enumerate(samplers.unipc(told(g.rows()), start(), g, order=order)):
        if order < 3 or k < 18:
            same(step.x, there[k])


@pytest.mark.parametrize("karras", [False, True])
def test_dpmpp_sde(karras: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchsde would only make their Brownian path, and here both read ours."""
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    scheduler = module.DPMSolverSDEScheduler(**SD, timestep_spacing="trailing", use_karras_sigmas=karras)
    scheduler.set_timesteps(20)
    scheduler.sigmas = scheduler.sigmas.double()
    stream, times = Stream(SEEDS), scheduler.timesteps  # rows, and between them the half-way ones
    g = rows_of(times[::2], torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]))
    scheduler.noise_sampler = lambda high, low: stream.between((2, 3, 5), float(high) ** -2, float(low) ** -2).double()
    asked = []
    for (here, there), middle in zip(g.pairs(), [*times[1::2].tolist(), None], strict=True):
        asked.append(here)
        if middle is not None:
            ratio = math.sqrt(here.ratio * there.ratio)
            asked.append(Row(middle / 999, (1 + ratio**2) ** -0.5, ratio * (1 + ratio**2) ** -0.5))
    theirs_x = theirs(scheduler, start(), 20, set=True)
    denoise = told(asked, same_times=False)
    same(last(samplers.dpmpp_sde(denoise, at_table(g, start(), scheduler), g, noise=stream)), theirs_x)


@pytest.mark.parametrize("order", [2, 3])
def test_deis(order: int) -> None:
    """Theirs ends on the table's first row and not clean."""
    scheduler = diffusers.DEISMultistepScheduler(**SD, timestep_spacing="trailing", solver_order=order)
    scheduler.set_timesteps(20)
    scheduler.sigmas = scheduler.sigmas.double()
    g = rows_of(scheduler.timesteps, scheduler.sigmas)
    there = theirs(scheduler, start(), 20, set=True)
    same(last(samplers.deis(told(g.rows()), start(), g, order=order)), there)


def test_lcm(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = exact(diffusers.LCMScheduler(**SD, clip_sample=False, original_inference_steps=50))
    scheduler.final_alpha_cumprod = torch.ones(()).double()
    scheduler.set_timesteps(4)
    draws = iter(range(1, 100))
    module = __import__("diffusers.schedulers.scheduling_lcm", fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: Stream(SEEDS).normal((2, 3, 5), next(draws)).double())

    def bounded(x: Tensor, t: Tensor) -> Tensor:  # the boundary condition that consistency models are trained with
        scaled = t.reshape(-1, 1, 1, 1) * 999 * 10
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
        return skip * x + out * estimate(x, t)

    g = rows_of(scheduler.timesteps, table_ratios(scheduler))
    same(last(samplers.lcm(bounded, start(), g, noise=Stream(SEEDS))), theirs(scheduler, start(), 4, set=True))


def table_ratios(scheduler: Any) -> Tensor:
    abar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    return torch.cat([((1 - abar) / abar).sqrt(), torch.zeros(1).double()])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    sigmas = torch.linspace(1, 0, 11)[:-1].tolist()
    scheduler.set_timesteps(sigmas=sigmas)
    g = grid.even(Linear(shift), 10)
    assert float((scheduler.sigmas.double() - g.sigma).abs().max()) < 1e-6
    x, plain = start(), mixture(Linear())
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        now = sigma.double().expand(2)
        x = scheduler.step((x - plain(x, now)) / now.reshape(-1, 1, 1, 1), t, x).prev_sample.double()
    same(last(samplers.euler(mixture(Linear(shift)), start(), g)), x)


def test_brownian_pairs_have_unit_noise() -> None:
    """What `feed` hands to diffusers is what our sampler adds: both ends known, one draw."""
    a, b = Row(0.9, 0.2, math.sqrt(0.96)), Row(0.5, 0.6, 0.8)
    z = Stream(SEEDS).between((40_000,), snr(a), snr(b))
    assert abs(float(z.std()) - 1) < 0.01
