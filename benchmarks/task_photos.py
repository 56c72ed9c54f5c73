"""Tasks on photographs, each beside what it must beat: classes, super-resolution, inpainting, maps, no condition at all.

    python benchmarks/task_photos.py upscale --runs runs --data flowers --perceptual squeezenet_perceptual.pt --kodak kodak
    python benchmarks/task_photos.py label   --runs runs --data flowers --features mobilenet_v2_features.pt

Small networks that measure or compare (a regression for super-resolution, a segmenter, a linear classifier) are trained
here on the same training pictures, with fixed seeds, and kept in `--out`.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from drawing import sampled
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import image, streams
from sfumato.data.base import Data, Part
from sfumato.data.degrade import DegradeConfig, shrunk
from sfumato.data.masks import MasksConfig
from sfumato.evaluation.frechet import frechet, kernel
from sfumato.evaluation.manifold import manifold
from sfumato.evaluation.reconstruction import psnr, ssim
from sfumato.features import network as networks
from sfumato.features.retrieval import neighbours
from sfumato.features.torchscript import ScriptConfig
from sfumato.model import LatentDiffusion
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.said import takes
from sfumato.tasks.upscale import magnification

Rows = dict[str, dict[str, float]]
SHOWN = 8


def opened(data: Path, size: int, part: str) -> Part:
    """A part of a folder of pictures."""
    return Data.model_validate({"kind": "folder", "path": str(data), "size": size}).open(part)


def shown(part: Part, count: int, seed: int = 0) -> tuple[list[int], Tensor]:
    """Indices of some pictures, the same every time, and the pictures (N, C, H, W) in [-1, 1]."""
    order = streams.generator(seed, "images of a task").permutation(len(part))[:count].tolist()
    return order, torch.stack([part.image(k) for k in order]).float() / 127.5 - 1.0


def fitted(
    net: nn.Module,
    asked: argparse.Namespace,
    part: Part,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    loss: Any,
    kind: str = "",
) -> nn.Module:
    """The network as it was trained on this part for as many images before, or trained with AdamW and a falling rate."""
    name, images = type(net).__name__.lower(), asked.images
    path = asked.out / f"{name}{kind}-{part.fingerprint[:12]}-{images}.pt"
    if path.is_file():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    steps, optimizer = images // 32, torch.optim.AdamW(net.parameters(), 1e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        given, wanted = batch(step)
        found = loss(net(given), wanted)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        plan.step()
        if step % 100 == 0:
            print(f"{name}: {step} of {steps}, loss {float(found.detach()):.4f}", flush=True)
    torch.save(net.state_dict(), path)
    return net.eval()


def draws(part: Part, seed: str, step: int, count: int = 32) -> list[int]:
    """Examples of one step of a small network's training."""
    return streams.generator(0, seed, step).integers(len(part), size=count).tolist()


def told(rows: Rows) -> str:
    """The rows in markdown."""
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for title, row in rows.items():
        lines.append(f"| {title} | " + " | ".join(f"{row[c]:.4g}" if c in row else "" for c in columns) + " |")
    return "\n".join(lines)


def sheet(rows: Sequence[Tensor], path: Path, columns: int = SHOWN) -> None:
    """Rows of pictures (N, C, H, W), the first of each: as many as all have."""
    columns = min([columns, *map(len, rows)])
    image.sheet(torch.cat([r[:columns] for r in rows]), columns).save(path)


# super-resolution


def facing(one: Tensor, other: Tensor, path: Path, columns: int = 16) -> None:
    """Rows of the one above rows of the other, in turns."""
    blank = torch.ones(-len(one) % columns, *one.shape[1:])
    rows = [torch.cat([several, blank]).split(columns) for several in (one, other)]
    image.sheet(torch.cat([row for pair in zip(*rows, strict=True) for row in pair]), columns).save(path)


class Regression(nn.Module):
    """A small residual network that predicts the mean: what minimises the squared error and blurs."""

    def __init__(self, factor: int, width: int = 48, blocks: int = 6) -> None:
        super().__init__()
        self.factor = factor
        self.inside = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.outside = nn.Conv2d(width, 3 * factor**2, 3, padding=1)

    def forward(self, small: Tensor) -> Tensor:
        x = self.inside(small)
        for block in self.blocks:
            x = x + block(x)
        return F.pixel_shuffle(self.outside(x), self.factor) + enlarged(small, self.factor)


def squares(picture: Tensor, side: int) -> Tensor:
    """(C, H, W) -> the squares (N, C, side, side) of a grid from its upper left corner, those that are whole."""
    cut = picture.unfold(1, side, side).unfold(2, side, side)
    return cut.permute(1, 2, 0, 3, 4).reshape(-1, picture.shape[0], side, side)


def enlarged(small: Tensor, factor: int) -> Tensor:
    """Bicubic."""
    return F.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False).clamp(-1, 1)


def reduced(whole: Tensor, factor: int) -> Tensor:
    """The small pictures (N, C, h, w) of 8 bits, as `data.degrade` makes them."""
    return image.to_uint8(shrunk(whole, (whole.shape[-2] // factor, whole.shape[-1] // factor))).float() / 127.5 - 1.0


def damaged(whole: Tensor, factor: int, seed: str, number: int) -> Tensor:
    """The small picture (C, h, w) of 8 bits as `data.degrade.how=blind` makes it: blur, noise and JPEG, by its number."""
    degrade = DegradeConfig(how="blind", factor=factor)
    small: Tensor = degrade(image.to_uint8(whole[None])[0], streams.generator(0, seed, number))
    return small.float() / 127.5 - 1.0


def upscale(asked: argparse.Namespace) -> Rows:
    """PSNR, SSIM and the perceptual distance of bicubic, a regression, the model and its codec's ceiling; of damaged small
    pictures with `--blind`."""
    name = (asked.models or ["photo-upscale"])[0]
    pipeline = Pipeline.load(asked.runs / name, device="cpu")  # where all that it is compared with is
    model, factor = pipeline.model, magnification(pipeline.model, takes(pipeline.model, "lowres", "super-resolution"))
    train, held = opened(asked.data, model.size, "train"), opened(asked.data, model.size, "held_out")
    look = ScriptConfig(network=asked.perceptual).build()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        numbers = draws(train, "regression", step)
        whole = torch.stack([train.image(k) for k in numbers]).float() / 127.5 - 1.0
        damages = range(step * len(whole), (step + 1) * len(whole))  # another one each time that a picture is shown
        small = (
            torch.stack(spoiled(whole, damages, "damage of the regression")) if asked.blind else reduced(whole, factor)
        )
        return small, whole

    def spoiled(wholes: Sequence[Tensor], numbers: Sequence[int], seed: str = "blind") -> list[Tensor]:
        return [damaged(w, factor, seed, k) for k, w in zip(numbers, wholes, strict=True)]

    net = fitted(Regression(factor), asked, train, batch, F.mse_loss, f"-x{factor}{'-blind' if asked.blind else ''}")
    judge = networks.opened(asked.features) if asked.features else None
    rows: Rows = {}

    def measure(title: str, wholes: Sequence[Tensor], several: Sequence[Tensor]) -> None:
        pairs = [(a[None], b[None]) for a, b in zip(wholes, several, strict=True)]
        with torch.no_grad():
            near = torch.cat([look(a, b) for a, b in pairs])
        again = torch.cat([psnr(reduced(a, factor), reduced(b, factor)) for a, b in pairs])
        values = {"PSNR": torch.cat([psnr(a, b) for a, b in pairs]), "SSIM": torch.cat([ssim(a, b) for a, b in pairs])}
        rows[title] = {n: float(v.mean()) for n, v in values.items()}
        rows[title] |= {"perceptual": float(near.mean()), "shrunk again, PSNR": float(again.mean())}
        if judge is not None:  # another network than a first stage or `decoded` may have been taught with
            parts = [torch.cat([squares(p, model.size) for p in some]) for some in (wholes, several)]
            apart = 1 - F.cosine_similarity(*(features(judge, p) for p in parts))
            rows[title]["features"] = float(apart.mean())
        print(title, rows[title], flush=True)

    def made(small: Tensor, steps: int, seed: int, **more: Any) -> Tensor:
        picture = image.to_pil(small[None])[0]
        return image.to_tensor(pipeline.upscale(picture=picture, steps=steps, seed=seed, **more)[0])

    def noisy(small: Tensor, number: int) -> Tensor:
        drawn = asked.noise * streams.normal(tuple(small.shape), 0, "noise of small pictures", [number])[0]
        return image.to_uint8((small + drawn)[None])[0].float() / 127.5 - 1.0

    def all_of(title: str, wholes: list[Tensor], steps: Sequence[int]) -> list[list[Tensor]]:
        plain = [reduced(w[None], factor)[0] for w in wholes]
        smalls = spoiled(wholes, range(len(wholes))) if asked.blind else plain
        smalls = [noisy(s, k) for k, s in enumerate(smalls)] if asked.noise else smalls
        with torch.no_grad():
            several = {
                "bicubic": [enlarged(s[None], factor)[0] for s in smalls],
                "regression": [net(s[None])[0].clamp(-1, 1) for s in smalls],
                "codec alone": [
                    model.codec.decode(model.codec.encode(w[None], pad=True), size=w.shape[-2:])[0] for w in wholes
                ],
            }
        for n in steps:
            several[f"model, {n} steps"] = [made(s, n, k) for k, s in enumerate(smalls)]
            for level in asked.levels:
                several[f"model, {n} steps, not corrected, level {level:g}"] = [
                    made(s, n, k, level=level, consistent=False) for k, s in enumerate(smalls)
                ]
        for name, pictures in several.items():
            measure(f"{title}: {name}", wholes, pictures)
        return [list(wholes), *several.values()]

    _, whole = shown(held, asked.count)
    columns = all_of("flowers", list(whole), asked.steps)
    sheet([torch.stack(c[:SHOWN]) for c in columns], asked.out / f"{'blind' if asked.blind else 'upscale'}.png")
    if asked.kodak:
        pictures = [image.to_tensor(image.read(p)) for p in sorted(asked.kodak.rglob("*.png"))][: asked.kodak_count]
        columns = all_of("Kodak", pictures, asked.steps)
        cut = [torch.stack([p[:, 128:384, 192:448] for p in c[:4]]) for c in columns]
        sheet(cut, asked.out / "upscale-kodak.png", 4)
    return rows


# inpainting


def inpaint(asked: argparse.Namespace) -> Rows:
    """The perceptual distance to the original of what fills the hole: the model, Telea's method, any model without training.

    Every hole has something around it, and what it hides is blackened before any method sees it: where all is hole Telea's
    method has nothing to draw inwards and hands back what it was given.
    """
    import cv2

    pipeline = Pipeline.load(
        asked.runs / (asked.models or ["photo-inpaint"])[0], device="cpu"
    )  # where the codec's own row and the judges are
    free = Pipeline.load(asked.runs / asked.free, device="cpu") if asked.free else None
    held = opened(asked.data, pipeline.model.size, "held_out")
    look = ScriptConfig(network=asked.perceptual).build()
    whole = shown(held, asked.count)[1]
    size = pipeline.model.size
    holes = [MasksConfig(all=0.0).mask(size, size, streams.generator(1, "holes", k)) for k in range(len(whole))]
    there = torch.stack(holes)[:, None]
    pictures, masks = image.to_pil(torch.where(there > 0, -1.0, whole)), image.to_pil(there * 2 - 1)
    several: dict[str, list[Tensor]] = {
        "Telea (OpenCV)": [
            image.to_tensor(cv2.inpaint(np.array(p), (h.numpy() * 255).astype(np.uint8), 3, cv2.INPAINT_TELEA))
            for p, h in zip(pictures, holes, strict=True)
        ]
    }
    with torch.no_grad():
        again = pipeline.model.codec.decode(pipeline.model.codec.encode(whole))
    several["the codec alone"] = list(torch.where(there > 0, again, whole))
    for steps in asked.steps:
        several[f"trained for it, {steps} steps"] = [
            image.to_tensor(pipeline.inpaint(picture=p, mask=m, seed=k, steps=steps)[0])
            for k, (p, m) in enumerate(zip(pictures, masks, strict=True))
        ]
    if free is not None:
        several[f"{asked.free}, not trained for it"] = [
            image.to_tensor(free.inpaint(picture=p, mask=m, seed=k, steps=asked.steps[-1], method="free")[0])
            for k, (p, m) in enumerate(zip(pictures, masks, strict=True))
        ]
    rows: Rows = {}
    telea: Tensor | None = None
    for title, made in several.items():
        filled = torch.stack(made)
        with torch.no_grad():
            near = torch.cat([look(a, b) for a, b in zip(whole.split(16), filled.split(16), strict=True)])
            about = torch.cat(
                [look(*(p[None, :, *boxed(h)] for p in pair)) for *pair, h in zip(whole, filled, holes, strict=True)]
            )
        known = there.expand_as(whole) == 0
        kept = bool((image.to_uint8(filled)[known] == image.to_uint8(whole)[known]).all())
        inside = [float((a - b).square()[:, h > 0].mean()) for a, b, h in zip(whole, filled, holes, strict=True)]
        rows[title] = {
            "perceptual": float(near.mean()), "± of the mean": float(near.std() / len(near) ** 0.5),
            "perceptual, the hole's box": float(about.mean()),
            "PSNR in the hole": float(np.mean([10 * np.log10(4 / max(e, 1e-9)) for e in inside])), "known pixels equal": float(kept),
        }  # fmt: skip
        telea = near if telea is None else telea
        gap = telea - near
        rows[title] |= {
            "under Telea's": float(gap.mean()),
            "± of it": float(gap.std() / len(gap) ** 0.5),
            "nearer in": float((gap > 0).sum()),
        }
        if asked.features:  # another network than a first stage or `decoded` may have been taught with
            net = networks.opened(asked.features)
            apart = 1 - F.cosine_similarity(features(net, whole), features(net, filled))
            rows[title] |= {"features": float(apart.mean()), "± of their mean": float(apart.std() / len(apart) ** 0.5)}
        print(title, rows[title], flush=True)
    gray = torch.where(there > 0, 0.0, whole)
    sheet([whole, gray, *(torch.stack(v[:SHOWN]) for v in several.values())], asked.out / "inpaint.png")
    return rows


def boxed(hole: Tensor, least: int = 32) -> tuple[slice, slice]:
    """The rows and columns of the box about a hole (H, W), so many pixels a side at the least."""

    def span(there: Tensor) -> slice:
        first, last = int(there.nonzero().min()), int(there.nonzero().max()) + 1
        begin = max(min(first, len(there) - least), 0)
        return slice(begin, max(last, begin + least))

    return span((hole > 0).any(1)), span((hole > 0).any(0))


# classes and no condition


def features(net: networks.FeatureNetwork, pictures: Tensor) -> Tensor:
    """Pooled features (N, D)."""
    with torch.no_grad():
        return torch.cat([net(list(part))["pooled"] for part in pictures.split(64)])


def distances(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Fréchet and kernel distance, precision and recall of features."""
    found = kernel(real, fake)
    shape = manifold(real, fake)._asdict()
    return {"Fréchet": frechet(real, fake), "kernel": found.value, "±": found.spread, "precision": shape["precision"], "recall": shape["recall"]}  # fmt: skip


def label(asked: argparse.Namespace) -> Rows:
    """By class, `photo-label`."""
    return told_apart(asked, "label")


def text(asked: argparse.Namespace) -> Rows:
    """By words, `photo-text`: each caption is a class of its own."""
    return told_apart(asked, "caption")


def answers(part: Part, field: str) -> list[Any]:
    """What is said of every picture, its first caption where there are several."""
    found = [part.fields(k)[field] for k in range(len(part))]
    return [one[0] if field == "caption" else one for one in found]


def linear(seen: Tensor, classes: Tensor, count: int) -> Callable[[Tensor, Tensor], float]:
    """A linear classifier of features, trained on these (N, D). What it gives is the share of features (M, D) in which it sees
    the class that is named; those of no class that it knows (-1) do not count."""
    torch.manual_seed(0)
    judge = nn.Linear(seen.shape[1], count)
    mean, std = seen.mean(0), seen.std(0) + 1e-3
    optimizer = torch.optim.AdamW(judge.parameters(), 1e-3, weight_decay=1.0)
    for _ in range(400):
        loss = F.cross_entropy(judge((seen - mean) / std), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def agreement(found: Tensor, labels: Tensor) -> float:
        known = labels >= 0
        return float((judge((found[known] - mean) / std).argmax(1) == labels[known]).float().mean())

    return agreement


class Apart(NamedTuple):
    """Real pictures that the judge does not learn from."""

    title: str
    pictures: Tensor
    classes: Tensor  # (N,), -1 where training has none like it
    learned: Tensor  # (M,) bool: the training pictures that are left to learn from, and to measure against


def kept_apart(held: Part, field: str, number: dict[Any, int], real: Tensor, classes: Tensor, count: int) -> Apart:
    """At most `count` held-out pictures; where training knows the words of none, of a tenth of its own pictures, which are
    then kept from the judge and from what distances are measured against."""
    learned, said = torch.ones(len(real), dtype=torch.bool), answers(held, field)
    places, pictures = shown(held, count)
    wanted = torch.tensor([number.get(said[k], -1) for k in places])
    if bool((wanted >= 0).any()):
        return Apart("real, held out", pictures, wanted, learned)
    learned[::10] = False
    left = (~learned).nonzero().flatten()
    chosen = left[streams.generator(0, "images of a task").permutation(len(left))[:count].tolist()]
    return Apart("real, that the judge was not shown", real[chosen], classes[chosen], learned)


def told_apart(asked: argparse.Namespace, field: str) -> Rows:
    """Distances and a classifier's agreement against guidance, every row of as many pictures; the classifier is linear on the
    features of real pictures, the same that distances are measured against."""
    name = {"label": "label", "caption": "text"}[field]
    model = LatentDiffusion.load(asked.runs / f"photo-{name}/model").for_sampling()
    net = networks.opened(asked.features)
    train, held = opened(asked.data, model.size, "train"), opened(asked.data, model.size, "held_out")
    real = torch.stack([train.image(k) for k in range(len(train))]).float() / 127.5 - 1.0
    words = answers(train, field)
    known = list(train.labels) if field == "label" else sorted(set(words))
    number = {value: k for k, value in enumerate(range(len(known)) if field == "label" else known)}
    classes = torch.tensor([number[one] for one in words])
    apart = kept_apart(held, field, number, real, classes, asked.count)
    seen = features(net, real[apart.learned])
    agreement = linear(seen, classes[apart.learned], len(known))

    def told_of(made: Tensor, wanted: Tensor) -> dict[str, float]:
        found = features(net, made)
        return {**distances(seen, found), "agreement": agreement(found, wanted)}

    count = len(apart.pictures)  # of all rows: a Fréchet distance is larger the fewer pictures it is of
    order = streams.generator(0, "classes").permutation(len(classes)).tolist()
    asked_for = classes[[order[k % len(order)] for k in range(count)]]
    said = {field: [words[order[k % len(order)]] for k in range(count)]}
    rebuilt = torch.cat([model.pictures(model.codec.encode(b)) for b in apart.pictures.split(64)])
    rows: Rows = {
        apart.title: told_of(apart.pictures, apart.classes),
        "reconstructed": told_of(rebuilt, apart.classes),
    }
    pictures = {}
    for scale in asked.guidance:
        pictures[scale] = sampled(model, said, count, asked.steps[-1], scale, 0)
        rows[f"guidance {scale:g}"] = told_of(pictures[scale], asked_for)
        print(scale, rows[f"guidance {scale:g}"], flush=True)
    best = pictures[min(asked.guidance, key=lambda s: rows[f"guidance {s:g}"]["Fréchet"])]
    if field == "label":
        sheet([best[asked_for == c] for c in asked_for.unique()], asked.out / f"{name}.png")
    else:
        firsts = [asked_for.tolist().index(c) for c in sorted(set(asked_for.tolist()))]
        print("\n".join(f"{k}: {said[field][place]}" for k, place in enumerate(firsts)))
        facing(real[[words.index(said[field][place]) for place in firsts]], best[firsts], asked.out / f"{name}.png")
    sheet([pictures[s] for s in asked.guidance], asked.out / f"{name}-guidance.png")
    return rows


def reference(asked: argparse.Namespace) -> Rows:
    """Pictures like a held-out one, `photo-reference`: whether that one is nearest to what was made of it, among as many,
    by the network that told of it and by the perceptual one, which did not. A model that reads neighbours is told those of
    the given picture among the training pictures, and the first of them is a row of its own: what a search alone gives."""
    model = LatentDiffusion.load(asked.runs / (asked.models or ["photo-reference"])[0] / "model").for_sampling()
    net, look = networks.opened(asked.features), ScriptConfig(network=asked.perceptual).build()
    train, held = opened(asked.data, model.size, "train"), opened(asked.data, model.size, "held_out")
    seen, given = features(net, shown(train, 4000)[1]), shown(held, asked.count)[1]
    field = next(iter(model.conditions.asked("reference")))
    reader, own = model.conditions.reader(field), features(net, given)
    said, found_first = {field: list(features(reader.opened(), given))}, list[Tensor]()
    if field == "near":
        _, every = shown(train, len(train))
        bank = features(reader.opened(), every)
        _, where = neighbours(torch.stack(said[field]), bank, reader.usual)
        said, found_first = {field: list(bank[where])}, [every[where[:, 0]]]

    def told_of(made: Tensor) -> dict[str, float]:
        found = features(net, made)
        near = F.normalize(found, dim=1) @ F.normalize(own, dim=1).T
        with torch.no_grad():
            apart = torch.stack([look(one.expand_as(given), given) for one in made])
        count = torch.arange(len(made))
        return {
            **distances(seen, found), "cosine to its own": float(near.diagonal().mean()),
            "to others": float((near.sum() - near.trace()) / (near.numel() - len(near))),
            "own is nearest": float((near.argmax(1) == count).float().mean()),
            "by the perceptual distance": float((apart.argmin(1) == count).float().mean()),
        }  # fmt: skip

    rows: Rows = {"real, held out": told_of(given)}
    rows["reconstructed"] = told_of(torch.cat([model.pictures(model.codec.encode(b)) for b in given.split(64)]))
    for one in found_first:
        rows["the nearest training picture"] = told_of(one)
    several = [given, *found_first]
    for scale in asked.guidance:
        several.append(sampled(model, said, len(given), asked.steps[-1], scale, 0))
        rows[f"guidance {scale:g}"] = told_of(several[-1])
        print(scale, rows[f"guidance {scale:g}"], flush=True)
    sheet(several, asked.out / f"{field}.png", 2 * SHOWN)
    return rows


def unconditional(asked: argparse.Namespace) -> Rows:
    """Distances of models without conditions, named by `--models`, at equal training compute."""
    net = networks.opened(asked.features)
    rows: Rows = {}
    sheets = []
    for name in asked.models:
        model = LatentDiffusion.load(asked.runs / name / "model").for_sampling()
        if not rows:
            train, held = opened(asked.data, model.size, "train"), opened(asked.data, model.size, "held_out")
            seen = features(net, shown(train, 4000)[1])
            other = shown(held, asked.count)[1]
            rows["real, held out"] = distances(seen, features(net, other))
            again = torch.cat([model.pictures(model.codec.encode(b)) for b in other.split(64)])
            rows["reconstructed"] = distances(seen, features(net, again))
            sheets.append(other)
        some = sampled(model, {}, len(other), asked.steps[-1], 1.0, 0)
        rows[name] = distances(seen, features(net, some))
        sheets.append(some)
        print(name, rows[name], flush=True)
    for name, some in zip(["real", *asked.models], sheets, strict=True):
        image.sheet(some[:64], 16).save(asked.out / f"unconditional-{name}.png")
    return rows


# maps


class Segmenter(nn.Module):
    """A small U-Net of three levels: pictures (B, 3, H, W) -> logits (B, K, H, W)."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()

        def block(into: int, out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(into, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1), nn.SiLU())  # fmt: skip

        self.down = nn.ModuleList([block(3, width), block(width, 2 * width), block(2 * width, 4 * width)])
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down[0](x)
        b = self.down[1](F.avg_pool2d(a, 2))
        c = self.down[2](F.avg_pool2d(b, 2))
        b = self.up[0](torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        a = self.up[1](torch.cat([F.interpolate(b, scale_factor=2), a], 1))
        found: Tensor = self.out(a)
        return found


def flat(numbers: Any, size: int) -> Tensor:
    """A map (H, W), which may have more places than its picture pixels, one a pixel: (size, size) int64."""
    whole = torch.from_numpy(numbers)[None, None].float()
    return F.interpolate(whole, (size, size), mode="nearest-exact")[0, 0].long()


def semantic(asked: argparse.Namespace) -> Rows:
    """Fréchet distance, and how far a segmenter of real pictures sees the asked map in what was made of it."""
    model = LatentDiffusion.load(asked.runs / "photo-semantic/model").for_sampling()
    net = networks.opened(asked.features)
    train, held = opened(asked.data, model.size, "train"), opened(asked.data, model.size, "held_out")
    names = train.class_names["map"]

    def pair(part: Part, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        pictures = torch.stack([part.image(k) for k in indices]).float() / 127.5 - 1.0
        return pictures, torch.stack([flat(part.field(k, "map"), part.size) for k in indices])

    judge = fitted(
        Segmenter(len(names)), asked, train,
        lambda step: pair(train, draws(train, "segmenter", step)), F.cross_entropy,
    )  # fmt: skip

    def agreement(pictures: Tensor, maps: Tensor) -> dict[str, float]:
        with torch.no_grad():
            seen = torch.cat([judge(part).argmax(1) for part in pictures.split(64)])
        present = [k for k in range(len(names)) if bool((maps == k).any())]
        ious = [float(((seen == k) & (maps == k)).sum() / ((seen == k) | (maps == k)).sum()) for k in present]
        return {"pixels that agree": float((seen == maps).float().mean()), "mIoU": sum(ious) / len(ious)}

    order = streams.generator(0, "images of a task").permutation(len(held))[: asked.count].tolist()
    pictures, maps = pair(held, order)
    seen = features(net, shown(train, 4000)[1])
    again = torch.cat([model.pictures(model.codec.encode(b)) for b in pictures.split(64)])
    said = {"map": [held.field(k, "map") for k in order]}
    rows: Rows = {
        "real": {**distances(seen, features(net, pictures)), **agreement(pictures, maps)},
        "reconstructed": {**distances(seen, features(net, again)), **agreement(again, maps)},
    }
    shows = [pictures]
    for scale in asked.guidance:
        some = sampled(model, said, len(order), asked.steps[-1], scale, 0)
        rows[f"guidance {scale:g}"] = {**distances(seen, features(net, some)), **agreement(some, maps)}
        shows.append(some)
        print(scale, rows[f"guidance {scale:g}"], flush=True)
    rows["chance: another map"] = agreement(shows[1], maps.roll(1, 0))
    palette = torch.tensor(json.loads((asked.data / "classes.json").read_text())["palette"]).float() / 127.5 - 1
    coloured = palette[maps].permute(0, 3, 1, 2)
    columns = min(12, len(order))
    whole = image.sheet(torch.cat([r[:columns] for r in (coloured, *shows)]), columns)
    whole.resize((2 * whole.width, 2 * whole.height), Image.Resampling.NEAREST).save(asked.out / "semantic.png")
    return rows


TASKS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "upscale": upscale, "inpaint": inpaint, "label": label, "text": text, "reference": reference,
    "unconditional": unconditional, "semantic": semantic,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/task-photos"))
    parser.add_argument("--perceptual", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--kodak", type=Path)
    parser.add_argument("--kodak-count", type=int, default=24)
    parser.add_argument("--free", help="run whose model fills holes without training, in the last of the steps")
    parser.add_argument("--count", type=int, default=128, help="pictures that are measured, of those held out")
    parser.add_argument("--steps", type=int, nargs="*", default=[25])
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0, 1.5, 2.0, 3.0, 5.0])
    parser.add_argument("--images", type=int, default=24_000, help="images that small networks are trained on")
    parser.add_argument("--blind", action="store_true", help="upscale: from damaged small pictures")
    parser.add_argument(
        "--levels",
        type=float,
        nargs="*",
        default=[],
        help="upscale: noise added to the small pictures and told, not corrected",
    )
    parser.add_argument(
        "--noise", type=float, default=0.0, help="upscale: noise that small pictures come with, of [-1, 1]"
    )
    parser.add_argument("--models", nargs="*", default=[])
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = TASKS[asked.task](asked)
    (asked.out / f"{asked.task}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    print("\n" + told(rows))


if __name__ == "__main__":
    main()
