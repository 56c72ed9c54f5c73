"""The denoiser: every prediction recovers the same estimate, and its loss is finite at both ends."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import gaussian
from torch import Tensor, nn

from sfumato.diffusion import grid
from sfumato.diffusion.denoiser import Denoiser, Quarter, row, thousand
from sfumato.diffusion.loss import WEIGHTINGS, weighting
from sfumato.diffusion.prediction import PREDICTIONS, prediction
from sfumato.diffusion.samplers import dpmpp_2m, last
from sfumato.diffusion.schedule import Betas, Cosine, Exploding, Linear, Schedule, Sigmoid

SCHEDULES: list[Schedule] = [
    Linear(), Linear(3.0), Cosine(), Betas(), Betas(zero_terminal=True), Betas(form="cosine"), Exploding(), Sigmoid()
]  # fmt: skip


class Perfect(nn.Module):
    """The network whose denoiser is that of N(1.5, 0.5²), whatever it predicts."""

    def __init__(self, schedule: Schedule, name: str) -> None:
        super().__init__()
        self.schedule, self.name = schedule, name

    def forward(self, x_in: Tensor, clock: Tensor, cond: Any) -> Tensor:
        t = clock / 1000
        scales = self.schedule(t).like(x_in)
        a, o = scales.alpha, scales.sigma
        x_t = x_in * torch.sqrt(a**2 / 4 + o**2) if self.name == "edm" else x_in
        x_0 = gaussian(self.schedule)(x_t, t)
        return written(self.name, x_0, (x_t - a * x_0) / o, a, o)[1]


class Linearly(nn.Module):
    """A network with something to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor, clock: Tensor, cond: Any) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", list(PREDICTIONS))
def test_every_prediction_recovers_the_same_estimate(schedule: Schedule, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(16, 2, 3, 5, dtype=torch.float64, generator=generator)
    t = torch.rand(16, dtype=torch.float64, generator=generator) * 0.98 + 0.01
    denoiser = Denoiser(Perfect(schedule, name), schedule, prediction(name), thousand)
    torch.testing.assert_close(denoiser(x_t, t), gaussian(schedule)(x_t, t))


@given(
    st.sampled_from(SCHEDULES),
    st.sampled_from(list(PREDICTIONS)),
    st.sampled_from([None, *WEIGHTINGS]),
    st.sampled_from([0.0, 1e-6, 0.3, 1 - 1e-6, 1.0]),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(deadline=None, max_examples=300)
def test_losses_and_gradients_are_finite_at_both_ends(
    schedule: Schedule, name: str, weight: str | None, time: float, dtype: torch.dtype
) -> None:
    network = Linearly().to(dtype)
    x_0, eps = torch.full((3, 2, 3, 5), 0.7, dtype=dtype), torch.ones(3, 2, 3, 5, dtype=dtype)
    denoiser = Denoiser(network, schedule, prediction(name))
    t = torch.full((3,), time, dtype=dtype)
    loss = denoiser.loss(x_0, t, eps, weighting=weight and weighting(weight))
    loss.sum().backward()
    assert loss.shape == (3,)
    assert loss.dtype == dtype
    assert loss.isfinite().all()
    assert network.inner.weight.grad is not None
    assert network.inner.weight.grad.isfinite().all()


@given(st.sampled_from(SCHEDULES), st.sampled_from(list(PREDICTIONS)), st.sampled_from([0.0, 1e-6, 0.3, 1 - 1e-6, 1.0]))
@settings(deadline=None, max_examples=100)
def test_estimates_are_finite_or_refused(schedule: Schedule, name: str, time: float) -> None:
    denoiser = Denoiser(Linearly(), schedule, prediction(name))
    t = torch.full((2,), time)
    if name == "noise" and bool((schedule(t).alpha == 0).all()):
        with pytest.raises(ValueError, match=r"start the grid below 1 \(start=0.98\)"):
            denoiser(torch.ones(2, 2, 3, 5), t)
    else:
        assert denoiser(torch.ones(2, 2, 3, 5), t).isfinite().all()


def test_noise_prediction_samples_a_flow_from_below_its_end() -> None:
    denoiser = Denoiser(Perfect(Linear(), "noise"), Linear(), prediction("noise"), thousand)
    x = torch.randn(1, 2, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="or train with prediction v or flow"):
        last(dpmpp_2m(denoiser, x, grid.even(Linear(), 50)))
    y = last(dpmpp_2m(denoiser, x, grid.even(Linear(), 50, start=0.999)))
    torch.testing.assert_close(y, 1.5 + 0.5 * x, atol=0.02, rtol=0)


def test_without_noise_the_estimate_is_the_picture() -> None:
    x = torch.ones(2, 2, 3, 5)
    for name in PREDICTIONS:
        torch.testing.assert_close(Denoiser(Linearly(), Linear(), prediction(name))(x, torch.zeros(2)), x)


def written(name: str, x_0: Tensor, eps: Tensor, a: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """(what the network sees, what it is to say) at a x_0 + o eps, as the papers have it; edm for data of spread 1/2."""
    x_t, root = a * x_0 + o * eps, torch.sqrt(a**2 / 4 + o**2)
    said = {
        "clean": x_0, "noise": eps, "v": a * eps - o * x_0, "flow": eps - x_0,
        "edm": (2 * o * x_0 - a * eps / 2) / root,
    }  # fmt: skip
    return (x_t / root if name == "edm" else x_t), said[name]


@pytest.mark.parametrize("name", list(PREDICTIONS))
@pytest.mark.parametrize("schedule", [Betas(), Linear()], ids=repr)
def test_the_loss_is_of_what_each_prediction_is_published_to_say(schedule: Schedule, name: str) -> None:
    class Third(nn.Module):
        def forward(self, x: Tensor, clock: Tensor, cond: Any) -> Tensor:
            return x / 3

    t = torch.tensor([0.1, 0.8])
    x_0, eps = torch.full((2, 1, 2, 2), 0.7), torch.full((2, 1, 2, 2), -0.4)
    seen, wanted = written(name, x_0, eps, *schedule(t).like(x_0))
    simple = (seen / 3 - wanted).square().flatten(1).mean(1)
    torch.testing.assert_close(Denoiser(Third(), schedule, prediction(name)).loss(x_0, t, eps), simple)


def test_the_scalars_are_fine_where_the_picture_is_coarse() -> None:
    """In bfloat16 alpha near 1 has two digits; the scales must not be computed in it."""
    schedule, t = Betas(), torch.linspace(0.005, 0.995, 100)
    x = torch.full((100, 2, 3, 5), 0.5, dtype=torch.bfloat16)
    seen: list[Tensor] = []

    class Echo(nn.Module):
        def forward(self, x: Tensor, clock: Tensor, cond: Any) -> Tensor:
            seen.append(clock)
            return torch.zeros_like(x)

    y = Denoiser(Echo(), schedule, prediction("v"), row)(x, t)
    assert y.dtype == torch.bfloat16
    assert seen[0].dtype == torch.float32
    assert torch.equal(y[:, 0, 0, 0], (0.5 * schedule(t.double()).alpha).bfloat16())


def test_clocks() -> None:
    t = torch.tensor([0.0, 0.25, 1.0])
    assert thousand(t).tolist() == [0, 250, 1000]
    assert row(t).tolist() == [0, 249.75, 999]
    quarter = Quarter(Exploding())(t)
    assert quarter.tolist() == pytest.approx(
        [math.log(0.002) / 4, math.log(0.002**0.75 * 80**0.25) / 4, math.log(80) / 4]
    )
    assert Quarter(Linear())(t).isfinite().all()


def test_unknown_names_are_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known: clean, noise, v, flow, edm"):
        prediction("epsilon")
    with pytest.raises(ValueError, match="known: simple, min_snr"):
        weighting("p2")
