"""Caption match: does a caption's picture look more like its own emoji than like any other?

One sample for each of a fixed set of captions is compared at 16 pixels (means over blocks, Euclidean distance) with
every picture of the data set. `top1` is the share whose own picture is nearest, `top10` the share whose own is among
the ten nearest. Beside it stand chance, the ceiling (the first stage's reconstruction instead of a sample) and a
baseline that knows words but draws nothing: the training picture whose caption is nearest in words.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato import streams
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Data, Part
from sfumato.evaluation.reconstruction import rebuilt

SIDE, NEAR = 16, 10
Draw = Callable[[list[str]], Tensor]  # captions -> pictures (B, C, H, W) in [-1, 1]


def small(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C * 16 * 16), block means on the scale of 8 bits."""
    return F.interpolate(images.float(), size=(SIDE, SIDE), mode="area").flatten(1) * 127.5


def ranks(images: Tensor, reference: Tensor, own: Sequence[int]) -> Tensor:
    """How many reference pictures are nearer than the own one, (B,); `reference` is `small` of all pictures."""
    distances = torch.cdist(small(images).double(), reference.double())
    mine = distances[torch.arange(len(own)), torch.tensor(own)][:, None]
    return (distances < mine - 1e-9).sum(1)


def shares(found: Tensor) -> dict[str, float]:
    """Top 1 and top 10 of ranks (B,), with their standard errors."""
    row: dict[str, float] = {}
    for name, limit in (("top1", 1), ("top10", NEAR)):
        share = float((found < limit).double().mean())
        row |= {name: share, f"{name}_error": math.sqrt(share * (1 - share) / max(len(found), 1))}
    return row | {"count": len(found)}


def chosen(part: Part, count: int) -> list[int]:
    """At most `count` indices with a caption, always the same for a part."""
    captioned = [k for k in range(len(part)) if part.fields(k).get("caption")]
    order = streams.generator(0, "caption match").permutation(len(captioned))
    return sorted(captioned[k] for k in np.asarray(order)[:count])


class Matcher:
    """The pictures that samples are compared with, and the captions that training saw."""

    def __init__(self, data: Data) -> None:
        everything = data.open("all")
        self.where = {everything.fields(k)["name"]: k for k in range(len(everything))}
        self.reference = small(torch.stack([everything.image(k) for k in range(len(everything))]).float() / 127.5 - 1.0)
        self.train = data.open("train")
        self.captions = [(c, k) for k in range(len(self.train)) for c in self.train.fields(k)["caption"]]
        self.words = Words([c for c, _ in self.captions])

    def own(self, part: Part, indices: Sequence[int]) -> list[int]:
        """Where the pictures at these indices of a part stand among all."""
        return [self.where[part.fields(k)["name"]] for k in indices]

    def match(self, part: Part, draw: Draw, codec: Codec, count: int) -> dict[str, Any]:
        """The row of a part: sampled, ceiling and baseline. `ranks` are how many pictures are nearer than the own one, of each
        caption in the order of `chosen`, so that two models can be compared caption by caption."""
        indices = chosen(part, count)
        own = self.own(part, indices)
        captions = [part.fields(k)["caption"][0] for k in indices]
        originals = torch.stack([part.image(k) for k in indices]).float() / 127.5 - 1.0
        ceiling = torch.cat([rebuilt(codec, rows) for rows in torch.split(originals, 64)])
        found = ranks(draw(captions), self.reference, own)
        return {
            **shares(found),
            "ranks": found.tolist(),
            "ceiling": shares(ranks(ceiling, self.reference, own)),
            "baseline": shares(ranks(self.baseline(part, indices, captions), self.reference, own)),
            "chance": {"top1": 1 / len(self.where), "top10": NEAR / len(self.where)},
        }

    def baseline(self, part: Part, indices: Sequence[int], captions: Sequence[str]) -> Tensor:
        """For each caption, the training picture (never the own one) whose caption is nearest in words."""
        pictures = []
        for index, caption in zip(indices, captions, strict=True):
            name = part.fields(index)["name"]
            scores = self.words.nearness(caption)
            order = sorted(range(len(scores)), key=lambda k: (-scores[k], k))
            k = next(self.captions[n][1] for n in order if self.train.fields(self.captions[n][1])["name"] != name)
            pictures.append(self.train.image(k))
        return torch.stack(pictures).float() / 127.5 - 1.0


class Words:
    """Nearness of captions: the weight of the words they share over that of all their words (Jaccard), rare ones heavy."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.sets = [words(c) for c in captions]
        seen = Counter(w for s in self.sets for w in s)
        self.weight = {w: math.log((1 + len(captions)) / n) for w, n in seen.items()}
        self.unseen = math.log(1.0 + len(captions))

    def _sum(self, several: set[str]) -> float:
        # exact, so that ties do not hang on the order of a set, which differs from process to process
        return math.fsum(self.weight.get(w, self.unseen) for w in several)

    def nearness(self, caption: str) -> list[float]:
        """In [0, 1], for each caption that was given."""
        mine = words(caption)
        return [self._sum(mine & s) / max(self._sum(mine | s), 1e-9) for s in self.sets]


def words(caption: str) -> set[str]:
    """The words of a caption."""
    return set(re.findall(r"[\w'&.-]+", caption.lower()))
