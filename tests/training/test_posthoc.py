"""Averages rebuilt after the run are those that were tracked during it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.autoencoder.codec import Codec
from sfumato.cli import main
from sfumato.evaluation.lengths import Length, best, compared
from sfumato.model import LatentDiffusion
from sfumato.training import posthoc
from sfumato.training.ema import Averages, exponent
from sfumato.training.recipe import parse
from sfumato.training.run import train
from tests.conftest import SHORT, adversarial_recipe, autoencoder_recipe, diffusion_recipe


def walk(steps: int, widths: list[float], every: int, folder: Path) -> Averages:
    """A drifting, trembling weight, its averages snapshot now and then."""
    torch.manual_seed(0)
    module = nn.Linear(40, 5).double()
    averages = Averages([module], widths)
    for step in range(1, steps + 1):
        for p in module.parameters():
            p.data += 0.05 * torch.randn_like(p) + 0.01
        averages.update(step)
        if step % every == 0:
            posthoc.save(folder / "averages", step, step, widths[:2], averages.kept[:2])
    return averages


def test_an_overlap_is_the_integral_of_the_product() -> None:
    a, b, points = (3.0, 70), (9.0, 50), (np.arange(2_000_000) + 0.5) / 2_000_000 * 70
    values = [np.where(points <= n, (g + 1) * points**g / n ** (g + 1), 0) for g, n in (a, b)]
    assert posthoc.overlap(a, b) == pytest.approx(float((values[0] * values[1]).mean() * 70), rel=1e-4)


def test_a_third_width_is_rebuilt_from_two_better_with_more_snapshots(tmp_path: Path) -> None:
    """Tracked at 0.1, rebuilt from 0.05 and 0.2: to 1 % of its distance from the last weights with 32 snapshots."""
    errors = []
    for every in (512, 128, 64):
        averages = walk(2048, [0.05, 0.2, 0.1], every, tmp_path / str(every))
        target = averages.kept[2]
        rebuilt = [nn.Parameter(torch.zeros_like(t)) for t in target]
        far = posthoc.rebuild(posthoc.found(tmp_path / str(every)), 0.1, rebuilt)
        scale = (
            sum(float((p.detach() - t).square().sum()) for p, t in zip(averages.parameters, target, strict=True)) ** 0.5
        )
        off = sum(float((r.detach() - t).square().sum()) for r, t in zip(rebuilt, target, strict=True)) ** 0.5
        errors.append(off / scale)
        assert far < 0.2
    assert errors[2] < errors[0]
    assert errors[2] < 0.01


def test_a_stored_width_comes_back_and_shares_sum_to_one(tmp_path: Path) -> None:
    averages = walk(256, [0.05, 0.1], 64, tmp_path)
    snapshots = posthoc.found(tmp_path)
    rebuilt = [nn.Parameter(torch.zeros_like(t)) for t in averages.kept[1]]
    assert posthoc.rebuild(snapshots, 0.1, rebuilt) < 1e-5
    for one, other in zip(rebuilt, averages.kept[1], strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-5, atol=1e-6)
    kept = [(exponent(s.width), s.step) for s in snapshots]
    for width in (0.02, 0.07, 0.2):
        assert sum(posthoc.shares(kept, (exponent(width), 256))) == pytest.approx(1.0, abs=1e-8)


def test_a_decay_warms_up() -> None:
    module = nn.Linear(2, 2)
    lengths = (0.5, 0.95, 0.9999)  # the first and the second are reached, the third is not
    averages, wanted = Averages([module], lengths), [module.weight.detach().clone() for _ in lengths]
    for step in range(1, 300):
        for p in module.parameters():
            p.data.fill_(float(step) ** 0.5)
        averages.update(step)
        for number, length in enumerate(lengths):
            decay = min(length, (1 + step) / (10 + step))
            wanted[number] = decay * wanted[number] + (1 - decay) * module.weight.detach()
    for kept, expected in zip(averages.kept, wanted, strict=True):
        torch.testing.assert_close(kept[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_the_command_rebuilds_and_compares(
    stage: str, first_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {"ema": (0.05, 0.15), "snapshots": 32}
    recipe = autoencoder_recipe(**extra) if stage == "autoencoder" else diffusion_recipe(first_stage, **extra)
    train(recipe, tmp_path / "run", device="cpu", quiet=True)
    assert sorted(p.name for p in (tmp_path / "run" / "averages").iterdir()) == ["000000032", "000000064", "000000096"]
    with pytest.raises(SystemExit, match="0"):
        call("ema", str(tmp_path / "run"), "--width", "0.05", "--out", str(tmp_path / "again"))
    load = Codec.load if stage == "autoencoder" else LatentDiffusion.load
    kept, again = load(tmp_path / "run" / "model").state_dict(), load(tmp_path / "again").state_dict()
    for name, value in kept.items():
        torch.testing.assert_close(value, again[name], rtol=1e-4, atol=1e-5, msg=name)
    with pytest.raises(SystemExit, match="0"):
        call("ema", str(tmp_path / "run"), "--plot", str(tmp_path / "p.png"), "--widths", "0.05,0.1")
    loss, error = [Length(0.05, 0.0, "held-out loss", 0.5), Length(0.1, 0.0, "held-out loss", 0.4)], "PSNR, dB"
    assert best(loss).width == 0.1
    assert best([Length(0.05, 0.0, error, 25.0), Length(0.1, 0.0, error, 24.0)]).width == 0.05
    assert "Best: width" in capsys.readouterr().out
    assert (tmp_path / "p.png").is_file()


def test_widths_are_looked_at_before_any_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posthoc, "rebuild", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"between 0 and 0\.28"):
        compared([], autoencoder_recipe(), Codec(autoencoder_recipe().autoencoder), [], [0.05, 0.5])


def call(*words: str) -> None:
    main(list(words))
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--width", "0.5", "--out", "x"], "between 0 and 0.28"),
        (["--width", "0.1"], "give --width with --out"),
        (["--plot", "p.png", "--widths", "a,b"], "numbers with commas"),
    ],
)
def test_bad_lengths_are_refused(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(autoencoder_recipe(images=32, snapshots=32), tmp_path / "run", device="cpu", quiet=True)
    with pytest.raises(SystemExit, match="2"):
        main(["ema", str(tmp_path / "run"), *words])
    assert text in capsys.readouterr().err


def test_a_run_without_snapshots_says_what_to_do(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["ema", str(model_folder.parent), "--width", "0.1", "--out", "x"])
    assert "training.snapshots" in capsys.readouterr().err


def test_averages_of_a_distilled_run_are_not_ranked_by_a_loss_that_means_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = parse({"stage": "distillation", "teacher": "t", "data": {"kind": "emoji", "size": 32}, "training": SHORT})
    monkeypatch.setattr(posthoc, "found", lambda run: [])
    monkeypatch.setattr(posthoc, "opened", lambda run: (asked, None, []))
    with pytest.raises(SystemExit, match="2"):
        call("ema", "run", "--plot", "p.png")
    assert "follows its teacher and not the pictures" in capsys.readouterr().err


def test_codes_are_averaged_with_their_first_stage(tmp_path: Path) -> None:
    train(adversarial_recipe(ema=(0.05, 0.2), snapshots=32), tmp_path / "run", device="cpu", quiet=True)
    with pytest.raises(SystemExit, match="0"):
        call("ema", str(tmp_path / "run"), "--width", "0.2", "--out", str(tmp_path / "wide"))
    near, wide = (Codec.load(tmp_path / name).state_dict() for name in ("run/model", "wide"))
    name = "autoencoder.codebook.embedding.weight"
    assert not torch.equal(near[name], wide[name])
