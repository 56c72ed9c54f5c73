"""Features of a source's images: computed once, streamed, in as many processes as asked, kept by their content.

The cache's key is the network's record and the source's, so another file, another resize, another picture or another
sampling setting is another entry, and nothing ever has to be cleared. The cut into batches does not depend on the
number of processes, and rows are kept in order: every metric of these features is then the same for any number, to
rounding.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import distributed, files
from sfumato.evaluation.source import Source, batches
from sfumato.features.network import FeatureNetwork

Gathered = dict[str, Tensor]  # output -> (N, D) float32
FORMAT = 2  # of the entries; a change in how features, or pictures of a model, are made makes it another


def gather(
    network: FeatureNetwork,
    source: Source,
    *,
    cache: Path | None = None,
    workers: int = 1,
    tell: Callable[[int], None] | None = None,
) -> Gathered:
    """The features of all images. `tell` hears how many are done. Raises `ValueError` where there are none."""
    if not len(source):
        raise ValueError("there are no images to look at; give a folder or a data set that has some")
    path = cache / f"{key(network, source)}.safetensors" if cache is not None else None
    if path is not None and distributed.all_of(path.is_file()):  # machines may have no disk together
        return files.load_tensors(path)
    parts: dict[str, list[Tensor]] = {}
    done = 0
    for found in _found(network, source, workers):
        for name, rows in found.items():
            parts.setdefault(name, []).append(torch.from_numpy(rows))
        done += len(next(iter(found.values())))
        if tell is not None:
            tell(done)
    gathered = {name: torch.cat(rows) for name, rows in parts.items()}
    if path is not None and distributed.local() == 0:
        files.keep(path, gathered)
    distributed.wait()  # the cache is there for all, or for none
    return gathered


def key(network: FeatureNetwork, source: Source) -> str:
    """32 hexadecimal digits that change with the network, its preparation, or any picture."""
    record = [FORMAT, network.told(), source.told()]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]


def _found(network: FeatureNetwork, source: Source, workers: int) -> Iterator[dict[str, Any]]:
    cut = batches(len(source))
    if workers <= 1 or len(cut) == 1 or distributed.place()[1] > 1:
        yield from distributed.spread(lambda indices: _features(network, source, indices), cut)
        return
    threads = max(torch.get_num_threads() // workers, 1)
    where = network.place.device
    start = (network, source, str(where), threads)
    with multiprocessing.get_context("spawn").Pool(min(workers, len(cut)), _begin, start) as pool:
        yield from pool.imap(_work, cut)


def _features(network: FeatureNetwork, source: Source, indices: range) -> dict[str, Any]:
    return {name: rows.numpy() for name, rows in network(source.pictures(indices)).items()}


_mine: tuple[FeatureNetwork, Source] | None = None  # of this worker process


def _begin(network: FeatureNetwork, source: Source, device: str, threads: int) -> None:
    global _mine
    torch.set_num_threads(threads)
    _mine = network.to(device), source


def _work(indices: range) -> dict[str, Any]:
    assert _mine is not None
    return _features(*_mine, indices)
