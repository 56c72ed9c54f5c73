"""Checkpoints: folders that are whole or not there, and the newest whole one found again.

A checkpoint is written to a temporary folder, synced and renamed. `state.json` holds the hash of every file in it, so
a damaged one is noticed, said, and passed over for the one before.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato import distributed, files

log = logging.getLogger(__name__)
APART = 1e-4  # of a weight's sum, as a share of its magnitudes, which rounding of unlike processors stays under


def save(
    folder: Path,
    images: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    facts: dict[str, Any],
    keep: int,
    lasting: bool = False,
) -> Path:
    """Write `folder/IMAGES/`, one safetensors file a name in `tensors`; delete all but the newest `keep` and lasting ones."""
    whole = folder / f"{images:09d}"
    part = folder / f".{images:09d}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        for name, group in tensors.items():
            files.save_tensors(part / f"{name}.safetensors", group)
        # of what was to be written: a second process that tidies up would leave a part of it
        hashes = {f"{name}.safetensors": files.sha256(part / f"{name}.safetensors") for name in sorted(tensors)}
        files.write(
            part / "state.json", json.dumps({"images": images, "lasting": lasting, **facts, "files": hashes}, indent=1)
        )
        if whole.exists():
            shutil.rmtree(whole)
        part.rename(whole)
        files.sync(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise files.full(error, whole) from error
    # a later one was damaged, or this would not have been trained again: it does not count, and is overwritten in its time
    for old in [path for path in found(folder) if int(path.name) <= images][:-keep]:
        if not _lasts(old):
            shutil.rmtree(old)
    return whole


def _lasts(path: Path) -> bool:
    try:
        return bool(json.loads((path / "state.json").read_text(encoding="utf-8")).get("lasting"))
    except (OSError, ValueError):
        return False


def tidy(folder: Path) -> None:
    """Delete what a process that was killed while it wrote has left."""
    for part in folder.glob(".*.part"):
        shutil.rmtree(part, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted((p for p in folder.glob("[0-9]*") if p.is_dir() and p.name.isdecimal()), key=lambda p: int(p.name))


def newest(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Tensors and facts of the newest whole checkpoint; None where there is none. Says which damaged ones it passed.

    Raises `ValueError` where all are damaged: starting afresh would cut off what the run has told so far.
    """
    several = found(folder)
    for path in reversed(several):
        try:
            facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
            for name, expected in facts["files"].items():
                if files.sha256(path / name) != expected:
                    raise ValueError(f"{name} is not what was written")
            return {n.removesuffix(".safetensors"): files.load_tensors(path / n) for n in facts["files"]}, facts
        except (OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged (%s); going back to the one before", path, error)
    if several:
        raise ValueError(
            f"every checkpoint in {folder} is damaged, so there is nothing to go on from; copy one back, choose another "
            f"run folder, or delete {folder} to begin this run again from its first image"
        )
    return None


def equal(weights: Sequence[Tensor], images: int) -> None:
    """Raise `ValueError` where the processes of a run hold other weights, whose gradients did not meet: a run that trains
    several models and saves one of them looks healthy."""
    if (far := distributed.apart(weights)) > APART:
        raise ValueError(
            f"at image {images:,} the weights of the run's processes are {far:.2g} apart and should be equal: their gradients "
            "do not meet; this checkpoint is not saved, and earlier ones may be wrong too; train in one process"
        )
