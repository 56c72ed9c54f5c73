"""`compression`: which factor f is best (Rombach et al., 2022, section 4.1, figures 6 and 7)?

First stages of every factor and one denoiser on each, of the same size and trained for the same time, or FLOPs, a first
stage's apart, so that a small f sees few images and a large one many. The Fréchet distance along training, by its FLOPs as
in figure 6, and against pictures a second in sampling. Small maps do fewer FLOPs a second, so that equal time and equal
FLOPs are two questions: `equal` says which is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sfumato import files
from sfumato.autoencoder.codec import Codec
from sfumato.model import LatentDiffusion
from sfumato.studies import recipes
from sfumato.studies.desk import Desk
from sfumato.studies.measure import Row, cell, distance, generated, real, reals, rebuilt, short
from sfumato.studies.result import Figure, Result, Table, plot
from sfumato.studies.verdict import HOLDS, Claim, Pair, Spread, judged
from sfumato.training import posthoc
from sfumato.training.describe import evaluation
from sfumato.training.recipe import DiffusionRecipe
from sfumato.training.run import denoising

FACTORS = (1, 2, 4, 8, 16, 32)
GOOD = (4, 8, 16)  # the paper's band
PAPER = 256  # pixels of its pictures
FIRST_SHARE, MEASURING = 0.25, 0.3  # of the hours: for first stages, and for sampling; the rest trains denoisers
POINTS = 5  # of the curve along training
STEPS = (5, 10, 25, 50)  # of the sampling-speed curve
Equal = Literal["time", "flops"]
WORDS: dict[str, str] = {"time": "time", "flops": "FLOPs"}


@dataclass(frozen=True)
class Trained:
    """A denoiser on a first stage of factor f, and what it took."""

    kind: str
    factor: int
    first: Path
    model: Path
    images: int
    flops: float  # of training one image: forward and backward

    @property
    def name(self) -> str:
        """«LDM-8, kl»."""
        return "LDM-1" if self.factor == 1 else f"LDM-{self.factor}, {self.kind}"

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.model.parent


def study(
    desk: Desk, factors: Sequence[int] = FACTORS, kinds: Sequence[str] = ("kl", "vq"), equal: Equal = "time"
) -> Result:
    """Train, measure, judge. Factors that do not divide the pictures' size are left out."""
    gone = [f for f in factors if desk.train.size % f]
    factors = [f for f in factors if f not in gone]
    if not {*GOOD} & {*factors}:
        raise ValueError(
            f"this study asks whether f = {GOOD[0]} to {GOOD[-1]} are the good factors, and none of them divides pictures of "
            f"{desk.train.size} pixels; give --size {max(round(desk.train.size / 16), 1) * 16}"
        )
    several = trained(desk, factors, kinds, equal=equal)
    rows = {t.name: generated(desk, f"compression-{slug(t)}", t.model) for t in several}
    curves = {t.name: along(desk, t, desk.images, desk.seeds[:1])[0] for t in several}
    speeds = {t.name: stepped(desk, t) for t in several}
    result = Result(
        "compression",
        "How much to compress",
        f"First stages of f = {', '.join(map(str, factors))} and a denoiser of the same size on each, the denoisers trained "
        f"for equal {WORDS[equal]} on {desk.name} at {desk.train.size} pixels. Few images fit into it where latents are large. The "
        "time of first stages is not in it: one serves all denoisers that are trained on it. The paper's pictures have 256 "
        f"pixels, so that its f = 32 leaves {PAPER // 32} x {PAPER // 32} places; here "
        + ", ".join(f"f = {f} leaves {desk.train.size // f} x {desk.train.size // f}" for f in factors if f > 1)
        + f".{' Left out, for they do not divide the size: f = ' + ', '.join(map(str, gone)) + '.' if gone else ''}",
        protocol=desk.protocol(equal=WORDS[equal], curves="the first sampling seed alone"),
        claims=claims(several, {t.name: rows[t.name][distance(desk)] for t in several}, equal),
    )
    result.tables.append(table(desk, several, rows, equal))
    folder = desk.folder
    result.figures += [
        Figure(
            plot(folder / "training.png", [(n, [p[0] for p in c], [p[1] for p in c]) for n, c in curves.items()],
                 "training compute (PFLOP)", distance(desk), log=(True, True)),
            "Fréchet distance along training (figure 6 of the paper); the points before the last are of a rate that was still high",
        ),
        Figure(
            plot(folder / "sampling.png", [(n, [p[0] for p in c], [p[1] for p in c]) for n, c in speeds.items()],
                 f"pictures a second ({', '.join(map(str, STEPS))} steps)", distance(desk), log=(True, True)),
            "Fréchet distance against sampling speed (figure 7 of the paper)",
        ),
        Figure(real(desk).sheet, "Held-out pictures"),
        *(Figure(rows[t.name].sheet, f"{t.name}: {t.images:,} images seen") for t in several),
        *(Figure(desk.folder / "sheets" / f"first-{slug(t)}.png", f"Held-out pictures, as the first stage of {t.name} rebuilds them")
          for t in several if t.factor > 1),
    ]  # fmt: skip
    return result


def slug(t: Trained) -> str:
    """A name for files."""
    return f"{'pixels' if t.factor == 1 else t.kind}-f{t.factor}"


def trained(
    desk: Desk, factors: Sequence[int], kinds: Sequence[str], first: float = FIRST_SHARE, measuring: float = MEASURING,
    equal: Equal = "time",
) -> list[Trained]:  # fmt: skip
    """First stages and denoisers of all factors, each denoiser on as many images as equal seconds, or FLOPs, give."""
    wanted = [(k, f) for f in factors for k in (kinds if f > 1 else kinds[:1])]
    coded = [(k, f) for k, f in wanted if f > 1]
    stages = {(k, f): first_stage(desk, k, f, first * desk.hours / max(len(coded), 1)) for k, f in coded}
    stages |= {(k, 1): desk.pixels() for k, f in wanted if f == 1}
    shares = {pair: 1.0 if equal == "time" else slowness(desk, pair, stages[pair]) for pair in wanted}
    each = desk.hours * (1 - first - measuring) / sum(shares.values())
    return [one(desk, pair, stages[pair], each * shares[pair]) for pair in wanted]


def slowness(desk: Desk, pair: tuple[str, int], stage: Path) -> float:
    """Seconds a FLOP of a denoiser's training."""
    name, fields = denoiser(desk, *pair, stage)
    return 1 / (flops(desk, name, fields) * desk.rate(name, fields))


def first_stage(desk: Desk, kind: str, factor: int, hours: float) -> Path:
    """The model folder of a first stage."""
    name = f"first-{kind}-f{factor}"
    fields = recipes.first(kind, factor)
    return desk.trained(name, fields, desk.budget(name, fields, hours))


def denoiser(desk: Desk, kind: str, factor: int, stage: Path) -> tuple[str, dict[str, Any]]:
    """The name of the denoiser on a first stage, and its recipe."""
    more = recipes.fitting(desk.train.size // factor)
    return f"denoiser-{kind}-f{factor}", recipes.denoiser(stage, recipes.by_class() if desk.labelled else None, **more)


def one(desk: Desk, pair: tuple[str, int], stage: Path, hours: float) -> Trained:
    """A denoiser trained for so long, its averages kept along the way."""
    kind, factor = pair
    name, fields = denoiser(desk, *pair, stage)
    images, cost = desk.budget(name, fields, hours), flops(desk, name, fields)
    fields = {**fields, "training": {**fields["training"], "snapshots": max(images // POINTS, 1)}}
    return Trained(kind, factor, stage, desk.trained(name, fields, images), images, cost)


def flops(desk: Desk, name: str, fields: dict[str, Any]) -> float:
    """FLOPs of one image in training: three evaluations of the denoiser (forward, and twice that back)."""

    def count() -> float:
        recipe = desk.recipe(name, fields, 4)
        assert isinstance(recipe, DiffusionRecipe)
        return 3.0 * evaluation(denoising(recipe, desk.run(name), desk.device).model)

    found: float = desk.once(f"flops-attended-{name}", [fields["backbone"], desk.train.size], count)
    return found


def along(desk: Desk, t: Trained, images: int, seeds: Sequence[int]) -> list[list[tuple[float, float]]]:
    """(PFLOP, Fréchet distance) of the averages along training, a curve for each sampling seed."""
    found: list[list[tuple[float, float]]] = [[] for _ in seeds]
    for snapshot in posthoc.found(t.run):
        folder = rebuilt_at(t, snapshot)
        for seed, curve in zip(seeds, found, strict=True):
            name = f"along-{slug(t)}-{snapshot.images}-{images}-{seed}"
            row = generated(desk, name, folder, images=images, seeds=[seed])
            curve.append((snapshot.images * t.flops / 1e15, row[distance(desk)].value))
    return found


@torch.no_grad()
def rebuilt_at(t: Trained, snapshot: posthoc.Snapshot) -> Path:
    """The model folder of the average as it was at a snapshot."""
    folder = t.run / "along" / f"{snapshot.images:09d}"
    if not (folder / "model.yaml").is_file():
        _, model, parameters = posthoc.opened(t.run)
        assert isinstance(model, LatentDiffusion)
        tensors = files.load_tensors(snapshot.file)
        for k, parameter in enumerate(parameters):
            parameter.copy_(tensors[str(k)])
        model.save(folder)
    return folder


def stepped(desk: Desk, t: Trained) -> list[tuple[float, float]]:
    """(pictures a second, Fréchet distance) for several numbers of steps, one sampling seed each."""
    rows = [generated(desk, f"steps-{slug(t)}-{n}", t.model, steps=n, seeds=desk.seeds[:1]) for n in STEPS]
    return [(row.rate.value, row[distance(desk)].value) for row in rows]


def table(desk: Desk, several: Sequence[Trained], rows: Mapping[str, Row], equal: Equal) -> Table:
    """What each factor came to."""
    name, kernel = distance(desk), short(desk, "KID")
    lines = [[title, *[""] * 6, cell(row, name), cell(row, kernel), "", ""] for title, row in reals(desk).items()]
    for t in several:
        row, stage = rows[t.name], rebuilt(desk, f"first-{slug(t)}", t.first)
        lines.append([
            t.name, shape(desk, t), f"{t.images:,}", f"{t.images // recipes.BATCH:,}",
            f"{desk.seconds(t.run.name) / 60:.1f}", petaflops(t.images * t.flops), row.rate.told(),
            row[name].told(), row[kernel].told(), Spread(stage[name], 0.0, 1).told(),
            "exact" if t.factor == 1 else f"{stage['psnr']:.1f} ± {stage['psnr_error']:.1f} dB",
        ])  # fmt: skip
    head = [
        "", "latent", "images seen", "steps", "minutes", "PFLOP", "sampled pictures/s", name, kernel,
        f"{name} of rebuilt training pictures", "PSNR of held-out ones",
    ]  # fmt: skip
    return Table(f"At equal {WORDS[equal]} of the denoisers' training", head, lines)


def petaflops(flops: float) -> str:
    """«0.0188», «1,234.50»: small ones to three figures."""
    found = flops / 1e15
    return f"{found:,.2f}" if found >= 1 else f"{found:.3g}"


def shape(desk: Desk, t: Trained) -> str:
    """«8 x 8 x 4», its latents' sides and channels."""
    side, channels = desk.train.size // t.factor, Codec.load(t.first).channels
    return f"{side} x {side} x {channels}"


def claims(several: Sequence[Trained], found: Mapping[str, Spread], equal: Equal = "time") -> list[Claim]:
    """The paper's sentences beside what was measured, for each kind of first stage."""
    made = []
    for kind in dict.fromkeys(t.kind for t in several if t.factor > 1):
        by = {t.factor: found[t.name] for t in several if t.factor == 1 or t.kind == kind}
        made += [
            _claim(
                f"{kind.upper()}: the best factor lies between 4 and 16: better than 1, 2 and 32",
                [min((f for f in GOOD if f in by), key=lambda f: by[f].value)],
                (1, 2, 32),
                by,
            ),
            _claim(
                f"{kind.upper()}: f = 1 and 2 are too slow: after equal {WORDS[equal]} of the denoiser f = 4 to 16 are better",
                GOOD,
                (1, 2),
                by,
            ),
            _claim(f"{kind.upper()}: f = 32 loses too much: f = 4 to 16 are better", GOOD, (32,), by),
        ]
    return [claim for claim in made if claim is not None] + easier(several, found)


def easier(several: Sequence[Trained], found: Mapping[str, Spread]) -> list[Claim]:
    """Whether VQ latents make better pictures than KL ones (section 4.1), where there are both."""
    by = {(t.kind, t.factor): found[t.name] for t in several if t.factor > 1}
    shared = sorted({f for kind, f in by if ("kl", f) in by and ("vq", f) in by})
    if not shared:
        return []
    told = ", ".join(f"f = {f}: {by['vq', f].told()} against {by['kl', f].told()}" for f in shared)
    pairs = [Pair(by["vq", f], by["kl", f]) for f in shared]
    return [judged("VQ latents make better pictures than KL ones of the same factor", told, *pairs)]


def _claim(text: str, good: Sequence[int], bad: Sequence[int], by: Mapping[int, Spread]) -> Claim | None:
    here, there = [f for f in good if f in by], [f for f in bad if f in by]
    if not here or not there:
        return None
    pairs = [Pair(by[a], by[b]) for a in here for b in there]
    missing = [f for f in sorted({*good, *bad}) if f not in by]
    if missing:
        verb = (
            "does not divide these pictures, and is" if len(missing) == 1 else "do not divide these pictures, and are"
        )
        text += f"; f = {', '.join(map(str, missing))} {verb} not compared"
    told = ", ".join(f"f = {f}: {by[f].told()}" for f in sorted({*here, *there}))
    beaten = sum(p.outcome == HOLDS for p in pairs)
    return judged(text, f"{told}; {beaten} of {len(pairs)} pairs as claimed", *pairs)
