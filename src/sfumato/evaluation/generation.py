"""How far images are from real ones: every measure in one table, with rows of real ones beside.

They are two halves of the reference against each other, and where there is a first stage its reconstructions of reference
images, as many as were generated: a latent model is judged through both. The Fréchet distance is larger the fewer images
it is of, on either side, so that halves do not bound it; the kernel distance is not. Names of measures carry the
network's name; only the published Inception network gives FID, sFID, KID and Inception score.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato import streams
from sfumato.evaluation import protocol
from sfumato.evaluation.frechet import SUBSET, SUBSETS, frechet, kernel
from sfumato.evaluation.gather import Gathered, gather
from sfumato.evaluation.inception import SPLITS, inception_score
from sfumato.evaluation.manifold import DENSE, NEIGHBOURS, coverage, manifold
from sfumato.evaluation.source import Source
from sfumato.features.network import Description, FeatureNetwork

Row = dict[str, Any]
Extreme = tuple[int, int, float]  # an image, the real one nearest to it in features, their distance
SHOWN = 8  # pictures of each kind in `extremes`
FINITE = {"FID": "Fréchet distance", "sFID": "spatial Fréchet distance", "KID": "kernel distance"}


def named(measure: str, network: Description) -> str:
    """The name of a measure of this network's features: `FID` is only that of the published file."""
    if network.published:
        return measure
    return f"{FINITE.get(measure, measure)} ({network.name})"


def against(real: Gathered, fake: Gathered, network: Description) -> Row:
    """All measures that these features allow, by name; a kernel distance has its standard deviation over subsets."""
    row: Row = {}
    if "pooled" in real:
        a, b = real["pooled"], fake["pooled"]
        row[named("FID", network)] = frechet(a, b)
        distance = kernel(a, b)
        row[named("KID", network)] = distance.value
        row[named("KID", network) + " ±"] = distance.spread
        if min(len(a), len(b)) > max(NEIGHBOURS, DENSE):
            row |= {named(name, network): value for name, value in manifold(a, b)._asdict().items()}
    if "spatial" in real:
        row[named("sFID", network)] = frechet(real["spatial"], fake["spatial"])
    if "logits" in fake and len(fake["logits"]) >= SPLITS:
        row[named("Inception score", network)] = inception_score(fake["logits"]).value
    return row


def table(
    network: FeatureNetwork,
    reference: Source,
    subjects: Mapping[str, Source],
    *,
    cache: Path | None = None,
    workers: int = 1,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """`rows`: each subject against the whole reference, then real against real; `extremes` of the first; `protocol`.

    Raises `ValueError` where there are too few images.
    """
    if len(reference) < 4:
        raise ValueError(f"a reference needs four images, for its halves are compared too; got {len(reference)}")
    described = network.description
    say = tell or (lambda text: None)

    def seen(title: str, source: Source) -> Gathered:
        say(f"features of {len(source):,} images ({title})")
        return gather(network, source, cache=cache, workers=workers)

    real = seen("reference", reference)
    rows: list[Row] = []
    extremes: dict[str, list[Extreme]] = {}
    for title, source in subjects.items():
        fake = seen(title, source)
        rows.append(
            {"images": title, "count": len(source), "against": len(reference), **against(real, fake, described)}
        )
        extremes = extremes or extreme(real, fake)
    one, two = halves(real)
    count = len(next(iter(subjects.values()))) if subjects else 0
    many = min(count or len(reference), len(next(iter(one.values()))))
    found = apart(two, one, count or len(reference), len(reference), described)
    counts = {"count": many, "against": len(next(iter(two.values())))}
    rows.append({"images": "real, one half against the other", **counts, **found})
    return {
        "rows": rows,
        "extremes": extremes,
        "subject": {title: source.told() for title, source in subjects.items()},
        "protocol": protocol.record(**told(network, reference, count)),
    }


def apart(two: Gathered, one: Gathered, images: int, reference: int, network: Description) -> Row:
    """One half of the real images against the other, at most `images`, whose coverage is of as many as make them to this half
    what so many images are to the whole reference, as far as the half has so many: it rises with that ratio alone, M to N,
    to 1 - (1 + M / N)^-5 for the best of models."""
    found = against(two, {name: rows[:images] for name, rows in one.items()}, network)  # halves are shuffled
    fewer = round(images * len(next(iter(two.values()))) / reference)
    name = named("coverage", network)
    if name in found:
        found[name] = coverage(two["pooled"], one["pooled"][: max(fewer, 1)])
    return found


def told(network: FeatureNetwork, reference: Source, images: int) -> dict[str, Any]:
    """The protocol's part on features."""
    return {
        "features": network.told(),
        "images": images,
        "reference": reference.told(),
        "reference_images": len(reference),
        "kernel": {"subsets": SUBSETS, "images": SUBSET},
        "neighbours": {"precision, recall": NEIGHBOURS, "density, coverage": DENSE},
        "splits": SPLITS,
    }


def halves(features: Gathered) -> tuple[Gathered, Gathered]:
    """Two disjoint halves, the same every time."""
    count = len(next(iter(features.values())))
    order = torch.from_numpy(streams.generator(0, "halves of the reference").permutation(count))
    cut = count // 2
    return {n: r[order[:cut]] for n, r in features.items()}, {n: r[order[cut:]] for n, r in features.items()}


def extreme(real: Gathered, fake: Gathered, at_once: int = 1024) -> dict[str, list[Extreme]]:
    """`best`, `median` and `worst` images by the distance to the nearest real one in features.

    A distance near 0 is a copy, not a success: the nearest one is named so that it can be looked at.
    """
    name = next(iter(real))
    blocks = [torch.cdist(rows.double(), real[name].double()).min(1) for rows in torch.split(fake[name], at_once)]
    distances, indices = torch.cat([b.values for b in blocks]), torch.cat([b.indices for b in blocks])
    order = distances.argsort(stable=True).tolist()
    count, middle = min(SHOWN, len(order)), max(len(order) // 2 - SHOWN // 2, 0)
    cuts = {"best": order[:count], "median": order[middle : middle + count], "worst": order[::-1][:count]}
    return {title: [(k, int(indices[k]), float(distances[k])) for k in ks] for title, ks in cuts.items()}
