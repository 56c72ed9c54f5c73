"""Verdicts follow from numbers and their spread; curves, energy and classes are read right."""

import math
from pathlib import Path

import pytest
import torch

from sfumato.studies import compression, cost, energy
from sfumato.studies.judge import Judge
from sfumato.studies.verdict import FAILS, HOLDS, OPEN, Spread, better, every


def test_a_difference_decides_only_beyond_two_standard_errors() -> None:
    noisy = Spread.of([10.0, 12.0, 14.0])  # 12, error 2 / sqrt(3)
    assert noisy.value == 12.0
    assert noisy.error == pytest.approx(2 / math.sqrt(3))
    assert better(Spread(9.0), noisy) == HOLDS
    assert better(Spread(10.0), noisy) == OPEN
    assert better(Spread(15.0), noisy) == FAILS
    assert better(Spread(15.0), noisy, lower=False) == HOLDS


def test_a_claim_of_so_much_asks_for_so_much() -> None:
    assert better(Spread(60.0), Spread(100.0), by=0.375) == HOLDS
    assert better(Spread(65.0), Spread(100.0), by=0.375) == FAILS
    assert better(Spread(1.3), Spread(1.0), lower=False, by=0.5) == FAILS


def test_parts_of_a_claim_must_all_hold() -> None:
    assert every([HOLDS, HOLDS]) == HOLDS
    assert every([HOLDS, OPEN]) == OPEN
    assert every([OPEN, FAILS]) == FAILS
    assert every([]) == OPEN


def test_numbers_are_told_to_their_digits() -> None:
    assert Spread(41.234, 0.31, 3).told() == "41.2 ± 0.3"
    assert Spread(0.01234).told() == "0.0123"
    assert Spread(2417.3, 50.2, 3).told() == "2,417 ± 50"


def test_the_time_until_a_distance_is_read_between_points() -> None:
    curve = [(10.0, 100.0), (20.0, 60.0), (30.0, 50.0)]
    assert cost.reach(curve, 80.0) == pytest.approx(15.0)
    assert cost.reach(curve, 100.0) == 10.0
    assert cost.reach(curve, 50.0) == pytest.approx(30.0)
    assert cost.reach(curve, 49.0) is None


def test_equal_flops_take_the_seconds_that_there_are() -> None:
    costs = {"large": (8e9, 10.0), "small": (1e9, 60.0)}
    budget = compression.equal(costs, 300.0)
    assert sum(budget / flops / rate for flops, rate in costs.values()) == pytest.approx(300.0)


def test_a_package_counter_is_read_over_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the package, which would count twice
    for name, value in (("energy_uj", 9_000_000), ("max_energy_range_uj", 10_000_000)):
        (package / name).write_text(str(value))
        (tmp_path / "intel-rapl:0:0" / name).write_text(str(value))
    with energy.metered(torch.device("cpu"), root=tmp_path) as found:
        (package / "energy_uj").write_text("1500000")
    assert found.joules == pytest.approx(2.5)
    assert "measured" in found.how


def test_stated_power_is_called_an_estimate(tmp_path: Path) -> None:
    with energy.metered(torch.device("cpu"), 50.0, tmp_path) as found:
        pass
    assert found.watts == pytest.approx(50.0)
    assert "estimated from stated 50 W" in found.how
    assert energy.kwh(50.0, 7200.0) == pytest.approx(0.1)


def test_the_judge_sees_classes_and_misses_what_is_missing() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [k % 4 for k in range(400)]
    centres = 5 * torch.randn(4, 16, generator=generator)
    features = centres[labels] + 0.1 * torch.randn(400, 16, generator=generator)
    judge = Judge.trained(features, labels, 4)
    whole = judge.score(features, labels)
    assert whole["agreement"] > 0.98
    assert whole["classes covered"] == 1.0
    assert whole["class score"] > 3.0
    few = [k for k in range(400) if labels[k] < 2]
    part = judge.score(features[few], [labels[k] for k in few])
    assert part["classes covered"] == 0.5
    assert part["class score"] < 2.3
    assert judge.score(features, labels[1:] + labels[:1])["agreement"] < 0.1
