"""The latent cache: every training picture goes through the encoder once, not once an epoch.

It is a Hugging Face `datasets` Arrow data set of posterior moments in half precision, memory-mapped, keyed by the data
set's and the autoencoder's fingerprints: a cache of another autoencoder, of other pictures or of another size is
refused rather than trained on. It is written in shards by as many processes as there are, and an interrupted writing
goes on. Mirrored pictures are encoded too where a recipe mirrors, since the encoder of a mirrored
picture is not the mirrored latent.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import distributed, files
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Part
from sfumato.training.autoencoder import stack

KEY = "latents.json"
BEGINNINGS = 20  # tries at a folder that other runs take away meanwhile


class Latents:
    """Moments of the pictures of one part: `rows([index, ...], [flipped, ...])` -> (B, M, h, w) float32."""

    def __init__(self, folder: Path) -> None:
        from datasets import load_from_disk

        self.facts: dict[str, Any] = json.loads((folder / KEY).read_text(encoding="utf-8"))
        self.shape: tuple[int, ...] = tuple(self.facts["shape"])
        self.flipped: bool = self.facts["flip"]
        table = load_from_disk(str(folder)).data
        self.chunks = [c.flatten().to_numpy().reshape(-1, *self.shape) for c in table.column("moments").chunks]
        self.starts = np.cumsum([0, *(len(c) for c in self.chunks)])

    def __len__(self) -> int:
        return int(self.starts[-1]) // (2 if self.flipped else 1)

    def _row(self, number: int) -> "np.ndarray[Any, np.dtype[np.float16]]":
        chunk = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.chunks[chunk][number - int(self.starts[chunk])]  # type: ignore[no-any-return]

    def rows(self, indices: Sequence[int], flips: Sequence[bool] | None = None) -> Tensor:
        """Moments of the pictures at these indices, mirrored where `flips` says."""
        mirrored = [False] * len(indices) if flips is None else flips
        if any(mirrored) and not self.flipped:
            raise ValueError("these latents were encoded without mirrored pictures; encode again with flip on")
        numbers = [(2 * i + f) if self.flipped else i for i, f in zip(indices, mirrored, strict=True)]
        return torch.from_numpy(np.stack([self._row(n) for n in numbers]).astype(np.float32))


def key(codec: Codec, part: Part, flip: bool) -> dict[str, Any]:
    """What a cache must agree on to be used."""
    return {"data": part.fingerprint, "autoencoder": codec.fingerprint(), "flip": flip, "count": len(part)}


class Fresh:
    """Moments worked out when they are asked for, in place of a cache: for runs shorter than an epoch or two, and for
    pictures that change with every showing."""

    def __init__(self, codec: Codec, part: Part) -> None:
        self.codec, self.part = codec, part

    @torch.no_grad()
    def rows(self, indices: Sequence[int], flips: Sequence[bool] | None = None) -> Tensor:
        """As `Latents.rows`."""
        pictures = stack(self.part, indices)
        for place, mirrored in enumerate(flips or ()):
            if mirrored:
                pictures[place] = pictures[place].flip(-1)
        shift = self.codec.shift
        return self.codec.moments(pictures.to(shift.device, next(self.codec.autoencoder.parameters(), pictures).dtype))


class Shaped:
    """Moments of pictures of several shapes, a cache for each; one call asks for those of one shape."""

    def __init__(self, several: Sequence[tuple[Sequence[int], Latents]], count: int) -> None:
        """`several` are the indices of each cache's pictures, and the cache."""
        self.caches = [cache for _, cache in several]
        self.where = np.zeros((count, 2), np.int64)  # of each picture: its cache, and its row there
        for number, (indices, _) in enumerate(several):
            self.where[list(indices)] = np.stack([np.full(len(indices), number), np.arange(len(indices))], 1)

    def __len__(self) -> int:
        return len(self.where)

    def rows(self, indices: Sequence[int], flips: Sequence[bool] | None = None) -> Tensor:
        """As `Latents.rows`."""
        caches, rows = self.where[list(indices)].T
        assert (caches == caches[0]).all()
        cache: Latents = self.caches[caches[0]]
        return cache.rows(rows.tolist(), flips)


def encode(
    codec: Codec,
    part: Part,
    folder: Path,
    *,
    flip: bool = False,
    at_once: int = 128,
    shard: int = 1024,
    tell: Callable[[int], None] | None = None,
) -> Latents:
    """Encode a part into `folder` (nothing is done where it already holds just that) and open it.

    Pictures are encoded in shards, each written whole or not at all and taken by one of the run's processes; what an
    interrupted call has finished is kept, and the rows do not depend on who encoded them. Two runs may encode the same at
    once. Raises `ValueError` where the folder holds other latents; `tell` is called with the number of pictures that this
    process has done.
    """
    wanted = key(codec, part, flip)
    if distributed.all_of((folder / KEY).is_file()):  # another run may finish it between two looks: all go one way
        check(folder, wanted)
        if distributed.chief():  # what a kill at the very end has left
            shutil.rmtree(folder.with_name(f".{folder.name}.part"), ignore_errors=True)
        return Latents(folder)
    high, wide = (part.size, part.size) if part.shapes is None else part.shapes[0]
    codec.autoencoder.check(torch.empty(1, part.channels, high, wide))
    work = folder.with_name(f".{folder.name}.part")
    rank, processes = distributed.place()
    if distributed.chief():
        _begun(work, wanted)
    distributed.wait()
    shards = [range(b, min(b + shard, len(part))) for b in range(0, len(part), shard)]
    done = 0
    try:
        for number in range(rank, len(shards), processes):
            if not (work / _name(number)).is_dir():
                _write(work / _name(number), encoded(codec, part, shards[number], flip, at_once))
            done += len(shards[number])
            if tell is not None:
                tell(done)
        distributed.wait()
    except OSError as error:
        if processes > 1 or not (folder / KEY).is_file():
            raise files.full(error, folder) from error
    if distributed.chief():
        try:
            if not (folder / KEY).is_file():
                _join(work, len(shards), folder, wanted)
        except OSError as error:
            if not (folder / KEY).is_file():
                raise files.full(error, folder) from error
        check(folder, wanted)  # another run that encodes the same may have been first, and have taken its shards away
        shutil.rmtree(work, ignore_errors=True)
    distributed.wait()
    return Latents(folder)


def _name(number: int) -> str:
    return f"shard-{number:05d}"


def _begun(work: Path, wanted: dict[str, Any]) -> None:
    """A folder for the shards of just these latents; those of others in it are deleted."""
    path = work / KEY
    for _ in range(BEGINNINGS):
        try:
            if path.is_file():
                if json.loads(path.read_text(encoding="utf-8")) == wanted:
                    return
                shutil.rmtree(work, ignore_errors=True)
            files.write(path, json.dumps(wanted))
        except FileNotFoundError:  # another run that begins the same took the folder of older ones away meanwhile
            continue
        return
    raise ValueError(f"{work} is taken away again and again by other runs; begin one of them after the other")


@torch.no_grad()
def encoded(codec: Codec, part: Part, indices: range, flip: bool, at_once: int) -> Tensor:
    """Moments (N, M, h, w) in half precision, a mirrored picture's after its own. Batches begin where shards do."""
    found = []
    for begin in range(indices.start, indices.stop, at_once):
        pictures = stack(part, range(begin, min(begin + at_once, indices.stop))).to(codec.shift.device)
        views = [codec.moments(p).cpu() for p in ([pictures, pictures.flip(-1)] if flip else [pictures])]
        found.append(torch.stack(views, 1).flatten(0, 1).clamp(-65504, 65504).to(torch.float16))
    return torch.cat(found)


def _write(folder: Path, moments: Tensor) -> None:
    """One shard, whole and on the disk or not there."""
    from datasets import Dataset, Features, Value, disable_progress_bars
    from datasets import Sequence as Row

    disable_progress_bars()
    flat = moments.flatten(1).numpy()
    features = Features({"moments": Row(Value("float16"), length=flat.shape[1])})
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        Dataset.from_dict({"moments": list(flat)}, features=features).save_to_disk(str(part))
        files.write(part / KEY, json.dumps({"shape": tuple(moments.shape[1:])}))
        files.sync_all(part)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was first, with the same rows
                raise
            shutil.rmtree(part)
        files.sync(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _join(work: Path, shards: int, folder: Path, wanted: dict[str, Any]) -> None:
    """All shards as one data set in `folder`; they are copied through memory maps, then deleted."""
    from datasets import concatenate_datasets, load_from_disk

    parts = [work / _name(number) for number in range(shards)]
    whole = work / f"whole.{os.getpid()}"
    shutil.rmtree(whole, ignore_errors=True)
    concatenate_datasets([load_from_disk(str(p)) for p in parts]).save_to_disk(str(whole))
    shape = json.loads((parts[0] / KEY).read_text(encoding="utf-8"))["shape"]
    files.write(whole / KEY, json.dumps({**wanted, "shape": shape}, indent=1))
    files.sync_all(whole)
    whole.rename(folder)
    files.sync(folder.parent)
    shutil.rmtree(work, ignore_errors=True)


def check(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise `ValueError` where the cache in `folder` was made from something else."""
    facts = json.loads((folder / KEY).read_text(encoding="utf-8"))
    other = [
        f"{name} {facts.get(name)} instead of {value}" for name, value in wanted.items() if facts.get(name) != value
    ]
    if other:
        raise ValueError(f"{folder} holds latents of {', '.join(other)}; delete the folder, or encode into another")
