"""Photographs by boxes: does what was asked stand where it was asked? Fruits on pale grounds, from `fruit_tables.py`.

    python benchmarks/task_boxes.py --runs runs --data TABLES --features mobilenet_v2_features.pt --out boxes

Fruits do not touch and grounds are pale, so each is found as what is connected and differs from the ground, a plane of colour
that is fitted to it. Its class is what a linear classifier of a network's features, which learned real cut-outs, says of it.
Both judges are measured on real tables first; every number stands beside that of the first stage's reconstructions.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from drawing import sampled
from task_photos import features, linear, opened, told
from torch import Tensor
from torch.nn import functional as F

from sfumato import image, streams
from sfumato.data.base import Part
from sfumato.evaluation.detection import grounds
from sfumato.features import network as networks
from sfumato.model import LatentDiffusion

OFF = 40.0  # levels from the ground, in any colour, from which a pixel is a fruit's
LEAST = 24  # pixels of a fruit
SHOWN = 12
Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the picture
Named = tuple[str, float, float, float, float]


def found(picture: Tensor) -> list[Box]:
    """Boxes of what stands on the ground of a picture (3, S, S) in [-1, 1]."""
    pixels = (picture.float() + 1) * 127.5
    there = ((pixels - grounds(pixels)).abs().amax(0) > OFF).numpy().astype(np.uint8)
    size = there.shape[-1]
    _, _, facts, _ = cv2.connectedComponentsWithStats(there, connectivity=8)
    kept = [fact for fact in facts[1:].tolist() if fact[cv2.CC_STAT_AREA] >= LEAST]
    return [(x / size, y / size, (x + w) / size, (y + h) / size) for x, y, w, h, _ in kept]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(wide, 0.0) * max(high, 0.0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def crop(picture: Tensor, box: Box) -> Tensor:
    """The square about a box, as far as there is picture, 64 pixels a side."""
    size = picture.shape[-1]
    x0, y0, x1, y1 = (round(v * size) for v in box)
    side = max(x1 - x0, y1 - y0)
    left, top = (min(max((a + b - side) // 2, 0), size - side) for a, b in ((x0, x1), (y0, y1)))
    part = picture[None, :, top : top + side, left : left + side].float()
    return F.interpolate(part, (64, 64), mode="bilinear", antialias=True, align_corners=False)[0].clamp(-1, 1)


class Judge(NamedTuple):
    """Who says what a fruit is."""

    network: networks.FeatureNetwork
    agreement: Callable[[Tensor, Tensor], float]
    names: list[str]

    def share(self, cuts: list[Tensor], asked: list[int]) -> float:
        """The share of cut-outs that are of the class that is named."""
        return self.agreement(features(self.network, torch.stack(cuts)), torch.tensor(asked)) if cuts else 0.0


def judge(part: Part, path: Path, count: int = 2000) -> Judge:
    """Learned on the cut-outs of so many real tables."""
    net, names = networks.opened(path), list(part.class_names["boxes"])
    cuts, classes = list[Tensor](), list[int]()
    for k in range(min(count, len(part))):
        picture = part.image(k).float() / 127.5 - 1.0
        for name, *box in part.field(k, "boxes"):
            cuts.append(crop(picture, (box[0], box[1], box[2], box[3])))
            classes.append(names.index(name))
    return Judge(net, linear(features(net, torch.stack(cuts)), torch.tensor(classes), len(names)), names)


def measured(pictures: Tensor, asked: list[list[Named]], who: Judge) -> dict[str, float]:
    """IoU of asked and nearest found boxes; asked ones whose found one overlaps by .3 and is of the asked class; found ones
    that nobody asked for."""
    ious, cuts, classes, strange, total = list[float](), list[Tensor](), list[int](), 0, 0
    for picture, wanted in zip(pictures, asked, strict=True):
        boxes = found(picture)
        strange += sum(all(overlap(box, one[1:]) < 0.1 for one in wanted) for box in boxes)
        for name, *box in wanted:
            total += 1
            overlaps = [overlap(one, (box[0], box[1], box[2], box[3])) for one in boxes]
            ious.append(max(overlaps, default=0.0))
            if ious[-1] > 0.3:
                cuts.append(crop(picture, boxes[overlaps.index(ious[-1])]))
                classes.append(who.names.index(name))
    right = who.share(cuts, classes) * len(cuts) / total
    return {"IoU": sum(ious) / total, "class in its box": right, "not asked for": strange / len(pictures)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--model", default="photo-layout")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/task-boxes"))
    parser.add_argument("--count", type=int, default=192, help="held-out tables")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0, 2.0, 3.0])
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    model = LatentDiffusion.load(asked.runs / asked.model / "model").for_sampling()
    train, held = opened(asked.data, model.size, "train"), opened(asked.data, model.size, "held_out")
    who = judge(train, asked.features)
    places = streams.generator(0, "images of a task").permutation(len(held))[: asked.count].tolist()
    pictures = torch.stack([held.image(k) for k in places]).float() / 127.5 - 1.0
    boxes = [held.field(k, "boxes") for k in places]
    again = torch.cat([model.pictures(model.codec.encode(b)) for b in pictures.split(64)])
    rows = {"real": measured(pictures, boxes, who), "reconstructed": measured(again, boxes, who)}
    shows = [pictures]
    for scale in asked.guidance:
        shows.append(sampled(model, {"boxes": boxes}, len(places), asked.steps, scale, 0))
        rows[f"guidance {scale:g}"] = measured(shows[-1], boxes, who)
        print(scale, rows[f"guidance {scale:g}"], flush=True)
    rows[f"chance: guidance {asked.guidance[-1]:g}, the next table's boxes"] = measured(
        shows[-1], [*boxes[1:], *boxes[:1]], who
    )
    image.sheet(torch.cat([some[:SHOWN] for some in shows]), SHOWN).save(asked.out / "boxes.png")
    (asked.out / "boxes.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print("\n" + told(rows))


if __name__ == "__main__":
    main()
