"""Into noise and back, and the likelihood of what is known exactly."""

import math

import pytest
import torch
from oracles import gaussian, mixture, mixture_samples
from torch import Tensor

from sfumato.diffusion import grid
from sfumato.diffusion.inversion import inversion
from sfumato.diffusion.likelihood import discrete, log_likelihood
from sfumato.diffusion.samplers import ddim, last
from sfumato.diffusion.schedule import Betas, Cosine, Exploding, Linear, Schedule
from sfumato.streams import Stream

SCHEDULES: list[Schedule] = [Linear(), Betas(), Cosine(), Exploding()]


def pictures() -> Tensor:
    return mixture_samples(30, 0).reshape(2, 3, 5, 2).movedim(-1, 1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("refine", [0, 2])
def test_inversion_in_one_step_is_finite(schedule: Schedule, refine: int) -> None:
    assert last(inversion(mixture(schedule), pictures(), grid.even(schedule, 1), refine=refine)).isfinite().all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_inversion_comes_back_to_first_order(schedule: Schedule) -> None:
    x_0, errors = pictures(), []
    for steps in (50, 100, 200):
        g = grid.karras(schedule, steps, end=0.02)
        noise = last(inversion(mixture(schedule), x_0, g))
        errors.append(float((last(ddim(mixture(schedule), noise, g)) - x_0).abs().mean()))
    assert errors[2] < 0.05
    assert errors[2] < 0.7 * errors[1] < 0.5 * errors[0], errors


@pytest.mark.parametrize("schedule", [Linear(), Betas(), Cosine()], ids=repr)
def test_refined_inversion_comes_back_to_rounding(schedule: Schedule) -> None:
    x_0, g = pictures(), grid.even(schedule, 50)
    rough = last(ddim(mixture(schedule), last(inversion(mixture(schedule), x_0, g)), g))
    back = last(ddim(mixture(schedule), last(inversion(mixture(schedule), x_0, g, refine=40)), g))
    assert float((back - x_0).abs().max()) < 1e-6 < float((rough - x_0).abs().max())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_pictures_of_a_gaussian_become_its_noise(schedule: Schedule) -> None:
    x_0, g = pictures(), grid.exponential(schedule, 500, end=0.01)
    noise = last(inversion(gaussian(schedule), x_0, g))
    alpha, sigma = float(g.alpha[0]), float(g.sigma[0])
    torch.testing.assert_close(
        noise, alpha * 1.5 + math.hypot(alpha * 0.5, sigma) * (x_0 - 1.5) / 0.5, atol=0.1, rtol=0.02
    )


def test_every_step_of_an_inversion_is_told() -> None:
    steps = list(inversion(gaussian(Linear()), pictures(), grid.even(Linear(), 5)))
    assert [float(s.time) for s in steps] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    with pytest.raises(ValueError, match="refine lies between"):
        next(inversion(gaussian(Linear()), pictures(), grid.even(Linear(), 5), refine=-1))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_likelihood_of_a_gaussian(schedule: Schedule) -> None:
    """Its trace is the same for every probe, so the error of the probes is zero and that of the steps is seen."""
    mean, std = 0.0, 0.9  # near what x_T is taken for, so that the end of the table leaves out little
    x_0, g = pictures(), grid.exponential(schedule, 60, end=0.05)
    found = log_likelihood(gaussian(schedule, mean, std), x_0, g, Stream([1, 2]), probes=2)
    width = math.hypot(std, g.rows()[-2].ratio)
    exact = -0.5 * ((x_0 - mean) / width).square().flatten(1).sum(1) - 30 * math.log(width * math.sqrt(2 * math.pi))
    assert float(found.error.max()) < 1e-6
    torch.testing.assert_close(found.log_p, exact, atol=0.01, rtol=0)
    torch.testing.assert_close(found.bits_per_value(30), -found.log_p / 30 / math.log(2))


def test_likelihood_of_dependent_values_is_unbiased_within_its_error() -> None:
    """A Gaussian whose two channels are correlated: probes differ, and their mean is right."""
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.7]], dtype=torch.float64)
    schedule, g = Exploding(), grid.exponential(Exploding(), 25, end=0.05)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        sigma = schedule(t).sigma[:, None, None]
        gain = cov @ torch.linalg.inv(cov + sigma**2 * torch.eye(2, dtype=torch.float64))
        return (gain @ x_t.flatten(2)).reshape(x_t.shape)

    x_0 = pictures()
    blurred = cov + 0.05**2 * torch.eye(2, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros(2).double(), blurred)
    answer = exact.log_prob(x_0.movedim(1, -1)).flatten(1).sum(1)
    found = log_likelihood(denoise, x_0, g, Stream([1, 2]), probes=120)
    assert (found.error > 0.05).all()
    assert ((found.log_p - answer).abs() < 3 * found.error + 0.01).all()
    few = log_likelihood(denoise, x_0, g, Stream([1, 2]), probes=30)
    assert (few.error / found.error).mean() == pytest.approx(2, rel=0.3)


def test_a_likelihood_does_not_depend_on_the_batch() -> None:
    x_0, g = pictures(), grid.exponential(Exploding(), 10, end=0.1)
    both = log_likelihood(mixture(Exploding()), x_0, g, Stream([1, 2]))
    alone = log_likelihood(mixture(Exploding()), x_0[1:], g, Stream([2]))
    torch.testing.assert_close(both.log_p[1:], alone.log_p)
    torch.testing.assert_close(both.error[1:], alone.error)


@pytest.mark.parametrize("ratio", [0.2, 2.0])
def test_the_bound_on_levels_is_their_entropy_where_the_blur_is_small(ratio: float) -> None:
    """Independent values on four levels, whose posterior means are exact: the bound is the entropy where the blur parts the
    levels, above it where it does not, and never under it."""
    levels = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64)
    often = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    schedule = Linear()

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (s[:, None, None, None, None] for s in schedule(t))
        near = often.log() - (x_t[..., None] - alpha * levels).square() / (2 * sigma**2)
        return (near.softmax(-1) * levels).sum(-1)

    count = 512
    draws = torch.multinomial(often, count * 48, True, generator=torch.Generator().manual_seed(0))
    x_0 = levels[draws].view(count, 3, 4, 4)
    exact = -often[draws].log2().view(count, 48).mean(1)
    g = grid.exponential(schedule, 30, end=ratio)
    found = discrete(denoise, x_0, levels.expand(3, 4), g, Stream(range(count)), probes=2).bits_per_value(48)
    loose, error = float((found - exact).mean()), float((found - exact).std() / count**0.5)
    assert loose > -3 * error
    assert abs(loose) < 0.01 + 3 * error if ratio < 1 else loose > 0.05 + 3 * error, (loose, error)
    assert error < 0.01
