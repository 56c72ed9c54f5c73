"""Files are whole or not there, and damage is noticed."""

import errno
import json
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato import files
from sfumato.model import LatentDiffusion
from tests.tasks.test_tasks import built

WORDS = {"kind": "text", "width": 8, "layers": 1, "heads": 2, "vocabulary": 60}


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


def test_a_model_yaml_that_ends_too_soon_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    for name in ("a", "b"):
        files.save_tensors(tmp_path / f"{name}.safetensors", {"w": torch.zeros(2)})
    files.seal(tmp_path, {"stage": "diffusion", "size": 64, "autoencoder": "abc"})
    lines = (tmp_path / "model.yaml").read_text().splitlines(keepends=True)
    assert len(lines) == 7
    for kept in range(len(lines)):
        (tmp_path / "model.yaml").write_text("".join(lines[:kept]))
        with pytest.raises(ValueError, match=r"damaged|stage None"):
            files.opened(tmp_path, "diffusion")


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


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Within this context the system lets no file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # Python ignores the signal, so writing fails
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tensors_that_the_system_does_not_take_are_an_oserror_and_leave_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    files.save_tensors(path, {"a": torch.arange(4.0)})
    with files_up_to(100_000), pytest.raises(OSError, match="what was saved is whole") as raised:
        files.save_tensors(path, {"a": torch.zeros(100_000)})
    assert raised.value.errno == errno.EFBIG
    assert torch.equal(files.load_tensors(path)["a"], torch.arange(4.0))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_known_in_the_words_of_safetensors(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    def fails(tensors: object, part: Path) -> None:
        part.write_bytes(b"half")
        what = os.strerror(number)
        raise safetensors.SafetensorError(f"Error while serializing: I/O error: {what} (os error {number})")

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(OSError, match="no disk space left"):
        files.save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_weights_can_be_read_by_whoever_may_read_the_folder(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.save_tensors(tmp_path / "w.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_is_saved_so_that_it_opens(dtype: torch.dtype, tmp_path: Path) -> None:
    model = built({"words": WORDS}, learned=["red"]).model.to(dtype)
    model.save(tmp_path / "model")
    again = LatentDiffusion.load(tmp_path / "model")
    assert torch.equal(again.codec.shift, model.codec.shift.float())


def test_hidden_files_in_a_model_are_none_of_it_and_a_model_is_not_written_into_one(tmp_path: Path) -> None:
    built({"words": WORDS}, learned=["red"]).model.save(tmp_path / "model")
    for name in ("conditioners/words/._tokenizer.json", ".DS_Store"):
        (tmp_path / "model" / name).write_bytes(b"\xb0\x00")  # of macOS, in no Unicode
    LatentDiffusion.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"lies in .*model, a model, which would not be whole with it"):
        files.vacant(tmp_path / "model" / "half")


def test_links_are_followed_and_devices_are_written_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    files.write(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    files.write(pipe, "told")
    reader.join(10)
    assert heard == [b"told"]
    assert pipe.is_fifo()
    with pytest.raises(OSError, match="is a folder; give the name of a file"):
        files.write(tmp_path, "new")
    assert {path.name for path in tmp_path.iterdir()} == {"target.json", "link.json", "pipe"}


def test_names_that_are_not_utf_8_are_told(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    files.write(tmp_path / "a.json", json.dumps({"name": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text())["name"] == name


def test_one_works_in_a_folder_at_a_time(tmp_path: Path) -> None:
    with files.alone(tmp_path / "run"):
        with pytest.raises(ValueError, match="another process trains in"), files.alone(tmp_path / "run"):
            pass
        with files.alone(tmp_path / "other"):
            pass
    with files.alone(tmp_path / "run"):
        pass


def test_what_can_be_worked_out_again_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    files.keep(tmp_path / "file" / "rows.safetensors", {"rows": torch.zeros(2)})
    assert "cannot be written, so it is worked out again next time" in caplog.text
    files.keep(tmp_path / "rows.safetensors", {"rows": torch.ones(2)})
    assert torch.equal(files.load_tensors(tmp_path / "rows.safetensors")["rows"], torch.ones(2))


def published(text: str) -> Callable[[Path], None]:
    def publish(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "model.yaml").write_text(text)

    return publish


def test_what_is_replaced_keeps_its_hidden_files_and_its_links(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "model", tmp_path / "model"
    (real / ".git").mkdir(parents=True)
    (real / "old.safetensors").touch()
    link.symlink_to(real, target_is_directory=True)
    for text in ("new", "newer"):
        files.replace(link, published(text))
        assert link.is_symlink()
        assert (real / "model.yaml").read_text() == text
        assert {p.name for p in real.iterdir()} == {".git", "model.yaml"}
    assert {p.name for p in tmp_path.iterdir()} == {"disk", "model"}
    assert {p.name for p in (tmp_path / "disk").iterdir()} == {"model"}


def test_what_cannot_be_renamed_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a disk that is mounted there."""
    there, rename = tmp_path / "model", Path.rename
    there.mkdir()

    def refused(self: Path, target: Path) -> Path:
        if self == there:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    files.replace(there, published("new"))
    assert (there / "model.yaml").read_text() == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_a_disk_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    worked = []
    with files.alone(tmp_path):
        worked.append(1)
    assert worked
    assert "cannot be locked" in caplog.text


def test_streams_that_a_link_names_are_written_to_and_loops_are_said(tmp_path: Path) -> None:
    read, write = os.pipe()
    (tmp_path / "out").symlink_to(f"/dev/fd/{write}")
    files.write(tmp_path / "out", "told")
    os.close(write)
    with os.fdopen(read) as heard:
        assert heard.read() == "told"
    (tmp_path / "a").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match=r"is a link to itself|symbolic link"):
        files.write(tmp_path / "a", "told")


def test_a_run_that_has_not_ended_is_told_from_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model\.yaml$"):
        files.opened(tmp_path, "diffusion")
    (tmp_path / "state").mkdir()
    with pytest.raises(ValueError, match=r"a run that has not ended: .*--resume"):
        files.opened(tmp_path, "diffusion")
