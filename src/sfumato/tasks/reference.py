"""References: what pictures that were handed in say, as embeddings: their own, or those of what is nearest in a bank.

The network is the one that the model was trained with, and it sees what it saw then: the picture's centred square, at the
model's size. What it says of a bank's pictures is kept on disk.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sfumato import image
from sfumato.conditioning.reference import Reference
from sfumato.data import embed
from sfumato.data.layout import listed, unwrapped
from sfumato.features.retrieval import embedded, neighbours
from sfumato.model import LatentDiffusion
from sfumato.shape import squared
from sfumato.tasks import given
from sfumato.tasks.requests import Request

log = logging.getLogger(__name__)


class Bank:
    """The pictures under a folder, as the model sees them. Raises `ValueError` where there are none."""

    def __init__(self, folder: Path, size: int, channels: int) -> None:
        named = [entry.file for entry in listed(unwrapped(folder))]
        self.files = [file for file in named if file.is_file()]
        if gone := len(named) - len(self.files):
            log.warning("%s: %d of %d pictures are not there and are left out", folder, gone, len(named))
        if not self.files:
            raise ValueError(f"none of the {len(named)} pictures that {folder} names is there")
        self.size, self.channels = size, channels
        told = [(str(f.resolve()), (found := f.stat()).st_size, found.st_mtime_ns) for f in self.files]
        self.fingerprint = hashlib.sha256(json.dumps([told, size, channels]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Tensor:
        """The picture (channels, size, size), as a part of a data set has it."""
        return squared(image.pixels(self.files[index], self.channels, least=2 * self.size), self.size)


def references(model: LatentDiffusion, request: Request) -> dict[str, Tensor]:
    """What reference and bank say of every picture of a request, by the field that reads it: embeddings (n, D).

    Neighbours are `near` where the model reads that, and a picture's own embedding is `reference`; a model that reads one
    of the two takes either. Raises `ValueError` where it reads none, or something is missing.
    """
    if request.reference is None and request.bank is None:
        return {}
    conditioners = model.conditions.conditioners.values()
    readers = {reader.field: reader for reader in conditioners if isinstance(reader, Reference)}
    if not readers:
        raise ValueError("this model was trained without references, so it takes none and no bank; leave them out")
    shown = request.reference or [picture for picture in [getattr(request, "picture", None)] if picture is not None]
    if not shown:
        raise ValueError("a bank is searched for what is like a picture; give that as reference")
    found: dict[str, Tensor] = {}
    if request.bank is not None:
        field = "near" if "near" in readers else next(iter(readers))
        count = request.neighbours or readers[field].usual
        found[field] = nearest(model, readers[field], shown, Bank(request.bank, *_shape(model)), count)
    own = "reference" if "reference" in readers else next(iter(readers))
    if request.reference is not None and own not in found:
        found[own] = looked(model, readers[own], shown)
    return found


def looked(model: LatentDiffusion, reader: Reference, shown: list[Any]) -> Tensor:
    """Embeddings (n, D) of pictures, as they would be in training."""
    return embedded(reader.opened(), [_square(model, one) for one in shown])


def nearest(model: LatentDiffusion, reader: Reference, shown: list[Any], bank: Bank, count: int) -> Tensor:
    """Embeddings (count, D) of the bank's pictures that are nearest to any of those shown, the best first."""
    rows = embed.rows(bank, reader.opened(), embed.CACHE, sparing=True)
    read = ~rows.isnan().any(1)
    if lost := int((~read).sum()):
        log.warning("%d of %d pictures of the bank cannot be read and are left out", lost, len(bank))
    rows = rows[read]
    likeness, where = neighbours(looked(model, reader, shown), rows, count)
    order = likeness.flatten().argsort(descending=True, stable=True)
    places = list(dict.fromkeys(where.flatten()[order].tolist()))  # each once
    return rows[places[:count]]


def _square(model: LatentDiffusion, shown: Any) -> Tensor:
    """The centred square of a picture at the model's size, (C, S, S) in [-1, 1]."""
    size, channels = _shape(model)
    if isinstance(shown, Path):
        return squared(image.pixels(shown, channels, least=2 * size), size).float() / 127.5 - 1.0
    whole = image.to_uint8(given.picture(model, shown, "reference")).permute(1, 2, 0)
    return squared(np.ascontiguousarray(whole.numpy()), size).float() / 127.5 - 1.0


def _shape(model: LatentDiffusion) -> tuple[int, int]:
    return model.size, model.codec.image_channels
