"""Files are whole or not there, and damage is noticed."""

import errno
from pathlib import Path

import pytest
import torch

from sfumato import files


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write(path, "old")

    def fails(part: Path) -> None:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="no disk space left"):
        files.write(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_fingerprints_change_with_value_name_and_text() -> None:
    a = {"x": torch.zeros(3)}
    assert files.fingerprint(a) == files.fingerprint({"x": torch.zeros(3)})
    others = [{"x": torch.ones(3)}, {"y": torch.zeros(3)}, {"x": torch.zeros(1, 3)}]
    assert len({files.fingerprint(a), files.fingerprint(a, "b"), *map(files.fingerprint, others)}) == 5


def test_a_sealed_folder_notices_what_happened_to_it(tmp_path: Path) -> None:
    files.save_tensors(tmp_path / "w.safetensors", {"a": torch.arange(4.0)})
    files.seal(tmp_path, {"stage": "autoencoder"})
    assert files.opened(tmp_path, "autoencoder")["format"] == files.FORMAT
    with pytest.raises(ValueError, match="stage 'autoencoder'"):
        files.opened(tmp_path, "diffusion")
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content[:-1] + b"\x01")
    with pytest.raises(ValueError, match="damaged"):
        files.opened(tmp_path, "autoencoder")
    (tmp_path / "w.safetensors").unlink()
    with pytest.raises(ValueError, match="missing"):
        files.opened(tmp_path, "autoencoder")


@pytest.mark.parametrize(
    ("text", "words"),
    [("format: 99", "upgrade"), ("a: [", "damaged"), ("a: 1", "no format"), (None, "no model.yaml")],
)
def test_a_folder_of_another_kind_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        files.opened(tmp_path, "diffusion")


def test_truncated_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    files.save_tensors(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        files.load_tensors(path)
