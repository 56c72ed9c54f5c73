"""Models by name: what ships, what lies on the disk, and how a model becomes small enough to ship."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato import files, shipped
from sfumato.autoencoder.codec import Codec
from sfumato.convert import half
from sfumato.model import LatentDiffusion
from tests.cli.test_cli import call


@pytest.fixture
def shelf(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one model in it, and an empty working folder."""
    shutil.copytree(model_folder, tmp_path / "models" / "small")
    monkeypatch.setattr(shipped, "MODELS", tmp_path / "models")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "models"


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors"))


def pixels(folder: str | Path) -> "np.ndarray[Any, Any]":
    return np.array(sfumato.load(folder, device="cpu").generate(prompt="red heart", seed=0, steps=3)[0]).astype(float)


def test_a_model_that_ships_is_found_by_its_name_and_ones_own_comes_first(shelf: Path, tmp_path: Path) -> None:
    assert shipped.names() == ["small"]
    assert sfumato.load("small", device="cpu").name == "small"
    Path("small").mkdir()  # of pictures, say: `--out small`
    assert shipped.folder("small") == shelf / "small"
    Path("small").rmdir()
    with pytest.raises(ValueError, match=r"no model folder tiny; use one that ships \(small\)"):
        sfumato.load("tiny")
    own = tmp_path / "work" / "small"
    shutil.copytree(shelf / "small", own / "model")  # a run of that name
    assert shipped.folder("small") == Path("small/model")


def test_the_command_line_takes_the_name_too(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call("generate", "small", "-p", "red heart", "--steps", 1, "--seed", 5, capsys=capsys)
    assert (code, Path("outputs/00000-5.png").is_file()) == (0, True), err


def test_a_model_in_half_precision_is_half_as_large_and_the_same(model_folder: Path, tmp_path: Path) -> None:
    made = half.convert(model_folder, tmp_path / "half")
    assert size(made) < 0.55 * size(model_folder)
    assert np.abs(pixels(made) - pixels(model_folder)).mean() < 1
    again = half.convert(made, tmp_path / "again")  # nothing is left to round
    assert np.array_equal(pixels(again), pixels(made))
    codec = half.convert(model_folder / "autoencoder", tmp_path / "codec")
    assert Codec.load(codec).fingerprint() == Codec.load(made / "autoencoder").fingerprint()


def test_what_half_precision_cannot_hold_is_refused(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = Codec.load(model_folder / "autoencoder")
    with torch.no_grad():
        next(codec.parameters()).mul_(1e9)
    codec.save(tmp_path / "large")
    code, _, err = call("convert", "half", tmp_path / "large", "--out", tmp_path / "out", capsys=capsys)
    assert (code, "too large for half precision" in err) == (2, True)
    assert not (tmp_path / "out").exists()
    code, out, _ = call("convert", "half", model_folder, "--out", tmp_path / "out", capsys=capsys)
    assert (code, out.strip()) == (0, str(tmp_path / "out"))
    code, _, err = call("convert", "half", model_folder, "--out", model_folder, capsys=capsys)
    assert (code, "give another folder" in err) == (2, True)
    code, _, err = call("convert", "half", model_folder / "autoencoder", "--out", tmp_path / "out", capsys=capsys)
    assert (code, "holds a model already" in err) == (2, True)
    code, _, err = call("convert", "half", model_folder, "--out", tmp_path, capsys=capsys)
    assert (code, "holds other things" in err) == (2, True)
    assert LatentDiffusion.load(tmp_path / "out")


def test_only_what_is_exact_is_written_in_half(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([0.5, 3.0]), "b": torch.tensor([0.1]), "c": torch.tensor([1, 2])}
    files.save_tensors(tmp_path / "t.safetensors", tensors, half=True)
    assert {k: v.dtype for k, v in files.load_tensors(tmp_path / "t.safetensors").items()} == {
        "a": torch.float16,
        "b": torch.float32,
        "c": torch.int64,
    }
