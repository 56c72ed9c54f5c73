"""Files that are whole or not there: atomic writes, hashes, and model folders whose damage is noticed on loading."""

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

log = logging.getLogger(__name__)
FORMAT = 1  # of model folders; a reader refuses a newer one


def write(path: Path, content: bytes | str | Callable[[Path], None]) -> None:
    """Write to a temporary name beside `path`, sync, rename: a reader sees the old file or the new one, whole.

    `content` is bytes, text, or a function that writes to the path it is given. A link's target is written, and devices
    and pipes are written to. Raises `OSError` with a remedy when the disk is full; the old file then still stands.
    """
    if path.is_dir():
        raise OSError(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        _put(path, content)
        return
    if path.is_symlink():
        try:
            path = path.resolve()
        except RuntimeError as error:
            raise OSError(f"{path} is a link to itself; remove it") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(
        f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    )  # machines that share a disk share pids
    try:
        if callable(content):
            part.touch()
            mode = part.stat().st_mode
            _put(part, content)
            part.chmod(mode)  # as any new file: safetensors leaves one that nobody else on the machine may read
        else:
            _put(part, content)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise full(error, path) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _put(path: Path, content: bytes | str | Callable[[Path], None]) -> None:
    if callable(content):
        content(path)
    elif isinstance(content, str):  # names of files need not be UTF-8
        path.write_bytes(content.encode(errors="backslashreplace"))
    else:
        path.write_bytes(content)


def keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Save what can be worked out again; where that is not possible, warn and go on."""
    try:
        save_tensors(path, tensors)
    except OSError as error:
        log.warning("%s cannot be written, so it is worked out again next time: %s", path, error)


def replace(folder: Path, publish: Callable[[Path], None]) -> None:
    """Publish into a folder that may be there already, whole. Its hidden files stay. A process that is killed between two
    names leaves none of it for the next call to bring back. What cannot be renamed, such as a mounted disk, is written into.
    """
    folder = folder.resolve()
    part, old = (folder.parent / f".{folder.name}.{end}" for end in ("part", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    publish(part)
    if not folder.exists():
        part.rename(folder)
        return
    try:
        folder.rename(old)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EINVAL):
            raise
        shutil.rmtree(part, ignore_errors=True)
        publish(folder)
        return
    for path in old.iterdir():
        if path.name.startswith(".") and not (part / path.name).exists():
            path.rename(part / path.name)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within this context nobody else who asks works in the folder. Raises `ValueError` where somebody does; where a disk knows
    no locks, or this one cannot be taken, that is warned of."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process trains in {folder}: wait for its end, or choose another folder") from None
    except (OSError, NotImplementedError) as error:  # a file system without locks, as some over a network
        log.warning("%s cannot be locked (%s): see to it that nobody else trains in it", folder, error)
    try:
        yield
    finally:
        lock.release()  # which does nothing where it was not taken


def sync(folder: Path) -> None:
    """Make what was renamed in a folder outlive a power cut, where the system can."""
    try:
        place = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(place)
    except OSError:  # some network disks sync none
        pass
    finally:
        os.close(place)


def sync_all(folder: Path) -> None:
    """Make every file in a folder that another library wrote outlive a power cut: before the folder is renamed."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        else:
            sync(path)
    sync(folder)


def full(error: OSError, path: Path) -> OSError:
    """The error, or where the disk or a limit is full one that says what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(
            error.errno, f"no disk space left for {path}; free some and start again: what was saved is whole"
        )
    if error.errno == errno.EFBIG:
        return OSError(
            error.errno,
            f"{path} would be larger than a file may be here; raise the limit (`ulimit -f unlimited`, or another disk) "
            "and start again: what was saved is whole",
        )
    return error


@contextmanager
def _told() -> Iterator[None]:
    """What the system told safetensors while it wrote is an `OSError`, as from everybody else."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tensors: Mapping[str, Tensor], also: str = "") -> str:
    """16 hexadecimal digits that change with any name, shape or value of the tensors, or with the text `also`."""
    digest = hashlib.sha256(also.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()[:16]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], half: bool = False) -> None:
    """A safetensors file, written atomically. Tensors are made contiguous; with `half` those of which half precision holds
    every value are written in it. Raises as `write`.
    """
    from safetensors.torch import save_file

    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    if half:
        exact = (n for n, t in plain.items() if t.dtype == torch.float32 and torch.equal(t.half().float(), t))
        plain.update({name: plain[name].half() for name in list(exact)})

    def save(part: Path) -> None:
        with _told():
            save_file(plain, part)

    write(path, save)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `ValueError` where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the folder again, whole")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy the folder again, whole") from None


def vacant(folder: Path) -> None:
    """Raise `ValueError` where a model folder is to be written and something else is: it would be sealed with the model."""
    if (folder / "model.yaml").is_file():
        raise ValueError(f"{folder} holds a model already; choose another folder")
    if inside := next((p for p in folder.resolve().parents if (p / "model.yaml").is_file()), None):
        raise ValueError(f"{folder} lies in {inside}, a model, which would not be whole with it; choose another folder")
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"{folder} holds other things, which would become parts of the model; choose a new folder")


def seal(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write `model.yaml`: the fields, the format number and the hash of every other file. It is written last."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and _sealed(p, folder))
    hashes = {name: sha256(folder / name) for name in names}
    write(folder / "model.yaml", yaml.safe_dump({"format": FORMAT, **fields, "files": hashes}, sort_keys=False))


def _sealed(path: Path, folder: Path) -> bool:
    return path != folder / "model.yaml" and path.name != "README.md" and not path.name.startswith(".")


def mapping(path: Path) -> dict[str, Any]:
    """What a model's YAML file holds. Raises `ValueError` where it is damaged."""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}); copy the folder again, whole") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} has no format number; it was not written by Sfumato or is damaged")
    return fields


def opened(folder: Path, stage: str) -> dict[str, Any]:
    """The fields of a sealed folder, all files checked. Raises `ValueError` with what is wrong and the remedy."""
    path = folder / "model.yaml"
    if not path.is_file():
        hint = f"; there is one in {folder / 'model'}" if (folder / "model" / "model.yaml").is_file() else ""
        if not hint and (folder / "state").is_dir():
            hint = "; it is a run that has not ended: the command that began it, with --resume, goes on"
        raise ValueError(f"{folder} is not a model folder: it has no model.yaml{hint}")
    fields = mapping(path)
    if not isinstance(fields.get("format"), int):
        raise ValueError(f"{path} has no format number; it was not written by Sfumato or is damaged")
    if fields["format"] > FORMAT:
        raise ValueError(f"{path} has format {fields['format']}, this Sfumato reads up to {FORMAT}; upgrade Sfumato")
    if fields.get("stage") != stage:
        raise ValueError(
            f"{folder} holds a model of stage {fields.get('stage')!r}; one of stage {stage!r} is needed here"
        )
    listed = fields.get("files")
    weights = {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors") if _sealed(p, folder)}
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{path} is damaged: it does not tell the hashes of its files; copy the folder again, whole")
    if more := sorted(weights - set(listed)):
        raise ValueError(
            f"{path} is damaged, or {folder / more[0]} is no part of the model, for it does not tell its hash: copy the folder "
            "again, whole, or move that file elsewhere"
        )
    for name, expected in listed.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; copy the folder again, whole")
        if sha256(folder / name) != expected:
            git = ", or its line endings were changed (by git: core.autocrlf)" if name.endswith(".yaml") else ""
            raise ValueError(
                f"{folder / name} is damaged{git}: its SHA-256 is not the one in model.yaml; copy it again"
            )
    return fields
