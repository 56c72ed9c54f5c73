"""Verdicts follow from numbers and their spread; curves, energy and classes are read right."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from sfumato.studies import (
    compression,
    conditioning,
    cost,
    energy,
    families,
    guidance,
    limits,
    measure,
    parameters,
    stability,
)
from sfumato.studies.judge import Judge, first
from sfumato.studies.measure import Row, sharpness, spread
from sfumato.studies.verdict import (
    FAILS,
    HOLDS,
    OPEN,
    Claim,
    Pair,
    Spread,
    agreed,
    better,
    every,
    judged,
    paired,
    quantile,
    together,
)


def test_a_difference_decides_only_beyond_two_standard_errors() -> None:
    noisy = Spread.of([10.0, 12.0, 14.0])  # 12, error 2 / sqrt(3)
    assert noisy.value == 12.0
    assert noisy.error == pytest.approx(2 / math.sqrt(3))
    exact = [Spread(value, 0.0, 3) for value in (6.0, 9.0, 18.0)]
    assert [better(one, noisy) for one in exact] == [HOLDS, OPEN, FAILS]  # 4.30 errors of two degrees of freedom are 5
    assert better(exact[2], noisy, lower=False) == HOLDS


def test_one_value_decides_nothing() -> None:
    assert better(Spread(1.0), Spread.of([100.0, 101.0, 102.0])) == OPEN
    assert better(Spread.of([1.0, 1.1]), Spread(100.0)) == OPEN
    assert better(Spread(1.0), Spread(100.0)) == OPEN


def test_students_quantile_is_that_of_the_fewer_degrees() -> None:
    assert [quantile(f) for f in (0.5, 2.0, 3.9, 4.0, 7.0, 1e9)] == [12.71, 4.30, 3.18, 2.78, 2.45, 1.98]


def test_trainings_that_differ_decide_nothing() -> None:
    assert agreed([HOLDS, HOLDS]) == HOLDS
    assert agreed([HOLDS, FAILS]) == OPEN


def test_of_several_trainings_their_means_are_tested() -> None:
    """Each is sure of itself, for samplings of one training are alike; trainings are not."""

    def claim(one: float, other: float) -> Claim:
        return judged("", "", Pair(Spread(one, 0.1, 3), Spread(other, 0.1, 3)))

    alike = [claim(50.0 + k, 60.0 + k) for k in (0.0, 0.2, 0.4)]
    apart = [claim(50.0, 50.9), claim(70.0, 71.5), claim(60.0, 61.0)]
    assert {c.outcome for c in (*alike, *apart)} == {HOLDS}
    assert (together(alike), together(apart)) == (HOLDS, OPEN)
    assert together([Claim("", HOLDS, ""), Claim("", HOLDS, "")]) == HOLDS
    assert together([Claim("", HOLDS, ""), Claim("", FAILS, "")]) == OPEN
    assert set(alike[0].told()) == {"text", "outcome", "measured"}


def test_shares_are_of_what_lies_above_as_many_real_pictures() -> None:
    rows_ = {"teacher, 25 steps": rows(distance=[600.0, 601.0, 599.0]), "GAN": rows(distance=[900.0, 901.0, 899.0])}
    rows_ |= {f"{how}, {n}": rows(distance=[690.0, 691.0, 689.0]) for how in limits.WAYS for n in limits.FEW}
    assert [limits.quick(rows_, "distance", least)[0].outcome for least in (0.0, 300.0)] == [HOLDS, FAILS]
    # models that repeat their pictures lie below: the nearer one is not the farther one for it
    rows_ |= {f"{how}, {n}": rows(distance=[580.0, 581.0, 579.0]) for how in limits.WAYS for n in limits.FEW}
    assert limits.quick(rows_, "distance", 700.0)[0].outcome == HOLDS


def test_blurred_pictures_are_less_sharp() -> None:
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(picture[None], 5, 1, 2)[0]
    one, other, flat = sharpness([picture, blurred, torch.full((3, 32, 32), 0.3)])
    assert one > 3 * other > 0
    assert flat == pytest.approx(0.0, abs=1e-6)


def test_a_sheet_shows_pictures_of_the_whole_part() -> None:
    assert spread(3, 32) == [0, 1, 2]
    assert spread(3200, 32) == list(range(0, 3200, 100))


def test_a_claim_of_so_much_asks_for_so_much() -> None:
    def sure(value: float) -> Spread:
        return Spread(value, 0.0, 3)

    assert better(sure(60.0), sure(100.0), by=0.375) == HOLDS
    assert better(sure(65.0), sure(100.0), by=0.375) == FAILS
    assert better(sure(1.3), sure(1.0), lower=False, by=0.5) == FAILS


def test_kinds_of_first_stages_are_compared_factor_by_factor() -> None:
    def claim(*distances: float, kinds: tuple[str, ...] = ("kl", "vq")) -> list[str]:
        pairs = [(kind, f) for f in (4, 8) for kind in kinds]
        several = [compression.Trained(kind, f, Path(), Path(), 1, 1.0) for kind, f in pairs]
        found = {t.name: Spread(d, 1.0, 3) for t, d in zip(several, distances, strict=True)}
        return [c.outcome for c in compression.easier(several, found)]

    assert claim(60.0, 50.0, 70.0, 65.0) == [HOLDS]
    assert claim(60.0, 50.0, 70.0, 70.5) == [OPEN]
    assert claim(60.0, 70.0, 70.0, 80.0) == [FAILS]
    assert claim(60.0, 70.0, kinds=("kl",)) == []


def test_times_that_differ_are_not_equal() -> None:
    near, far = Spread(100.0, 1.0, 3), Spread(200.0, 1.0, 3)
    times = (1.0, 1.04, 1.06, 0.9)
    assert [cost.as_near(4, near, far, longer).outcome for longer in times] == [HOLDS, HOLDS, OPEN, HOLDS]
    assert [cost.as_near(4, far, near, longer).outcome for longer in times] == [FAILS, FAILS, FAILS, OPEN]
    assert "in 1.06 times the seconds" in cost.as_near(4, near, far, 1.06).measured
    assert "no farther than real pictures" in cost.as_near(4, Spread(-1.0, 0.5, 3), far, 1.0).measured
    # both are nearer than as many real pictures: there is nothing that one could be 1.6 times as near to
    assert cost.as_near(8, Spread(-4.0, 0.1, 3), Spread(-5.0, 0.1, 3), 1.0).outcome == OPEN
    found = cost.as_near(8, Spread(2.0, 0.1, 3), Spread(-1.0, 0.1, 3), 1.0)
    assert (found.outcome, "0.00 times" in found.measured) == (FAILS, True)


def test_latents_are_sooner_only_in_all_samplings() -> None:
    def after(*seconds: float | None, latest: bool = False, own: float = 60.0) -> Claim:
        return cost.sooner(8, [None if s is None else cost.Reached(s, latest) for s in seconds], 60.0, own)

    assert after(10.0, 11.0, 12.0).outcome == HOLDS
    assert after(10.0, None, 12.0).outcome == OPEN
    assert after(None, None, None).outcome == FAILS
    assert after(None, None, None, own=55.0).outcome == OPEN  # they were not given the time
    assert after(100.0, 101.0, 102.0).outcome == FAILS
    assert after(100.0, 101.0, 102.0, latest=True).outcome == OPEN  # they may have been there before
    assert after(10.0, 11.0, 12.0).measured == "after 11.0 ± 1.0 s of 60 s: 5.5 times"
    assert after(10.0, 11.0, 12.0, latest=True).measured == "after at most 11.0 ± 1.0 s of 60 s: at least 5.5 times"


def test_pictures_without_a_class_judge_nothing() -> None:
    features = torch.eye(2).repeat(20, 1) + 0.01 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    labels: list[int | None] = [0, 1] * 20
    judge = Judge.trained(features, [*labels[:-2], None, None], 2)
    assert judge.share.tolist() == [0.5, 0.5]
    assert judge.score(features, labels)["agreement"] == 1.0
    assert judge.score(features, [*[None] * 39, 0])["agreement"] == 0.0
    assert "agreement" not in judge.score(features, [None] * 40)
    assert [first(one) for one in (3, [2, 1], [], None)] == [3, 2, None, None]


def test_losses_are_compared_picture_by_picture() -> None:
    hard = [10.0 * k for k in range(20)]  # pictures differ far more than models do
    easier = [h - 0.5 - 0.01 * (k % 3) for k, h in enumerate(hard)]
    assert paired("", hard, easier).outcome == HOLDS
    assert paired("", easier, hard).outcome == FAILS
    assert paired("", hard, [h + (-1) ** k for k, h in enumerate(hard)]).outcome == OPEN


def rows(**measures: list[float]) -> Row:
    named = {k.replace("_", " "): Spread.of(v) for k, v in measures.items()}
    return Row(named, Spread.of([5.0, 5.1, 4.9]), Path())


def test_guidance_trades_only_where_both_are_seen() -> None:
    names = ["distance", "precision", "recall"]
    one = rows(distance=[50.0, 51.0, 49.0], precision=[0.5, 0.51, 0.49], recall=[0.4, 0.41, 0.39])
    best = rows(distance=[40.0, 41.0, 39.0], precision=[0.6, 0.61, 0.59], recall=[0.3, 0.31, 0.29])
    last = rows(distance=[60.0, 61.0, 59.0], precision=[0.7, 0.71, 0.69], recall=[0.2, 0.21, 0.19])
    same = rows(distance=[60.0, 61.0, 59.0], precision=[0.7, 0.71, 0.69], recall=[0.4, 0.45, 0.35])
    scales = {1.0: one, 2.0: best, guidance.TRADE: last, 8.0: last}
    assert [c.outcome for c in guidance.claims("class", scales, {2.0: best}, names)] == [HOLDS, HOLDS, HOLDS, OPEN]
    found = guidance.claims("class", scales | {guidance.TRADE: same, 8.0: same}, {2.0: last}, names)
    assert [c.outcome for c in found] == [HOLDS, HOLDS, OPEN, FAILS]
    assert (
        guidance.claims("class", {1.0: best, guidance.TRADE: last, 8.0: last}, {8.0: last}, names)[0].outcome == FAILS
    )


def test_a_students_four_steps_may_be_better_than_its_teacher() -> None:
    slow, gan = rows(distance=[50.0, 51.0, 49.0]), rows(distance=[90.0, 91.0, 89.0])
    good, bad = rows(distance=[48.0, 49.0, 47.0]), rows(distance=[80.0, 81.0, 79.0])
    made = {"teacher, 25 steps": slow, "GAN": gan}
    made |= {f"{how}, {n}": good if n == 4 else bad for how in limits.WAYS for n in limits.FEW}
    found = limits.quick(made, "distance")
    assert [c.outcome for c in found] == [HOLDS, HOLDS, OPEN]
    made |= {f"{how}, 4": bad for how in limits.WAYS}
    assert limits.quick(made, "distance")[0].outcome == FAILS


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
    assert cost.reach(curve, 80.0) == cost.Reached(pytest.approx(15.0))
    assert cost.reach(curve, 100.0) == cost.Reached(10.0, latest=True)  # it may have been there before
    assert cost.reach(curve, 50.0) == cost.Reached(pytest.approx(30.0))
    assert cost.reach(curve, 49.0) is None


def test_a_package_counter_is_read_over_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    twice = {
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "psys",
        "intel-rapl-mmio:0": "package-0",
    }  # the same joules again
    for folder, called in {"intel-rapl:0": "package-0", **twice}.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, value in (("name", called), ("energy_uj", 9_000_000), ("max_energy_range_uj", 10_000_000)):
            (tmp_path / folder / name).write_text(f"{value}\n")
    with energy.metered(torch.device("cpu"), root=tmp_path) as found:
        for folder in ("intel-rapl:0", *twice):
            (tmp_path / folder / "energy_uj").write_text("1500000")
    assert found.joules == pytest.approx(2.5)
    assert "measured" in found.how


def test_stated_power_is_called_an_estimate(tmp_path: Path) -> None:
    with energy.metered(torch.device("cpu"), 50.0, tmp_path) as found:
        pass
    assert found.watts == pytest.approx(50.0)
    assert "estimated from stated 50 W" in found.how
    with energy.metered(torch.device("mps"), root=tmp_path) as found:
        pass
    assert "estimated from stated 40 W" in found.how  # a laptop's, not a data centre's
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


def test_captions_of_two_models_are_compared_one_by_one() -> None:
    """Six of forty captions gained and none lost is no chance, which two shares, 36 and 30 of 40, would not tell."""
    well, worse = [0] * 36 + [50] * 4, [9] * 30 + [10] * 10

    def found(ranks: list[int]) -> dict[str, Any]:
        share = sum(r < 10 for r in ranks) / len(ranks)
        return {"train ranks": ranks, "train10": share, "train10 ±": (share * (1 - share) / len(ranks)) ** 0.5}

    heard = {name: {"own": [1.0, 1.1], "others": [1.2, 1.4]} for name in ("trained", "frozen", "none")}
    told = conditioning.claims({"trained": found(well), "frozen": found(worse)}, heard)[-1]
    assert told.outcome == HOLDS
    assert "15.0 ± 5.7 points" in told.measured
    same = conditioning.claims({"trained": found(worse), "frozen": found(worse)}, heard)[-1]
    assert same.outcome == OPEN
    shares = [Spread.of([float(r < 10) for r in ranks]) for ranks in (well, worse)]
    assert better(*shares, lower=False) == OPEN


def test_several_trainings_may_not_say_what_none_of_them_may() -> None:
    longer = [cost.as_near(4, Spread(20.0 + d, 5.0, 2), Spread(60.0 + d, 8.0, 2), 1.3) for d in (0.0, 0.2, 0.4)]
    bounds = [cost.sooner(8, [cost.Reached(s + d, True) for s in (90.0, 110.0)], 60.0, 150.0) for d in (0.0, 0.2, 0.4)]
    for several in (longer, bounds):
        assert {c.outcome for c in several} == {OPEN}
        assert together(several) == OPEN
    apart = [cost.as_near(4, Spread(60.0 + d, 8.0, 2), Spread(20.0 + d, 5.0, 2), 1.3) for d in (0.0, 0.2, 0.4)]
    assert together(apart) == FAILS  # more time did not help


def test_guidance_without_a_point_has_none() -> None:
    names = ["distance", "precision", "recall"]
    scales = {
        s: rows(distance=[d, d + 1, d - 1], precision=[0.5, 0.5], recall=[0.4, 0.4])
        for s, d in ((1.0, 90.0), (2.0, 80.0), (guidance.TRADE, 70.0), (8.0, 40.0))
    }
    assert guidance.claims("class", scales, {2.0: scales[2.0]}, names)[1].outcome == FAILS


def test_factors_that_were_not_trained_are_not_compared() -> None:
    several = [compression.Trained("kl", f, Path(), Path(), 1, 1.0) for f in (1, 2, 4, 8, 16)]
    found = {t.name: Spread(50.0 if t.factor > 2 else 90.0, 1.0, 3) for t in several}
    told = [c.text for c in compression.claims(several, found) if "32" in c.text]
    assert told
    assert all("f = 32 does not divide these pictures, and is not compared" in text for text in told)


def test_the_gpu_that_is_metered_is_the_one_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device=None: asked.append(device) or 5000)
    assert energy._gpu(torch.device("cuda:1")) == 5.0
    assert asked == [torch.device("cuda:1")]


def test_one_sampling_alone_says_nothing_of_what_comes_sooner() -> None:
    assert cost.sooner(8, [None], 60.0, 150.0).outcome == OPEN
    assert cost.sooner(8, [None, None], 60.0, 150.0).outcome == FAILS


def test_a_measure_that_one_sampling_lacks_is_left_out(tmp_path: Path) -> None:
    desk = SimpleNamespace(folder=tmp_path)
    rows = [{"FD": 3.0, "agreement": 0.5}, {"FD": 5.0}]
    for several in (rows, rows[::-1]):
        found = measure.read(desk, {"rows": several, "rates": [1.0, 1.0], "sheet": "s.png"})  # type: ignore[arg-type]
        assert set(found.measures) == {"FD"}
        assert found["FD"].value == 4.0


def test_a_rate_is_of_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes a second and as much again a picture; the first one ten more."""
    clock = [0.0]
    monkeypatch.setattr("sfumato.studies.measure.time.perf_counter", lambda: clock[0])

    class Slow:
        calls = 0

        def pictures(self, indices: Any) -> list[torch.Tensor]:
            self.calls += 1
            clock[0] += 1 + len(indices) + 10 * (self.calls == 1)
            return [torch.zeros(3, 4, 4)] * len(indices)

    for counts, wanted in (([4, 4, 4, 1], 4 / 5), ([4, 1], 4 / 15), ([3], 3 / 14), ([4, 4], 4 / 5)):
        watched = measure.Watched(Slow(), 0, torch.device("cpu"))  # type: ignore[arg-type]
        for count in counts:
            watched.pictures(range(count))
        assert watched.rate == pytest.approx(wanted)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_not_finite_decides_nothing(lost: float) -> None:
    bad, well = Spread.of([1.0, lost, 2.0]), Spread.of([1.0, 1.1, 0.9])
    assert not math.isfinite(bad.value)
    assert better(bad, well) == better(well, bad) == better(bad, well, lower=False) == OPEN


def test_good_factors_that_were_not_trained_are_told_and_none_is_refused() -> None:
    several = [compression.Trained("kl", f, Path(), Path(), 1, 1.0) for f in (1, 2, 4)]  # of 36 pixels
    found = {t.name: Spread(50.0 if t.factor > 2 else 90.0, 1.0, 3) for t in several}
    slow = next(c.text for c in compression.claims(several, found) if "too slow" in c.text)
    assert "f = 8, 16 do not divide these pictures, and are not compared" in slow
    with pytest.raises(ValueError, match=r"none of them divides pictures of 33 pixels; give --size 32"):
        compression.study(SimpleNamespace(train=SimpleNamespace(size=33)))  # type: ignore[arg-type]


def test_a_sheet_has_as_many_columns_as_it_is_told(tmp_path: Path) -> None:
    desk = SimpleNamespace(folder=tmp_path)
    pictures = [torch.zeros(3, 64, 64)] * 20
    path = measure.drawn(desk, "one", pictures, 5)  # type: ignore[arg-type]
    with Image.open(path) as opened:
        assert opened.width < opened.height * 5 / 4 * 1.05
        assert opened.width == pytest.approx(5 * 66, abs=4)


def test_what_is_claimed_of_families_follows_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as the paper has it, once the other way round: every verdict turns."""
    monkeypatch.setattr(families, "distance", lambda desk: "far")
    monkeypatch.setattr(families, "short", lambda desk, measure: measure)
    monkeypatch.setattr(families, "small", lambda desk: 16)
    monkeypatch.setattr(families, "floor", lambda desk: {families.SHARP: Spread(0.1, 0.0, 1)})
    names = [families.LDM, families.GAN, families.VAE, families.AR, families.PIXELS, families.TWO, families.FINE]

    def told(
        far: list[float], coverage: list[float], precision: list[float], sharp: list[float], rate: list[float]
    ) -> Any:
        columns = {"far": far, "coverage": coverage, "precision": precision, families.SHARP: sharp}
        rows_ = {
            name: Row(
                {key: Spread(values[k], 0.001, 3) for key, values in columns.items()}, Spread(rate[k], 0.1, 3), Path()
            )
            for k, name in enumerate(names)
        }
        return {c.text: c.outcome for c in families.claims(SimpleNamespace(images=64, steps=25), rows_)}  # type: ignore[arg-type]

    as_told = told(
        [10, 80, 90, 50, 20, 15, 30], [0.9, 0.2, 0.8, 0.5, 0.7, 0.5, 0.5], [0.9, 0.8, 0.1, 0.5, 0.5, 0.5, 0.5],
        [0.09, 0.1, 0.05, 0.1, 0.1, 0.1, 0.1], [40, 900, 900, 10, 20, 30, 30],
    )  # fmt: skip
    turned = told(
        [80, 10, 20, 30, 40, 60, 50], [0.2, 0.9, 0.5, 0.5, 0.7, 0.5, 0.5], [0.1, 0.8, 0.9, 0.5, 0.5, 0.5, 0.5],
        [0.09, 0.1, 0.15, 0.1, 0.1, 0.1, 0.1], [40, 9, 900, 100, 20, 30, 30],
    )  # fmt: skip
    assert len(as_told) == 14
    assert set(as_told.values()) == {HOLDS}
    assert set(turned.values()) == {FAILS}


def of_a_gan(**changed: list[float]) -> dict[tuple[str, str], Spread]:
    """Distances above real pictures of all trainings of `stability`: 10 each, unless told otherwise; [] for none."""
    names = {
        "quarter": "rate x 0.25",
        "own": "as it is",
        "four": "rate x 4",
        "seed": stability.AGAIN,
        "bare": stability.BARE,
    }
    found = dict[tuple[str, str], Spread]()
    for family, short in ((stability.GAN, "gan"), (stability.LDM, "ldm")):
        for name, change in names.items():
            values = changed.get(f"{short}_{name}", [10.0, 10.2, 9.8])
            if values and (family, change) != (stability.LDM, stability.BARE):
                found[family, change] = Spread.of(values)
    return found


def test_what_hangs_on_its_rate_more_is_told() -> None:
    steep = {"gan_four": [40.0, 41.0, 39.0], "ldm_four": [12.0, 12.1, 11.9]}
    assert stability.hanging(of_a_gan(**steep)).outcome == HOLDS
    assert stability.hanging(of_a_gan(ldm_four=steep["gan_four"], gan_four=steep["ldm_four"])).outcome == FAILS
    assert stability.hanging(of_a_gan()).outcome == OPEN
    assert "4.00" in stability.hanging(of_a_gan(**steep)).measured


def test_a_training_whose_numbers_end_is_the_worst() -> None:
    assert stability.hanging(of_a_gan(gan_four=[])).outcome == HOLDS
    assert stability.hanging(of_a_gan(ldm_quarter=[])).outcome == FAILS
    assert stability.hanging(of_a_gan(gan_four=[], ldm_four=[])).outcome == OPEN
    several = {c.text: c.outcome for c in stability.claims(of_a_gan(gan_bare=[]))}
    assert several["Without its regularisation (R1) a GAN comes out worse"] == HOLDS
    assert stability.seeds(of_a_gan(gan_seed=[])).outcome == HOLDS
    assert stability.seeds(of_a_gan(ldm_seed=[])).outcome == FAILS
    assert stability.seeds(of_a_gan(ldm_seed=[], gan_seed=[])).outcome == OPEN


def test_one_pair_of_seeds_decides_nothing_and_two_do() -> None:
    """A pair of trainings is one draw of how far they lie apart, however well each is measured."""
    far, near = (stability.seeds(of_a_gan(gan_seed=[v, v + 0.1, v - 0.1])) for v in (20.0, 20.4))
    assert (far.outcome, near.outcome) == (OPEN, OPEN)
    assert "0.667" in far.measured
    assert together([far, near]) == HOLDS
    assert together([far, stability.seeds(of_a_gan())]) == OPEN


def test_ratios_of_means_carry_their_spread() -> None:
    ratio = Spread(20.0, 2.0, 3).over(Spread(10.0, 1.0, 4))
    assert (ratio.value, ratio.count) == (2.0, 3)
    assert ratio.spread == pytest.approx(2.0 * math.hypot(0.1, 0.1))
    assert math.isnan(Spread(1.0, 0.1, 3).over(Spread(0.0, 0.1, 3)).value)
    gap = Spread(5.0, 3.0, 3).minus(Spread(7.0, 4.0, 2))
    assert (gap.value, gap.spread, gap.count) == (-2.0, 5.0, 2)


def test_parameters_are_needed_where_the_larger_one_gains_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "distance", lambda _: "FID")
    values = {
        (parameters.SMALL, 4): 12.0, (parameters.LARGE, 4): 10.0, (parameters.LDM, 4): 9.0,
        (parameters.SMALL, 2): 40.0, (parameters.LARGE, 2): 20.0, (parameters.LDM, 2): 8.0,
    }  # fmt: skip
    desk, lost = SimpleNamespace(), {4: 2.0, 2: 1.0}

    def outcomes(values: dict[tuple[str, int], float]) -> list[str]:
        found = {pair: rows(FID=[v - 0.1, v, v + 0.1]) for pair, v in values.items()}
        return [c.outcome for c in parameters.claims(desk, found, lost)]  # type: ignore[arg-type]

    assert outcomes(values) == [HOLDS] * 4
    assert outcomes({(name, 6 - f): v for (name, f), v in values.items()}) == [FAILS] * 4
    level = {pair: 10.0 + lost[pair[1]] for pair in values}  # as far above what is rebuilt
    assert outcomes(level)[2:] == [OPEN, OPEN]
