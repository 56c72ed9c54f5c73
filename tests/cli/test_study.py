"""`sfumato study` says what is wrong before anything is trained."""

import json
from pathlib import Path

import pytest

from sfumato import cli
from sfumato.studies.names import HOURS, TOLD
from sfumato.studies.run import before


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(["study", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_an_unknown_study_and_a_missing_network_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = tmp_path / "few.pt"
    assert "no study 'sharpness'; known: compression" in refused(["sharpness", "--features", str(here)], capsys)
    assert "sfumato fetch inception" in refused(["cost", "--features", str(here)], capsys)
    here.write_text("no network")
    assert "is not TorchScript" in refused(["cost", "--features", str(here), "--hours", "1"], capsys)
    assert "a study takes some hours" in refused(["cost", "--features", str(here), "--hours", "0"], capsys)
    assert "features" in refused(["cost"], capsys)
    for watts in ("0", "-5", "nan", "inf"):
        assert "watts are what this" in refused(["cost", "--features", str(here), "--watts", watts], capsys)
    assert "--equal is time or flops" in refused(["cost", "--features", str(here), "--equal", "flops"], capsys)
    assert "got steps" in refused(["compression", "--features", str(here), "--equal", "steps"], capsys)
    assert "--kinds is kl, vq or kl,vq" in refused(["cost", "--features", str(here), "--kinds", "kl"], capsys)
    assert "got kl,gan" in refused(["compression", "--features", str(here), "--kinds", "kl,gan"], capsys)
    assert "unknown precision 'fp8'" in refused(["cost", "--features", str(here), "--precision", "fp8"], capsys)


def test_studies_together_take_less_than_ten_hours() -> None:
    assert 1.12 * sum(HOURS.values()) < 10  # the clock says up to so much more
    assert TOLD.keys() == HOURS.keys()
    folder = Path(cli.__file__).parent.parent / "studies"
    assert all((folder / f"{name}.py").is_file() for name in HOURS)


def test_a_study_goes_on_with_what_it_was_begun_with(tmp_path: Path) -> None:
    """Default hours may be others in a later version."""
    assert before(tmp_path) == {}
    plan = {"asked": {"--hours": 2.0, "--trainings": 1}}
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    assert before(tmp_path) == {}  # nothing hangs on it yet
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "images": {"pixels": 64}}), encoding="utf-8")
    assert before(tmp_path) == plan["asked"]
