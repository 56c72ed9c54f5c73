"""A study goes on where it was stopped, and says so where it cannot."""

import time
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.conditioning.base import ConditionerConfig
from sfumato.data.picked import Picked
from sfumato.features import network
from sfumato.studies import bits, compression, families, limits, parameters, recipes, stability
from sfumato.studies.desk import Desk, whole
from sfumato.studies.judge import Judge, classes_of
from sfumato.studies.measure import real
from sfumato.studies.result import Result, Table
from sfumato.studies.run import begun, enough, joined, study, ticking, took
from sfumato.studies.verdict import FAILS, HOLDS, OPEN, Claim
from sfumato.training import run as runs
from sfumato.training.loop import Interrupted, Loop


class Few(nn.Module):
    """Sixteen numbers of a picture."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, (4, 4)).mean(1).flatten(1)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "few.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Few()).save(str(path))
    return path


@pytest.fixture
def desk(tmp_path: Path, features: Path) -> Desk:
    return Desk(
        tmp_path / "emoji-32" / "one", {"kind": "emoji", "size": 32}, network.opened(features), torch.device("cpu"), 0.0003,
        images=12, steps=2, seeds=(0, 100), quiet=True,
    )  # fmt: skip


def test_numbers_of_images_are_worked_out_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"training": {"batch": 32}}
    monkeypatch.setattr(Desk, "rate", lambda *_: 100.0)
    assert desk.budget("one", fields, 0.01) == whole(3600.0, fields) == 3584
    monkeypatch.setattr(Desk, "rate", lambda *_: 7.0)
    assert desk.budget("one", fields, 0.01) == 3584


def test_a_number_is_measured_again_when_what_it_is_of_changes(desk: Desk) -> None:
    calls: list[int] = []

    def make() -> int:
        calls.append(1)
        return len(calls)

    assert [desk.once("n", ["a", (1, 2)], make), desk.once("n", ["a", (1, 2)], make)] == [1, 1]
    assert desk.once("n", ["b", (1, 2)], make) == 2


def test_a_study_with_other_hours_is_refused(desk: Desk) -> None:
    begun(desk, 3)  # as long as nothing is planned, let alone trained, it may be another
    begun(desk, 1)
    desk.keep_plan("images", {"one": 64})
    with pytest.raises(ValueError, match="holds this study with --trainings 1"):
        begun(desk, 2)
    desk.hours = 2.0
    with pytest.raises(ValueError, match=r"holds this study with --hours 0\.0003"):
        begun(desk, 1)
    desk.hours, desk.device = 0.0003, torch.device("meta")
    with pytest.raises(ValueError, match="holds this study with --device cpu"):
        begun(desk, 1)
    desk.device, desk.precision = torch.device("cpu"), "fp32"
    with pytest.raises(ValueError, match="holds this study with --precision auto"):
        begun(desk, 1)
    assert desk.recipe("one", recipes.gan(), 64).training.precision == "fp32"


def test_what_was_begun_with_equal_time_is_not_gone_on_with_by_flops(desk: Desk) -> None:
    both = {"kinds": ("kl", "vq")}
    begun(desk, 1, {"equal": "flops", **both})
    begun(desk, 1)  # as studies that are not asked, and those that began before there was a choice
    desk.keep_plan("asked", {"--hours": desk.hours})
    desk.keep_plan("images", {"one": 64})
    begun(desk, 1, {"equal": "time", **both})
    with pytest.raises(ValueError, match="holds this study with --equal time"):
        begun(desk, 1, {"equal": "flops", **both})
    with pytest.raises(ValueError, match="holds this study with --kinds kl,vq"):  # whose equal FLOPs were another share
        begun(desk, 1, {"equal": "time", "kinds": ("kl",)})


def test_what_is_faster_is_settled_once_for_a_study(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for first, later in ((True, False), (False, True)):
        monkeypatch.setattr("sfumato.device.fast_bfloat16", lambda _, now=first: now)
        desk.keep_plan("precision", {})
        begun = replace(desk)
        assert begun.dtype == (torch.bfloat16 if first else torch.float32)
        monkeypatch.setattr("sfumato.device.fast_bfloat16", lambda _, now=later: now)
        again = replace(desk)
        assert again.dtype == begun.dtype
        assert again.recipe("one", recipes.gan(), 64) == begun.recipe("one", recipes.gan(), 64)


def test_a_study_is_told_its_choices_and_keeps_them(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def run(_: Desk, **choices: Any) -> Result:
        told.append(choices)
        return Result("compression", "", "")

    monkeypatch.setattr(compression, "study", run)
    study("compression", desk, "", kinds=("kl",))
    study("compression", desk, "", equal="time", kinds=("kl",))
    assert told == [{"equal": "time", "kinds": ("kl",)}] * 2
    assert desk.plan("asked")["--kinds"] == "kl"


def test_equal_flops_are_shared_by_what_they_take(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hours are those that are asked, and images times FLOPs the same of all, whatever each does a second."""
    rates = {"denoiser-kl-f1": 10.0, "denoiser-kl-f4": 50.0, "denoiser-kl-f8": 60.0}
    costs = {"denoiser-kl-f1": 9e6, "denoiser-kl-f4": 3e6, "denoiser-kl-f8": 1e6}
    monkeypatch.setattr(Desk, "rate", lambda _, name, fields: rates.get(name, 100.0))
    monkeypatch.setattr(Desk, "trained", lambda self, name, *_: self.run(name) / "model")
    monkeypatch.setattr(compression, "flops", lambda _, name, fields: costs[name])
    desk.hours = 1.0
    for equal, alike in (("time", lambda t: t.images / rates[t.run.name]), ("flops", lambda t: t.images * t.flops)):
        found = compression.trained(desk, (1, 4, 8), ("kl",), 0.1, 0.4, equal)  # type: ignore[arg-type]
        assert [alike(t) for t in found] == pytest.approx([alike(found[0])] * 3, rel=0.2 if equal == "flops" else 0.02)
        assert sum(t.images / rates[t.run.name] for t in found) == pytest.approx(0.5 * 3600, rel=0.02)
        desk.keep_plan("images", {})


def test_what_families_and_few_steps_compare_has_the_same_hours(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a model needs counts: its first stage, a student's teacher and its first stage."""

    class Compared(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Compared

    given: dict[str, float] = {}

    def budget(self: Desk, name: str, fields: dict[str, Any], hours: float) -> int:
        given[name] = hours
        return 64

    row = defaultdict(lambda: SimpleNamespace(value=1.0))
    monkeypatch.setattr(Desk, "budget", budget)
    monkeypatch.setattr(Desk, "trained", lambda self, name, *_: self.run(name) / "model")
    for module, name in ((families, "generated"), (limits, "few_rows")):
        monkeypatch.setattr(module, name, lambda *_, **__: row)
    monkeypatch.setattr(families, "claims", stop)
    monkeypatch.setattr(limits, "reals", stop)
    with pytest.raises(Compared):
        families.study(desk)
    stages = {"family-latent-diffusion": "first-latents", "family-VQ-transformer": "first-codes"}
    stages["family-VQ-transformer-f-2"] = "first-codes-f2"
    whole_ = [hours + given.get(stages.get(name, ""), 0.0) for name, hours in given.items() if "first" not in name]
    assert len(whole_) == 7
    assert whole_ == pytest.approx([whole_[0]] * 7)
    given.clear()
    with pytest.raises(Compared):
        limits.few(desk, Result("limits", "", ""))
    for student in ("few-consistency", "few-shortcut"):
        assert given[student] + given["teacher"] + given["first-latents"] == pytest.approx(given["gan"])


def test_captions_are_read_however_long(desk: Desk, tmp_path: Path) -> None:
    assert desk.longest is None
    folder = of_folder(desk, tmp_path, 16)
    for k, path in enumerate(sorted(tmp_path.glob("*.png"))):
        path.with_suffix(".txt").write_text(" ".join(f"word{j}" for j in range(60 if k == 3 else 5)))
    assert folder.longest is not None
    text = ConditionerConfig.model_validate(recipes.by_words(folder.longest)["caption"])
    text.learn([folder.train.field(k, "caption") for k in range(len(folder.train))], ())


def test_the_time_of_a_call_that_was_killed_counts(desk: Desk) -> None:
    desk.keep_plan("took", {"hours": 3.0})  # as it was kept before
    with ticking(desk, 0.01):
        while took(desk) == 3.0:
            time.sleep(0.01)
        killed = took(desk)  # as far as it would be known if this were its end
    with ticking(desk):
        pass
    assert took(desk) > killed > 3.0


def test_pictures_that_are_not_there_leave_nothing_behind(desk: Desk, tmp_path: Path) -> None:
    nowhere = replace(
        desk, folder=tmp_path / "study", data={"kind": "folder", "path": str(tmp_path / "no"), "size": 16}
    )
    with pytest.raises(ValueError, match="there is no folder"):
        study("cost", nowhere, "")
    assert not (tmp_path / "study").exists()


def test_an_unknown_study_is_refused(desk: Desk) -> None:
    with pytest.raises(ValueError, match=r"no study 'sharpness'; known: compression"):
        study("sharpness", desk, "")


def test_what_is_trained_is_not_trained_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fields = recipes.first("kl", 8)
    folder = desk.trained("stage", fields, 128)
    assert "begins anew" not in caplog.text  # which it does as it should
    before = (folder / "model.yaml").read_bytes()
    monkeypatch.setattr(runs.Loop, "step", lambda *_: pytest.fail("a step was taken"))
    assert desk.trained("stage", fields, 128) == folder
    assert (folder / "model.yaml").read_bytes() == before
    with pytest.raises(ValueError, match="begun with other settings; give the same --hours"):
        desk.trained("stage", recipes.first("kl", 4), 128)


def test_a_training_from_another_seed_is_another(desk: Desk) -> None:
    fields = {"stage": "family", "family": {"kind": "vae", "width": 8}, "training": {"batch": 32}}
    assert desk.recipe("vae", fields, 128).training.seed == 0
    desk.seed = 3
    assert desk.recipe("vae", fields, 128).training.seed == 3


def test_wider_networks_are_wider_and_fit_their_heads(desk: Desk) -> None:

    fields = recipes.denoiser(desk.folder, width=64)
    assert recipes.wider(fields, 1.0) == fields
    pixels = recipes.denoiser(desk.folder, **recipes.fitting(32))
    for scale in (0.5, 1.5, 2.0, 3.5):  # of pixels and of latents alike
        assert recipes.wider(fields, scale)["backbone"]["width"] == 64 * scale
        assert recipes.wider(pixels, scale)["backbone"]["width"] == 32 * scale
    assert recipes.wider(recipes.first("kl", 8), 2.0)["autoencoder"]["coder"]["width"] == 128
    assert fields["backbone"]["width"] == 64
    for scale, widths in ((0.5, (8, 16)), (1.5, (24, 48)), (3.0, (48, 96))):
        gan = recipes.wider(recipes.gan(), scale)["family"]
        assert (gan["width"], gan["critic"]) == widths
    words = recipes.wider(recipes.denoiser(desk.folder, recipes.by_words()), 1.5)["conditioners"]["caption"]
    assert words["width"] == 288


def test_the_seconds_of_a_run_are_those_of_its_steps(desk: Desk) -> None:
    run = desk.run("one")
    run.mkdir(parents=True)
    lines = ['{"images": 64, "images_per_second": 32.0, "seconds": 2.0}', '{"images": 128, "seconds": 3.0}']
    (run / "times.jsonl").write_text("\n".join(lines) + "\n")
    assert desk.elapsed("one") == [(64, 2.0), (128, 5.0)]
    assert desk.seconds("one") == 5.0
    assert desk.seconds("none") == 0.0


def test_several_trainings_decide_only_what_all_say() -> None:
    def one(outcomes: list[Any]) -> Result:
        claims = [Claim(f"claim {k}", outcome, f"measured {k}") for k, outcome in enumerate(outcomes)]
        told = {"hours": 0.25, "steps": 5}
        return Result(
            "cost", "Cost", "Intro.", protocol=told, claims=claims, tables=[Table("Rows", ["a"], [["1"]])], hours=0.5
        )

    found = joined([one([HOLDS, HOLDS, FAILS]), one([HOLDS, FAILS, FAILS])])
    assert [c.outcome for c in found.claims] == [HOLDS, OPEN, FAILS]
    assert found.claims[1].measured == "training 1: measured 1; training 2: measured 1"
    assert [t.title for t in found.tables] == ["Rows, training 1", "Rows, training 2"]
    assert found.hours == 1.0
    assert found.protocol == {"steps": 5, "training seed": [0, 1], "hours": 0.5, "hours of a training": 0.25}


def test_what_differs_between_trainings_is_told_of_each() -> None:
    several = [Result("cost", "", "", protocol={"steps": 5, "energy": watts}) for watts in (40.0, 60.0)]
    assert joined(several).protocol == {"steps": 5, "energy": [40.0, 60.0], "training seed": [0, 1]}


def test_classes_of_the_held_out_part_alone_are_none(desk: Desk, tmp_path: Path) -> None:
    for name in ("train", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        for k in range(4):
            Image.effect_noise((16, 16), 10 + k).convert("RGB").save(tmp_path / name / f"{k}.png")
    odd = replace(desk, data={"kind": "folder", "path": str(tmp_path), "size": 16})
    assert odd.train.labels
    assert not odd.labelled
    assert desk.labelled


def test_the_judge_of_real_pictures_has_not_seen_them(desk: Desk) -> None:
    told: list[Any] = []

    class Recorded(Judge):
        def __init__(self) -> None:
            pass

        def score(self, features: Tensor, asked: Any) -> dict[str, float]:
            told.append((len(features), asked))
            return {"class score": 1.0}

    row = real(desk, Recorded())
    assert told == [(len(desk.held_out), classes_of(desk.held_out))]
    assert row["class score"].value == 1.0


def test_what_is_faster_may_change_with_the_device_until_something_is_planned(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfumato.device.fast_bfloat16", lambda _: False)
    begun(desk, 1)
    assert desk.faster == "fp32"
    monkeypatch.setattr("sfumato.device.fast_bfloat16", lambda _: True)
    other = replace(desk)
    begun(other, 1)
    assert other.faster == "bf16"
    other.keep_plan("images", {"one": 64})
    monkeypatch.setattr("sfumato.device.fast_bfloat16", lambda _: False)
    again = replace(desk)
    begun(again, 1)
    assert again.faster == "bf16"


def test_a_stopped_study_says_how_it_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **more: Any) -> Path:
        raise Interrupted("stopped after 64 images; the same command with --resume goes on")

    monkeypatch.setattr("sfumato.studies.desk.train", stopped)
    with pytest.raises(Interrupted, match="stopped while vae was trained; the same command goes on"):
        desk.trained("vae", {"stage": "family", "family": {"kind": "vae"}, "training": {"batch": 16}}, 64)


def test_bits_are_of_pictures_that_have_a_class_and_of_none_where_none_has(desk: Desk) -> None:
    part, told = desk.held_out, list[int]()

    class Some(Picked):
        def field(self, index: int, name: str) -> Any:
            return None if name == "label" and index % 2 else super().field(index, name)

    def over(model: Any, part: Any, measure: Any) -> Any:
        told.append(len(part))
        return None if model is None else [1.0] * len(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "over", over)
        assert len(bits.of("model", Some(part, range(10)), None)) == 5  # type: ignore[arg-type]
        assert bits.of(None, part, None) == []  # type: ignore[arg-type]
    assert told[0] == 5
    assert bits._mean([]) == "no picture has a class"


def test_pixels_are_whitened_and_untouched(desk: Desk) -> None:
    from sfumato.autoencoder.codec import Codec

    codec = Codec.load(desk.pixels())
    rows = torch.stack([desk.train.image(k) for k in range(len(desk.train))]).float() / 127.5 - 1.0
    latents = codec.encode(rows)
    assert float(latents.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.05)
    assert torch.allclose(codec.decode(latents[:4]), rows[:4], atol=1e-5)


@pytest.mark.parametrize(("told", "outcome"), [(1.0, HOLDS), (9.0, FAILS)])
def test_fewer_bits_are_better_likelihood(
    told: float, outcome: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VAE and diffusion tell a picture in about 5 bits a dimension, the transformer in `told`; all were trained at 8 pixels."""

    asked: dict[str, int] = {}

    def trained(self: Desk, run: str, *_: Any) -> Path:
        asked[run] = self.data["size"]
        return self.run(run) / "model"

    def found(_: Desk, name: str, __: Path) -> dict[str, list[float]]:
        rows = range(
            0, 8, 2 if "diffusion" in name else 1
        )  # its bound is of fewer pictures, which are compared with the same
        held = [(told if "bytes" in name else 5.0) + 0.1 * k for k in rows]
        return {"held": held, "trained": [h - 0.5 for h in held]}

    monkeypatch.setattr(Desk, "trained", trained)
    monkeypatch.setattr(Desk, "budget", lambda *_: 32)
    monkeypatch.setattr(bits, "bits", found)
    monkeypatch.setattr(bits, "drawing", lambda _: 3_200_000)
    table, claims = bits.compared(desk, 0.01, desk.run("family-VAE") / "model")
    assert [c.outcome for c in claims] == [outcome, outcome]
    assert all(f"{abs(5.0 - told):.3f} ± 0.000" in c.measured for c in claims), claims
    assert set(asked.values()) == {bits.SIDE}
    assert [row[1] for row in table.rows] == ["8", "8", "8", "32"]
    assert table.rows[0][4].startswith(f"{told + 0.35:.2f}")


def of_folder(desk: Desk, folder: Path, size: int) -> Desk:
    """A study of forty pictures."""
    for k in range(40):
        Image.effect_noise((16, 16), 10 + k).convert("RGB").save(folder / f"{k}.png")
    data = {"kind": "folder", "path": str(folder), "size": size, "held_out": 0.2}
    return replace(desk, data=data, folder=desk.folder.parent / f"other-{size}", images=512)


def test_what_a_study_cannot_train_is_said_before_it_trains(desk: Desk, tmp_path: Path) -> None:
    odd = of_folder(desk, tmp_path, 24)
    with pytest.raises(ValueError, match="power of two"):
        study("families", odd, "")
    with pytest.raises(ValueError, match=r"f = 8, which does not divide pictures of 20 pixels; give --size 16"):
        study("cost", of_folder(desk, tmp_path, 20), "")
    assert not (odd.folder / "runs").exists()


def test_no_more_pictures_are_drawn_than_half_of_a_set(desk: Desk, tmp_path: Path) -> None:
    few = of_folder(desk, tmp_path, 16)
    assert enough(few).images == len(few.shown) // 2 < 20
    assert enough(desk) is desk


def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies that do little of everything."""
    monkeypatch.setattr("sfumato.studies.recipes.BATCH", 16)
    monkeypatch.setattr("sfumato.studies.compression.STEPS", (1, 2))
    monkeypatch.setattr("sfumato.studies.compression.POINTS", 2)
    monkeypatch.setattr("sfumato.studies.guidance.SCALES", (1.0, 3.0))
    monkeypatch.setattr("sfumato.studies.families.SIDES", (16,))
    monkeypatch.setattr("sfumato.studies.families.SMALL", 8)
    monkeypatch.setattr("sfumato.studies.bits.STEPS", 2)
    monkeypatch.setattr("sfumato.studies.bits.PICTURES", 8)
    monkeypatch.setattr("sfumato.studies.stability.RATES", (1.0, 4.0))
    monkeypatch.setattr("sfumato.studies.parameters.WIDTHS", {parameters.SMALL: 32, parameters.LARGE: 64})
    monkeypatch.setattr("sfumato.studies.limits.CHANNELS", (4, 8))
    monkeypatch.setattr("sfumato.studies.conditioning.CAPTIONS", 8)
    monkeypatch.setattr("sfumato.studies.cost.FACTORS", (1, 4))
    monkeypatch.setattr("sfumato.studies.cost.ENCODED", 16)


@pytest.mark.slow
def test_a_folder_without_classes_is_studied_to_its_end(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried(monkeypatch)
    found, page = study("families", of_folder(desk, tmp_path, 16), "sfumato study families")
    assert found.claims
    text = (page.parent / "study.md").read_text(encoding="utf-8")
    assert "classes covered" not in text
    assert "nan" not in text.split()


def test_a_training_that_ends_is_kept_as_ended(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row is left out, and it is not tried again."""
    several = stability.trials(desk, Path("one"), Path("other"))
    trial = next(t for t in several if t.change == "rate x 4")
    monkeypatch.setattr(Desk, "rate", lambda *_: 1000.0)
    calls = list[str]()

    def ends(self: Desk, name: str, fields: object, images: int) -> Path:
        calls.append(name)
        raise FloatingPointError("GAN-rate-x-4: the loss is not finite; give other --hours and --out")

    monkeypatch.setattr(Desk, "trained", ends)
    assert [stability.tried(desk, trial, several, 0.01) for _ in range(2)] == [None, None]
    assert calls == [trial.run]
    assert desk.plan("ended") == {trial.run: "GAN-rate-x-4: the loss is not finite"}
    assert desk.plan("images")[trial.run] == desk.plan("images")[several[0].run]
    seeds = [t.fields["training"].get("seed") for t in several if t.change == stability.AGAIN]
    assert seeds == [1000, 1000]
    assert {t.fields["family"]["rate"] for t in several if t.change.startswith("rate") and "family" in t.fields} == {
        5e-5,
        8e-4,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["compression", "cost", "guidance", "conditioning", "families", "stability", "parameters", "limits"]
)
def test_every_study_ends_in_its_page(name: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    hurried(monkeypatch)
    desk.folder = desk.folder.parent / name
    more: dict[str, Any] = {"factors": (1, 4, 8, 16)} if name == "compression" else {}
    found, page = study(name, desk, f"sfumato study {name}", **more)
    assert found.claims
    assert found.tables
    assert found.figures
    text = page.read_text(encoding="utf-8")
    for claim in found.claims:
        assert claim.outcome in text
    assert "/" not in str(page.parent.relative_to(desk.folder))  # beside what it shows
    assert all((page.parent / f.path.relative_to(desk.folder)).is_file() for f in found.figures)
    assert found.hours > 0
    assert "nan" not in (page.parent / "study.md").read_text(encoding="utf-8").split()
    monkeypatch.setattr(Loop, "step", lambda *_: pytest.fail("trained again"))
    again, _ = study(name, desk, f"sfumato study {name}", **more)  # all is kept
    assert [c.told() for c in again.claims] == [c.told() for c in found.claims]
