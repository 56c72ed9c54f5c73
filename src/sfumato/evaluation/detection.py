"""Are the emoji of a scene where they were asked to be? A matched filter against the known pictures.

Of a picture the ground is fitted, a plane of colour that outliers do not pull; what is left is compared with every emoji
at every size and place: how much of what is left does it explain, |J|² - |J - R|² = 2 <J, R> - |R|²? The best is kept and
taken away, and the search goes on, until nothing explains enough. Correlations go through the Fourier transform. On real
scenes it finds at least 95 % (`tests/evaluation/test_detection.py`); what it says of samples is shown beside what it says
of the first stage's reconstructions, which is the most that a latent model can reach.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.data.scenes import LEAST, MOST, NAMES, Fact, Scene, ScenesPart, Thing, fact, glyph

STEP = 2  # pixels between the sizes that are tried, of 64
ENOUGH = 0.3  # of its own energy that a thing must explain
FLOOR = 90.0  # mean squared energy (of 255²) over a thing's pixels, below which it is texture
ROUNDS = 5


class Found(NamedTuple):
    """An emoji in a picture: the square it stands in, and the share of its energy that it explains, at most 1."""

    thing: Thing
    score: float


class Templates(NamedTuple):
    """All emoji at all sizes: T templates on a canvas of S pixels and room for one beyond its edges."""

    things: list[tuple[int, int]]  # (kind, side)
    colour: Tensor  # (T, 3, P, P // 2 + 1) complex: colour times coverage
    cover: Tensor  # (T, P, P // 2 + 1) complex: coverage
    square: Tensor  # (T,) sum of (coverage colour)²
    mean: Tensor  # (T, 3) sum of coverage² colour
    weight: Tensor  # (T,) sum of coverage²
    padded: int


@lru_cache(maxsize=2)
def templates(size: int) -> Templates:
    """Those of pictures of this size."""
    sides = range(round(LEAST * size), round(MOST * size) + 1, max(round(STEP * size / 64), 1))
    padded = size + max(sides)
    things, colours, covers, facts = [], [], [], []
    for kind in range(len(NAMES)):
        for side in sides:
            colour, alpha = glyph(kind, side)
            things.append((kind, side))
            colours.append(torch.fft.rfft2(colour, s=(padded, padded)))
            covers.append(torch.fft.rfft2(alpha[0], s=(padded, padded)))
            facts.append((float(colour.square().sum()), (colour * alpha).sum((1, 2)), float(alpha.square().sum())))
    return Templates(
        things,
        torch.stack(colours),
        torch.stack(covers),
        torch.tensor([f[0] for f in facts]),
        torch.stack([f[1] for f in facts]),
        torch.tensor([f[2] for f in facts]),
        padded,
    )


def grounds(picture: Tensor) -> Tensor:
    """The ground of a picture (3, S, S): a plane of colour, fitted to what is near it again and again."""
    size = picture.shape[-1]
    places = torch.linspace(-1, 1, size)
    v, u = torch.meshgrid(places, places, indexing="ij")
    basis = torch.stack([torch.ones_like(u), u, v]).flatten(1).T  # (S², 3)
    values = picture.flatten(1).T
    edge = (torch.maximum(u.abs(), v.abs()) > 0.8).flatten().float()
    weight = 0.2 + 0.8 * edge
    for _ in range(12):
        scaled = basis * weight[:, None]
        plane = torch.linalg.solve(scaled.T @ basis + 1e-3 * torch.eye(3), scaled.T @ values)
        off = (values - basis @ plane).square().sum(1)
        weight = 1 / (1 + off / 400)  # Cauchy's: what is 20 levels away counts half
    fitted: Tensor = (basis @ plane).T.reshape(picture.shape)
    return fitted


@torch.no_grad()
def find(picture: Tensor, most: int = ROUNDS) -> list[Found]:
    """The emoji in a picture (3, S, S) in [-1, 1], the surest first."""
    pixels = (picture.float() + 1) * 127.5
    size = pixels.shape[-1]
    known, ground = templates(size), grounds(pixels)
    left = pixels - ground  # what is to be explained
    free = torch.ones(size, size)
    found: list[Found] = []
    middle = ground.mean((1, 2))
    for _ in range(most):
        gain, energy = _explained(left, ground, known, middle)
        best = int(gain.argmax())
        number, place = divmod(best, gain[0].numel())
        top, across = divmod(place, gain.shape[-1])
        kind, side = known.things[number]
        share = float(gain.flatten()[best]) / float(energy.flatten()[best])
        if share < ENOUGH or float(energy.flatten()[best]) < FLOOR * float(known.weight[number]):
            break
        found.append(Found(Thing(kind, across, top, side), share))
        part = (slice(top, top + side), slice(across, across + side))
        free[part] *= 1 - glyph(kind, side)[1][0]
        left = (pixels - ground) * free
    return found


def _explained(left: Tensor, ground: Tensor, known: Templates, middle: Tensor) -> tuple[Tensor, Tensor]:
    """What every template explains at every place that it fits in, (T, S, S), and its energy there, both squared levels."""
    size, padded = left.shape[-1], known.padded
    spectrum = torch.fft.rfft2(left, s=(padded, padded))
    shade = torch.fft.rfft2((left * ground).sum(0), s=(padded, padded))
    product = (known.colour.conj() * spectrum).sum(1) - known.cover.conj() * shade
    inner = torch.fft.irfft2(product, s=(padded, padded))[:, :size, :size]
    # the ground is nearly one colour under a thing: that of its centre
    flat = ground.flatten(1)
    local = (known.square[:, None] - 2 * known.mean @ flat + known.weight[:, None] * flat.square().sum(0)).reshape(
        -1, size, size
    )
    energy = torch.empty_like(local)
    for number, (_, side) in enumerate(known.things):
        half = side // 2
        energy[number] = local[number].roll((-half, -half), (0, 1))
        inner[number, size - side + 1 :] = -1e9
        inner[number, :, size - side + 1 :] = -1e9
    return 2 * inner - energy, energy.clamp(min=1.0)


def overlap(a: Thing, b: Thing) -> float:
    """Intersection over union of two squares."""
    wide = min(a.left + a.side, b.left + b.side) - max(a.left, b.left)
    high = min(a.top + a.side, b.top + b.side) - max(a.top, b.top)
    both = max(wide, 0) * max(high, 0)
    return both / (a.side**2 + b.side**2 - both)


class Score(NamedTuple):
    """What was asked of some scenes and is there; shares of 1."""

    objects: float  # asked kinds that are found anywhere
    all_objects: float  # pictures in which all of them are
    relation: float  # pictures of two or more things whose first two are found and stand as asked
    boxes: float  # mean IoU of each asked square and the found one that overlaps it most, 0 where there is none
    classes: float  # asked squares whose best found one is of the asked kind, overlapping by more than 0.3
    strange: float  # found things a picture that nobody asked for
    pictures: int

    def told(self) -> dict[str, Any]:
        """By name."""
        return self._asdict()


def score(pictures: Sequence[Tensor], scenes: Sequence[Scene]) -> Score:
    """Look for the things of each scene in its picture (3, S, S) in [-1, 1]."""
    there, whole, related, asked, ious, right, strange = 0, 0, [], 0, [], 0, 0
    for picture, scene in zip(pictures, scenes, strict=True):
        found = find(picture)
        kinds = {f.thing.kind: f.thing for f in reversed(found)}
        hits = [t for t in scene.things if t.kind in kinds]
        there, asked = there + len(hits), asked + len(scene.things)
        whole += len(hits) == len(scene.things)
        strange += sum(f.thing.kind not in {t.kind for t in scene.things} for f in found)
        if len(scene.things) > 1:
            related.append(stands(scene.facts()[0], kinds))
        for thing in scene.things:
            best = max(found, key=lambda f: overlap(f.thing, thing), default=None)
            ious.append(0.0 if best is None else overlap(best.thing, thing))
            right += best is not None and best.thing.kind == thing.kind and ious[-1] > 0.3
    return Score(
        there / asked,
        whole / len(scenes),
        sum(related) / max(len(related), 1),
        sum(ious) / asked,
        right / asked,
        strange / len(scenes),
        len(scenes),
    )


def stands(asked: Fact, kinds: dict[int, Thing]) -> bool:
    """Whether both things of a fact are there and stand as it says."""
    if asked.one not in kinds or asked.other not in kinds:
        return False
    return fact(kinds[asked.one], kinds[asked.other]) == asked


def segmented(picture: Tensor) -> Tensor:
    """The map (S, S) of a picture as the detector sees it: 0 the ground, k + 1 where the k-th of `NAMES` stands."""
    numbers = torch.zeros(picture.shape[-2:], dtype=torch.long)
    for one in find(picture):
        kind, left, top, side = one.thing
        cover = glyph(kind, side)[1][0] > 0.5
        part = numbers[top : top + side, left : left + side]
        part[cover & (part == 0)] = kind + 1
    return numbers


def foreground(pictures: Sequence[Tensor], maps: Sequence[Tensor]) -> float:
    """Mean over classes of the IoU of asked maps (S, S) and re-segmented pictures, the ground left out."""
    both, either = torch.zeros(len(NAMES) + 1), torch.zeros(len(NAMES) + 1)
    for picture, asked in zip(pictures, maps, strict=True):
        seen, wanted = segmented(picture), asked.long()
        for k in {*seen.flatten().tolist(), *wanted.flatten().tolist()}:
            both[k] += float(((seen == k) & (wanted == k)).sum())
            either[k] += float(((seen == k) | (wanted == k)).sum())
    present = either[1:] > 0
    return float((both[1:][present] / either[1:][present]).mean())


def of_part(part: ScenesPart, indices: Sequence[int]) -> tuple[list[Tensor], list[Scene]]:
    """Real pictures of a part, in [-1, 1], and their scenes."""
    return [part.image(k).float() / 127.5 - 1.0 for k in indices], [part.scene(k) for k in indices]
