"""Which example is shown when: pure functions of the part, the seed and the position, counted in images.

An epoch is a permutation of the families, whose memory does not grow with their number; of each one example is drawn.
Nothing here keeps state, so a run can start at any position, on any number of processes, and see what an uninterrupted
one would.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato import image, streams
from sfumato.data.base import Part

WHOLE = (0.0, 0.0, 1.0, 0.0)  # the field `frame` of a picture that is shown as it is
LISTED = 1 << 22  # families whose orders are lists, of 16 MiB at most
WORD = (1 << 64) - 1


class Plan(NamedTuple):
    """What a batch shows, without its pixels."""

    indices: list[int]
    flips: list[bool]
    fields: dict[str, list[Any]]  # `caption` is one text each; None where an example has no value


class Batch(NamedTuple):
    """A plan with its pictures."""

    images: Tensor  # (B, C, H, W) float32 in [-1, 1]
    indices: list[int]
    positions: list[int]
    fields: dict[str, list[Any]]


def ordered(families: int, seed: int, epoch: int, place: int) -> int:
    """The family at a place in the order of an epoch. Orders are lists up to `LISTED` families, and computed beyond."""
    if families <= LISTED:
        return int(_order(families, seed, epoch)[place])
    return scattered(families, seed, epoch, place)


@lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def _order(families: int, seed: int, epoch: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
    order = np.arange(families, dtype=np.int32)
    streams.generator(seed, "order", epoch).shuffle(order)
    return order


def scattered(families: int, seed: int, epoch: int, place: int) -> int:
    """A permutation that takes no memory: a Feistel network on the bits of a place, again until it ends below `families`
    (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002)."""
    half = ((families - 1).bit_length() + 1) // 2
    while True:
        left, right = place >> half, place & ((1 << half) - 1)
        for key in _keys(seed, epoch):
            mixed = (right ^ key) * 0x9E3779B97F4A7C15 & WORD
            mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & WORD
            left, right = right, left ^ mixed >> (64 - half)
        place = left << half | right
        if place < families:
            return place


@lru_cache(maxsize=2)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    """One key a round."""
    return tuple(streams.generator(seed, "order", epoch).integers(WORD, size=6, dtype=np.uint64).tolist())


def draw(part: Part, seed: int, position: int) -> int:
    """The example shown at a global position. Raises `ValueError` where the part is empty."""
    if not part.families:
        raise ValueError("this part of the data set is empty, so there is nothing to draw; add pictures")
    if part.steps is not None:
        family = part.families[part.steps.family(seed, position)]
    else:
        epoch, place = divmod(position, len(part.families))
        family = part.families[ordered(len(part.families), seed, epoch, place)]
    if len(family) == 1:
        return family[0]
    return family[int(streams.generator(seed, "variant", position).integers(len(family)))]


def plan(
    part: Part, seed: int, positions: Sequence[int], flip: float = 0.0, read: Collection[str] | None = None
) -> Plan:
    """Examples, mirroring and captions at these positions; `flip` is the share shown mirrored where that is allowed. Fields
    that are not among those `read` may be missing, which spares the files that they are in; all are there where None."""
    indices = [draw(part, seed, p) for p in positions]
    flips = [False] * len(indices)
    if flip > 0:
        draws = streams.uniform((), seed, "flip", positions).tolist()
        flips = [d < flip and part.mirrors(k) for d, k in zip(draws, indices, strict=True)]
    rows = [{"frame": WHOLE, **part.told(k, seed, p, read)} for k, p in zip(indices, positions, strict=True)]
    names = sorted({name for row in rows for name in row})
    fields = {name: [row.get(name) for row in rows] for name in names}
    if "caption" in fields:
        fields["caption"] = [_one(c, seed, p) for c, p in zip(fields["caption"], positions, strict=True)]
    return Plan(indices, flips, fields)


def _one(captions: Sequence[str] | None, seed: int, position: int) -> str | None:
    if not captions:
        return None
    if len(captions) == 1:
        return captions[0]
    return captions[int(streams.generator(seed, "caption", position).integers(len(captions)))]


def batch(
    part: Part, seed: int, positions: Sequence[int], flip: float = 0.0, read: Collection[str] | None = None
) -> Batch:
    """The examples at these positions, with their pictures; the rest is as for `plan`."""
    planned = plan(part, seed, positions, flip, read)
    pictures = [part.image(k) for k in planned.indices]
    pictures = [p.flip(-1) if f else p for p, f in zip(pictures, planned.flips, strict=True)]
    images = torch.stack(pictures).float() / 127.5 - 1.0
    return Batch(images, planned.indices, list(positions), planned.fields)


def preview(part: Part, seed: int = 0, count: int = 64, flip: float = 0.0, columns: int = 8) -> Image.Image:
    """A contact sheet of the first `count` pictures that a network trained with this seed is shown, as it sees them."""
    return image.sheet(batch(part, seed, range(count), flip).images, columns)
