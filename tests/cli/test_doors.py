"""How the command ends and how its options may be written."""

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from sfumato import cli
from sfumato.cli import doors
from sfumato.tasks import metadata
from sfumato.tasks.requests import Generate
from sfumato.training import run
from sfumato.training.loop import Interrupted

TRAIN = ["train", "emoji-autoencoder", "--quiet", "--run"]


def ends(monkeypatch: pytest.MonkeyPatch, error: BaseException, folder: Path) -> Any:
    """The exit code of a training that raises."""

    def stop(*_: object, **__: object) -> Path:
        raise error

    monkeypatch.setattr(run, "train", stop)
    with pytest.raises(SystemExit) as end:
        cli.main([*TRAIN, str(folder)])
    return end.value.code


def test_an_interruption_says_how_to_go_on_and_exits_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(monkeypatch, Interrupted("stopped after 64 images; --resume goes on"), tmp_path) == 130
    assert "stopped after 64 images; --resume goes on" in capsys.readouterr().err
    assert ends(monkeypatch, KeyboardInterrupt(), tmp_path) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_full_disk_and_a_nan_are_sentences_but_a_bug_shows_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (OSError(28, "no disk space left for x"), FloatingPointError("the loss is NaN")):
        assert ends(monkeypatch, error, tmp_path) == 2
        assert str(error) in capsys.readouterr().err
    with pytest.raises(KeyError):
        ends(monkeypatch, KeyError("a bug"), tmp_path)


def test_options_may_be_written_with_dashes_or_underscores(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "generate",
        str(model_folder),
        "--prompt",
        "red_heart",
        "--steps",
        "1",
        "--seed",
        "0",
        "--out",
        str(tmp_path),
    ]
    cli.main([*words, "--negative_prompt", "sun", "--cfg_scale=2"])
    found = metadata.read(tmp_path / "00000-0.png")
    assert (found["prompt"], found["negative"], found["guidance"]) == ("red_heart", "sun", 2.0)
    cli.main([*words, "--label", "Flags", "--label", "Objects"])
    assert metadata.read(tmp_path / "00001-0.png")["label"] == ["Flags", "Objects"]
    cli.main(["train", "emoji", "--dry_run", "training.rate=0.5"])
    assert "rate: 0.5" in capsys.readouterr().out


def test_every_field_of_a_request_is_an_option_with_its_description() -> None:
    made = {p.name: p for p in doors.options(Generate)}
    assert set(made) == set(Generate.model_fields)
    for name, field in Generate.model_fields.items():
        assert field.description
        assert made[name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("verb", ["generate", "vary", "inpaint", "upscale", "layout", "semantic", "panorama"])
def test_options_have_other_programs_names_too_and_none_twice(verb: str) -> None:
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(f"sfumato.cli.{verb}").command)
    told = {p.name: [*p.opts, *p.secondary_opts] for p in typer.main.get_command(app).params}
    flags = [flag for several in told.values() for flag in several]
    assert len(flags) == len(set(flags))
    wanted = {"sampler": "--sampling-method", "grid": "--scheduler", "count": "--batch-count", "picture": "--init-img"}
    assert [name for name, flag in wanted.items() if flag not in told.get(name, [flag])] == []
    assert {"sampler", "grid", "count"} <= told.keys()


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        ended = subprocess.run(
            [sys.executable, "-u", "-m", "sfumato", "schema"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == ""
