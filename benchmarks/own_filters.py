"""A perceptual network of one's own pictures, for where none can be fetched: filters that k-means finds, layer upon layer.

    python benchmarks/own_filters.py PICTURES filters.pt
    sfumato train photo-inpaint data.path=PICTURES "decoded.perceptual={kind: torchscript, network: filters.pt}"

Each layer's filters are the centres of whitened patches of the layer before (Coates & Ng, 2012, "Learning Feature
Representations with K-means"), rectified, pooled and learned in turn, without gradients, in a minute of one core. The
squared distance of what the written network gives is between maps of unit length, place by place (`--gram` of it: between
the products of channels, which know no place), and as large as LPIPS's is about: a blur of three pixels is at 0.29.
`--random` takes any directions in place of the centres. It wants pictures of 24 pixels at least.
"""

import argparse
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import streams
from sfumato.data.base import Data

LAYERS = ((5, 2, 64), (3, 1, 128), (3, 1, 192), (3, 1, 256))  # kernel, stride, filters
PATCHES, ROUNDS, SIDE, BLURRED = 60_000, 15, 64, 0.29


class Filters(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, N)."""

    def __init__(self, place: list[float], gram: list[float]) -> None:
        super().__init__()
        before = [3, *(count for _, _, count in LAYERS)]
        self.convs = nn.ModuleList(
            nn.Conv2d(width, count, kernel, stride, padding=0 if stride > 1 else 1)
            for width, (kernel, stride, count) in zip(before, LAYERS, strict=False)
        )
        self.place, self.gram = place, gram

    def seen(self, x: Tensor, place: float, gram: float) -> Tensor:
        """A layer's maps as they are compared."""
        unit = x / (x.square().sum(1, keepdim=True) + 1e-2).sqrt()
        places = float(unit.shape[2] * unit.shape[3])
        flat = unit.flatten(2)
        products = (flat @ flat.transpose(1, 2)).flatten(1) / places
        return torch.cat([unit.flatten(1) * (place / places**0.5), products * gram], 1)

    def forward(self, x: Tensor) -> Tensor:
        """All layers, one after another."""
        found: list[Tensor] = []
        for number, conv in enumerate(self.convs):
            if number:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = F.relu(conv(x))
            found.append(self.seen(x, self.place[number], self.gram[number]))
        return torch.cat(found, 1)


def crops(folder: Path, count: int = 400) -> Tensor:
    """Some crops of 64 pixels of the training pictures, (N, 3, 64, 64) in [-1, 1]."""
    part = Data.model_validate({"kind": "folder", "path": str(folder), "size": 2 * SIDE}).open("train")
    rng = streams.generator(0, "crops of filters")
    found = []
    for index in rng.permutation(len(part))[:count].tolist():
        y, x = rng.integers(0, SIDE + 1, 2).tolist()
        found.append(part.image(index)[:3, y : y + SIDE, x : x + SIDE].float() / 127.5 - 1)
    return torch.stack(found)


def learned(x: Tensor, conv: nn.Conv2d, random: bool) -> None:
    """Give a layer the filters of what comes before it, (N, C, H, W), with a good four tenths of their answers above 0."""
    (kernel, _), stride, count = conv.kernel_size, conv.stride[0], conv.out_channels
    padded = F.pad(x, (1,) * 4) if stride == 1 else x
    rows = F.unfold(padded, kernel, stride=stride).transpose(1, 2).flatten(0, 1)
    rows = rows[torch.randperm(len(rows))[:PATCHES]].double()
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    lifted = values + values.max() * (0.01 if kernel > 3 else 0.002)
    white = vectors @ torch.diag(lifted.rsqrt()) @ vectors.T
    filters = F.normalize(torch.randn(count, len(mean), dtype=torch.float64), dim=1)
    if not random:
        filters = centres(centred @ white, count)
    weight = filters @ white
    answers = centred @ weight.T
    weight, answers = weight / answers.std(0)[:, None], answers / answers.std(0)
    with torch.no_grad():
        conv.weight.copy_(weight.reshape(conv.weight.shape))
        assert conv.bias is not None
        conv.bias.copy_(-(weight @ mean) - 0.5 * answers.quantile(0.6, dim=0))


def centres(rows: Tensor, count: int) -> Tensor:
    """Spherical k-means of rows (N, D): (count, D) of unit length, of either sign."""
    unit = F.normalize(rows, dim=1)
    found = unit[torch.randperm(len(unit))[:count]].clone()
    for _ in range(ROUNDS):
        alike = unit @ found.T
        nearest = alike.argmax(1)
        new = torch.zeros_like(found).index_add_(0, nearest, rows * alike.gather(1, nearest[:, None]).sign())
        dead = new.norm(dim=1) == 0
        new[dead] = unit[torch.randperm(len(unit))[: int(dead.sum())]]
        found = F.normalize(new, dim=1)
    return found


def blurred(x: Tensor, sigma: float = 3.0) -> Tensor:
    """Pictures under a Gaussian of so many pixels."""
    reach = int(3 * sigma)
    line = (-(torch.arange(-reach, reach + 1) / sigma).square() / 2).exp()
    line, c = line / line.sum(), x.shape[1]
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), "reflect"), line.reshape(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), "reflect"), line.reshape(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)


def balanced(net: Filters, x: Tensor, gram: float) -> None:
    """Make every layer's part of the distance between pictures and blurred ones equal, and their sum LPIPS's."""
    pairs, count, kept = (x[:128], blurred(x[:128])), len(LAYERS), dict[str, list[float]]()
    for kind, share in (("place", 1 - gram), ("gram", gram)):
        raw = []
        for number in range(count):
            only = [float(k == number) for k in range(count)]
            net.place, net.gram = (only, [0.0] * count) if kind == "place" else ([0.0] * count, only)
            raw.append(float((net(pairs[0]) - net(pairs[1])).square().sum(1).mean()))
        kept[kind] = [(share * BLURRED / count / r) ** 0.5 for r in raw]
    net.place, net.gram = kept["place"], kept["gram"]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gram", type=float, default=0.0, help="share of the distance that is between Gram matrices")
    parser.add_argument("--random", action="store_true")
    asked = parser.parse_args()
    torch.manual_seed(0)
    x = crops(asked.pictures)
    net, maps = Filters([0.0] * len(LAYERS), [0.0] * len(LAYERS)), x
    for number, conv in enumerate(net.convs):
        assert isinstance(conv, nn.Conv2d)
        maps = F.max_pool2d(maps, 3, 2, ceil_mode=True) if number else maps
        learned(maps, conv, asked.random)
        maps = F.relu(conv(maps))
        print(f"layer {number + 1}: {conv.out_channels} filters, {float((maps > 0).float().mean()):.0%} answer")
    balanced(net, x, asked.gram)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(net.eval()).save(str(asked.out))  # type: ignore[no-untyped-call]
    print(asked.out)


if __name__ == "__main__":
    main()
