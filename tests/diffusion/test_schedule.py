"""Schedules: inverses both ways, finite at both ends, the published tables, and what recipes may say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from sfumato.diffusion.schedule import Betas, Cosine, Exploding, Linear, Scales, Schedule, ScheduleConfig, Sigmoid
from tests.outside import GOLDEN

SCHEDULES: list[Schedule] = [
    Linear(),
    Linear(shift=3.0),
    Cosine(),
    Cosine(shift=2.0),
    Betas(),
    Betas(0.0015, 0.0195),
    Betas(form="linear"),
    Betas(form="sqrt", start=1e-4, end=2e-3),
    Betas(form="cosine"),
    Betas(zero_terminal=True),
    Exploding(),
    Sigmoid(),
    Sigmoid(0.0, 3.0, 0.7),
]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


@each
def test_time_inverts_the_schedule_at_every_time(schedule: Schedule) -> None:
    t = torch.cat([torch.linspace(0, 1, 1237), torch.tensor([1e-6, 1e-3, 1 - 1e-3, 1 - 1e-6])]).double()
    torch.testing.assert_close(schedule.time(schedule(t)), t, atol=1e-7, rtol=0)


@each
def test_the_schedule_inverts_time_at_every_direction(schedule: Schedule) -> None:
    low, high = (float(torch.atan2(s.sigma, s.alpha)) for s in map(schedule, torch.tensor([0.0, 1.0]).double()))
    angle = torch.linspace(low, high, 501, dtype=torch.float64)
    there = schedule(schedule.time(Scales(angle.cos().clamp(min=0), angle.sin())))
    torch.testing.assert_close(torch.atan2(there.sigma, there.alpha), angle, atol=1e-9, rtol=1e-9)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_are_finite_and_noise_only_grows(schedule: Schedule, dtype: torch.dtype) -> None:
    t = torch.linspace(0, 1, 1001, dtype=dtype)
    alpha, sigma = schedule(t)
    assert alpha.dtype == sigma.dtype == dtype
    assert alpha.isfinite().all()
    assert sigma.isfinite().all()
    assert (torch.atan2(sigma.double(), alpha.double()).diff() > 0).all()
    assert float(alpha[0]) >= float(alpha[-1]) >= 0
    assert float(sigma[0]) >= 0
    assert schedule.time(Scales(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))) <= 1
    assert schedule.time(Scales(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))) >= 0


@each
def test_float32_agrees_with_float64(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 257)
    for narrow, wide in zip(schedule(t), schedule(t.double()), strict=True):
        torch.testing.assert_close(narrow.double(), wide, atol=2e-7, rtol=1e-5)


@each
def test_shapes_pass_through(schedule: Schedule) -> None:
    scales = schedule(torch.rand(2, 3, generator=torch.Generator().manual_seed(0)))
    assert scales.alpha.shape == scales.sigma.shape == (2, 3)
    assert schedule.time(scales).shape == (2, 3)


def test_pure_noise_and_pure_signal_are_exact() -> None:
    ends = torch.tensor([0.0, 1.0])
    for schedule in (Linear(), Linear(4.0), Cosine(), Cosine(0.5), Sigmoid()):
        alpha, sigma = schedule(ends)
        assert (float(alpha[1]), float(sigma[0])) == (0, 0)
    assert float(Betas(zero_terminal=True)(ends).alpha[1]) == 0


def test_the_zero_terminal_table_keeps_its_first_row() -> None:
    row = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(Betas(zero_terminal=True)(row).alpha, Betas()(row).alpha, rtol=1e-14, atol=0)


def test_shift_is_that_of_the_ratio() -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for plain, shifted in ((Linear(), Linear(3.0)), (Cosine(), Cosine(3.0))):
        a, b = plain(t), shifted(t)
        torch.testing.assert_close(3 * a.sigma / a.alpha, b.sigma / b.alpha)


@pytest.mark.parametrize(
    ("name", "form"), [("linear", "scaled"), ("sqrt_linear", "linear"), ("sqrt", "sqrt"), ("cosine", "cosine")]
)
def test_published_tables(name: str, form: str) -> None:
    path = GOLDEN / f"betas_{name}.safetensors"
    if not path.is_file():
        pytest.skip("no golden tensors")
    with safe_open(path, "pt") as file:
        torch.testing.assert_close(
            Betas(0.0015, 0.0195, form=form).betas(), file.get_tensor("outputs"), rtol=1e-12, atol=0
        )


def test_published_products() -> None:
    path = GOLDEN / "samplers.safetensors"
    if not path.is_file():
        pytest.skip("no golden tensors")
    t = torch.arange(1000, dtype=torch.float64) / 999
    with safe_open(path, "pt") as file:
        for name, schedule in (("ldm", Betas(0.0015, 0.0195)), ("sd", Betas())):
            abar = file.get_tensor(f"{name}_schedule.alphas_cumprod")
            torch.testing.assert_close(schedule(t).alpha ** 2, abar, rtol=1e-12, atol=0)


def test_the_table_of_stable_diffusion_by_hand() -> None:
    scales = Betas()(torch.tensor([0.0, 1.0], dtype=torch.float64))
    betas = [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * k / 999) ** 2 for k in range(1000)]
    assert float(scales.alpha[1]) == pytest.approx(math.prod(1 - b for b in betas) ** 0.5, rel=1e-12)
    assert float(scales.sigma[0]) == pytest.approx(0.00085**0.5, rel=1e-12)


def test_recipes_build_schedules_and_tell_them_again() -> None:
    for said, built in [
        ({"kind": "linear", "shift": 2.0}, Linear(2.0)),
        ({"kind": "cosine"}, Cosine()),
        ({"kind": "betas", "end": 0.02, "form": "linear", "start": 1e-4}, Betas(1e-4, 0.02, form="linear")),
        ({"kind": "betas", "zero_terminal": True}, Betas(zero_terminal=True)),
        ({"kind": "exploding", "sigma_max": 160}, Exploding(sigma_max=160)),
        ({"kind": "sigmoid", "temperature": 0.9}, Sigmoid(temperature=0.9)),
        ("cosine", Cosine()),
    ]:
        config = ScheduleConfig.model_validate(said)
        assert config.build() == built
        assert ScheduleConfig.model_validate(config.model_dump(mode="json")).build() == built
    assert ScheduleConfig().build() == Linear()
    assert ScheduleConfig().model_dump() == {"kind": "linear", "shift": 1.0}


def test_a_folder_of_the_first_days_is_read() -> None:
    assert ScheduleConfig.model_validate({"kind": "linear", "start": 0.00085, "end": 0.012}).build() == Linear()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"kind": "flow"}, "unknown schedule 'flow'; known: linear, cosine, betas"),
        ({"kind": "linear", "sigma_max": 80}, "no sigma_max; it takes shift"),
        ({"kind": "linear", "shift": 0}, "shift must be above 0; got 0"),
        ({"kind": "betas", "start": 0.5, "end": 0.1}, "betas rise inside"),
        ({"kind": "betas", "steps": 1}, "at least two rows; got 1"),
        ({"kind": "exploding", "sigma_min": 90}, "sigmas rise"),
        ({"kind": "sigmoid", "start": 4}, "runs upwards"),
        ({"kind": "cosine", "shfit": 1}, "shfit"),
    ],
)
def test_what_makes_no_schedule_is_told(said: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ScheduleConfig.model_validate(said)


@given(st.floats(-60, 60))
def test_scales_of_a_ratio_lie_on_the_circle(log_ratio: float) -> None:
    alpha, sigma = Scales.of(torch.tensor(log_ratio, dtype=torch.float64))
    assert float(alpha**2 + sigma**2) == pytest.approx(1)
    assert float(sigma.log() - alpha.log()) == pytest.approx(log_ratio, rel=1e-9, abs=1e-9)


def test_a_sigmoid_s_ends_are_ends_and_it_is_not_flat() -> None:
    for end, temperature in ((2.0, 0.9), (3.0, 1.0), (1.0, 0.1)):
        scales = Sigmoid(-3.0, end, temperature)(torch.tensor([0.0, 1.0], dtype=torch.float64))
        assert scales.alpha.tolist() == [1.0, 0.0]
        assert scales.sigma.tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="beyond which a sigmoid is flat"):
        Sigmoid(temperature=0.05)


def test_schedules_have_the_published_values() -> None:
    t = torch.tensor([0.25], dtype=torch.float64)
    cosine, shifted = Cosine()(t), Cosine(3.0)(t)
    assert (float(cosine.alpha), float(cosine.sigma)) == pytest.approx((math.cos(math.pi / 8), math.sin(math.pi / 8)))
    assert float(shifted.sigma / shifted.alpha) == pytest.approx(3 * math.tan(math.pi / 8))

    def curve(x: float) -> float:
        return 1 / (1 + math.exp(-x / 0.7))

    level = (curve(3) - curve(0.3 * 3)) / (curve(3) - curve(0))  # Chen (2023): from 1 at the start to 0 at the end
    found = Sigmoid(0.0, 3.0, 0.7)(torch.tensor([0.3], dtype=torch.float64))
    assert (float(found.alpha) ** 2, float(found.sigma) ** 2) == pytest.approx((level, 1 - level))
