"""Near-duplicates: pictures that look the same though their files differ, such as a copy at another size or quality.

A picture is told by 128 bits: whether each place of a 9 x 9 gray miniature is brighter than its right and its lower
neighbour (Krawetz's difference hash, in both directions). Two pictures are twins where at most `NEAR` bits differ and the
miniatures themselves are alike, or those of one and of the other's mirror image, for training may mirror; twins of twins are
one group. Bits alone do not tell: things on one ground that shades off to a side share all bits but those of their own
edges. A held-out picture whose twin is trained on measures nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.once import warn

NEAR = 10  # of 128 bits
LIKE = 0.95  # correlation of two miniatures, below which they are of different pictures
SIDE = 9  # of a miniature
CROWD, SHARE = 20, 0.05  # pictures, and share of a set, from which a group is told
ROWS, COLUMNS = 128, 2048  # pairs that are compared at once: 2 MiB, which a processor's cache holds
Looks = tuple[int, int, int, int, int]  # two words of 64 bits of the picture, two of its mirror image; its miniature
Words = np.ndarray[Any, np.dtype[np.uint64]]
Places = np.ndarray[Any, np.dtype[np.int64]]
Small = np.ndarray[Any, np.dtype[np.float32]]


def signature(array: "np.ndarray[Any, Any]") -> Looks:
    """Numbers that tell how a picture (H, W, C) looks."""
    from PIL import Image

    channels = np.moveaxis(array, 2, 0) if array.ndim == 3 else array[None]  # one after the other: large ones take room
    several = [Image.fromarray(one.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX) for one in channels]
    small = np.mean([np.asarray(one) for one in several], axis=0)
    return (*_words(small), *_words(small[:, ::-1]), int.from_bytes(_stretched(small).tobytes(), "big"))


def _stretched(small: "np.ndarray[Any, Any]") -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """From its darkest place, 0, to its brightest, 255: rounding takes nothing from pictures of little contrast."""
    least = small.min()
    found = (small - least) * (255 / max(float(small.max() - least), 1e-6))
    return np.asarray(found.round().clip(0, 255), np.uint8)


def _words(small: "np.ndarray[Any, Any]") -> tuple[int, int]:
    across = (small[:8, :8] > small[:8, 1:] + 0.5).flatten()
    down = (small[:8, :8] > small[1:, :8] + 0.5).flatten()
    return int.from_bytes(np.packbits(across).tobytes(), "big"), int.from_bytes(np.packbits(down).tobytes(), "big")


def deciding(digests: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """For each picture the hash that decides its side of a split: its file's own, or one for its whole group.

    The lowest of several hashes is low, so that large groups would nearly all be held out: it is hashed once more.
    """
    several: dict[int, set[str]] = {}
    for digest, number in zip(digests, numbers, strict=True):
        several.setdefault(number, set()).add(digest)
    drawn = {number: min(found) for number, found in several.items()}
    for number in (n for n, found in several.items() if len(found) > 1):
        drawn[number] = hashlib.blake2b(drawn[number].encode(), digest_size=16).hexdigest()
    return [drawn[number] for number in numbers]


def groups(signatures: Sequence[Looks], near: int = NEAR) -> list[int]:
    """For each picture the number of its group, that of the group's first picture.

    Pictures without any structure, all of whose bits are 0, are nobody's twins. Compares all with all in blocks, so memory
    grows with the pictures alone; a million pairs take some ten milliseconds.
    """
    words: Words = np.array([s[:4] for s in signatures], dtype=np.uint64).reshape(-1, 4)
    own, turned = (np.ascontiguousarray(words[:, k : k + 2].T) for k in (0, 2))
    small = _miniatures([s[4] for s in signatures])
    mirrored = small.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, SIDE**2)
    first = np.arange(len(words))
    for begin in range(0, len(words), ROWS):
        rows = slice(begin, begin + ROWS)
        for start in range(begin, len(words), COLUMNS):
            columns = slice(start, start + COLUMNS)
            for one, other in ((own, own), (own, turned), (turned, own)):
                seen = small if one is other else mirrored
                _join(first, (one, other), (small, seen), rows, columns, near)
    found: list[int] = first.tolist()
    return found


def _miniatures(kept: Sequence[int]) -> Small:
    """What `signature` kept, (N, 81), their means taken away and of length 1 each; 0 where they are of one colour."""
    raw = np.frombuffer(b"".join(one.to_bytes(SIDE * SIDE, "big") for one in kept), np.uint8)
    found = raw.reshape(-1, SIDE * SIDE).astype(np.float32)
    found -= found.mean(1, keepdims=True)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
    return found


def _join(
    first: Places, words: tuple[Words, Words], small: tuple[Small, Small], rows: slice, columns: slice, near: int
) -> None:
    """Make one group of each row of the first and column of the second, whose words (2, N) differ in at most `near` bits and
    whose miniatures (N, 81) correlate."""
    one, other = words
    a, b = np.nonzero(np.bitwise_count(one[0, rows, None] ^ other[0, None, columns]) <= near)
    a, b = a + rows.start, b + columns.start
    apart = first[a] != first[b]
    a, b = a[apart], b[apart]
    off = np.bitwise_count(one[:, a] ^ other[:, b]).sum(0, dtype=np.int32)
    alike = (off <= near) & one[:, a].any(0) & other[:, b].any(0)
    a, b = a[alike], b[alike]
    if len(a):
        alike = (small[0][rows] @ small[1][columns].T)[a - rows.start, b - columns.start] >= LIKE
        a, b = a[alike], b[alike]
    while len(a):
        low, high = np.minimum(first[a], first[b]), np.maximum(first[a], first[b])
        np.minimum.at(first, high, low)
        while (further := first[first] != first).any():
            first[further] = first[first[further]]
        apart = first[a] != first[b]
        a, b = a[apart], b[apart]


def crowded(path: Path, numbers: Sequence[int]) -> None:
    """Warn where one group of pictures that look alike is so large that the side of the split it falls on decides what is
    measured."""
    most = max(Counter(numbers).values(), default=0)
    if most >= CROWD and most > SHARE * len(numbers):
        warn(
            __name__,
            f"{path}: {most:,} of {len(numbers):,} pictures look so much alike, one like the next, that all are on one side "
            "of the split; put what is to be held out into a folder `val` beside `train` to choose it yourself",
        )


def alike(names: Sequence[str], numbers: Sequence[int], out: Set[str]) -> str:
    """How many pictures look like another one, and whether `out`, those held out, do; empty where none does."""
    found: dict[int, list[str]] = {}
    for name, number in zip(names, numbers, strict=True):
        found.setdefault(number, []).append(name)
    several = [group for group in found.values() if len(group) > 1]
    if not several:
        return ""
    torn = [group for group in several if 0 < len(out & set(group)) < len(group)]
    first = (torn or several)[0]
    sides = f"groups on both sides of the split: {len(torn):,}" if torn else "each group is on one side of the split"
    return f"{sum(map(len, several)):,} pictures in {len(several):,} groups, such as {first[0]} and {first[1]}; {sides}"
