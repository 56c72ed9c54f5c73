"""Weightings say the same of the same error whatever is predicted; densities draw what they promise."""

import math

import pytest
import torch

from sfumato.diffusion.loss import (
    CAP,
    DENSITIES,
    WEIGHTINGS,
    density,
    edm,
    min_snr,
    sigmoid,
    soft_min_snr,
    stratified,
    weighting,
)
from sfumato.diffusion.prediction import PREDICTIONS, prediction
from sfumato.diffusion.schedule import Betas, Cosine, Exploding, Linear, Scales, Schedule, Sigmoid

SCHEDULES: list[Schedule] = [Linear(), Cosine(), Betas(), Exploding(), Sigmoid()]


def scales(schedule: Schedule) -> Scales:
    return schedule(torch.linspace(0.05, 0.95, 30, dtype=torch.float64))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", [n for n in WEIGHTINGS if n != "simple"])
def test_a_weighting_is_of_the_error_of_x_0_whatever_is_predicted(name: str, schedule: Schedule) -> None:
    s = scales(schedule)
    implied = []
    for predict in PREDICTIONS.values():
        _, p, q = predict(s)
        weight = WEIGHTINGS[name](s, predict)
        inside = weight < CAP
        implied.append((weight * ((q * s.alpha - p * s.sigma) / s.sigma) ** 2, inside))
    for value, inside in implied[1:]:
        both = inside & implied[0][1]
        torch.testing.assert_close(value[both], implied[0][0][both])


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_weights_are_cut_where_they_would_be_infinite(name: str) -> None:
    for schedule in SCHEDULES:
        ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
        for predict in PREDICTIONS.values():
            assert (WEIGHTINGS[name](ends, predict) <= CAP).all()
            assert (WEIGHTINGS[name](ends, predict) >= 0).all()


def test_the_published_weights() -> None:
    s = scales(Betas())
    snr = (s.alpha / s.sigma) ** 2
    noise, clean, v = (PREDICTIONS[n] for n in ("noise", "clean", "v"))
    torch.testing.assert_close(min_snr(s, noise), torch.minimum(snr, torch.tensor(5.0)) / snr)
    torch.testing.assert_close(min_snr(s, v), torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))
    torch.testing.assert_close(soft_min_snr(s, clean), 5 * snr / (snr + 5))
    torch.testing.assert_close(sigmoid(s, noise, bias=2.0), torch.sigmoid(2 - snr.log()))
    r = 1 / snr.sqrt()
    torch.testing.assert_close(edm(s, clean), (r**2 + 0.25) / (0.5 * r) ** 2)
    torch.testing.assert_close(edm(s, PREDICTIONS["edm"]), torch.ones_like(r))
    for data_std in (0.5, 1.0, 2.0):  # edm weighs its own prediction alike, and sees inputs of variance 1
        own = prediction("edm", data_std)
        torch.testing.assert_close(weighting("edm", data_std)(s, own), torch.ones_like(r))
        variance = own(s).into ** 2 * ((s.alpha * data_std) ** 2 + s.sigma**2)
        torch.testing.assert_close(variance, torch.ones_like(r))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", list(DENSITIES))
def test_densities_map_uniform_draws_to_times_in_order(name: str, schedule: Schedule) -> None:
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = density(name)(u, schedule)
    assert t.isfinite().all()
    assert float(t.min()) >= 0
    assert float(t.max()) <= 1
    assert (t.diff() >= 0).all()
    assert density(name)(u.float(), schedule).dtype == torch.float32


def test_moments_of_densities() -> None:
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    logit = density("logit_normal")(u, Linear()).logit()
    assert float(logit.mean()) == pytest.approx(0, abs=1e-6)
    assert float(logit.std()) == pytest.approx(1, abs=1e-3)
    wide = Exploding(1e-4, 1e4)
    ratio = wide(density("log_normal")(u, wide)).sigma.log()
    assert float(ratio.mean()) == pytest.approx(-1.2, abs=1e-3)
    assert float(ratio.std()) == pytest.approx(1.2, abs=2e-3)
    middle = Linear()(density("cosine_interpolated")(torch.tensor([0.5], dtype=torch.float64), Linear()))
    expected = math.sqrt(2)  # half-way the shift is log sqrt(32 / 64 * 64 / 64), and the cosine's log SNR is 0
    assert float(middle.sigma / middle.alpha) == pytest.approx(expected, rel=1e-9)
    for u in (0.1, 0.9):  # eq. of section 3.1: the cosine's log SNR, and the shift of 64 pixels' noise to 32 pixels'
        far = Linear()(density("cosine_interpolated")(torch.tensor([u], dtype=torch.float64), Linear()))
        ends = [math.atan(math.exp(s * 7.5)) for s in (-1, 1)]
        logsnr = -2 * math.log(math.tan(ends[0] + u * (ends[1] - ends[0])))
        logsnr += (1 - u) * 2 * math.log(64 / 64) + u * 2 * math.log(32 / 64)
        assert float((far.alpha / far.sigma).log() * 2) == pytest.approx(logsnr, rel=1e-9)
    large = Linear()(density("cosine_interpolated")(torch.tensor([0.5], dtype=torch.float64), Linear(), size=256))
    assert float(large.sigma / large.alpha) == pytest.approx(4 * expected, rel=1e-9)  # noise of four times the strength


def test_strata_hold_one_example_each() -> None:
    u = torch.rand(64, generator=torch.Generator().manual_seed(0))
    places = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    t = stratified(u, places, 64)
    assert sorted((t * 64).floor().long().tolist()) == list(range(64))
    halves = torch.cat([stratified(u[:32], places[:32], 64), stratified(u[32:], places[32:], 64)])
    assert torch.equal(halves, t)  # an accumulated batch is the whole one


def test_unknown_densities_are_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known: uniform, logit_normal"):
        density("beta")


def test_strata_end_below_one() -> None:
    assert float(stratified(torch.tensor([1 - 2**-24]), torch.tensor([255]), 256)) < 1
