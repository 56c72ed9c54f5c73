"""`limits`: past what the paper names as its limits (section 5): slow sampling, and lost pixel precision.

Few steps: two ways to teach the same model to sample in one to four evaluations, beside it at 25, and beside the GAN.
Precision: latents of 4, 16 and 32 channels at equal budget, reconstruction and generation, with and without a first stage
whose latents are taught to turn and shrink with the picture (EQ-VAE, Kouzelis et al., 2025); and super-resolution whose
pictures, made small again, are what was given.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from sfumato import files, image
from sfumato.data.base import Data
from sfumato.data.degrade import shrunk
from sfumato.evaluation.reconstruction import psnr
from sfumato.studies import families, recipes
from sfumato.studies.desk import Desk
from sfumato.studies.measure import (
    VERSIONS,
    Row,
    distance,
    drawn,
    floor,
    generated,
    real,
    reals,
    rebuilt,
    short,
    spread,
)
from sfumato.studies.result import Figure, Result, Table, plot
from sfumato.studies.verdict import FAILS, HOLDS, Claim, Pair, Spread, judged
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.upscale import corrected

FEW = (1, 2, 4)
WAYS = ("consistency", "shortcut")
CHANNELS = (4, 16, 32)
EQUIVARIANCE = 0.25  # weight of the loss
TEACHER, EACH, STAGES, DENOISERS, UPSCALE = (
    0.10,
    0.08,
    0.16,
    0.17,
    0.06,
)  # of the hours; the GAN has a student's, its teacher's and their first stage's together
GUIDANCE = 2.0  # of the teacher, baked into its students
WITHIN = 45.0  # dB
FACTOR = 4  # of super-resolution
DEEP = 8  # of the first stages whose channels are compared
# 16 places a side, which make better pictures, leave a student few steps in its minutes; not tried here
LATENTS = {"places": 8, "channels": 4}
FIFTH = 0.2  # of what the teacher's distance lies above that of as many real pictures


def study(desk: Desk) -> Result:
    """All three parts."""
    desk.drawable(recipes.gan())
    desk.dividing(DEEP)
    result = Result(
        "limits", "Past the paper's limits",
        f"Few-step sampling, channels of the latents, and exact super-resolution on {desk.name} at {desk.train.size} pixels.",
        protocol=desk.protocol(**{"guidance": {"few steps": guided(desk), "channels": 1.0}, "steps of the teacher": 25, "sampler of few steps": "the student's own", "precision of few steps": "float32"}),
    )  # fmt: skip
    few(desk, result)
    channels(desk, result)
    exact(desk, result)
    return result


# few steps


def student(teacher: Path, how: str, guidance: float) -> dict[str, Any]:
    """The recipe of a distillation."""
    return {
        "stage": "distillation", "teacher": str(teacher), "guidance": guidance, "steps": 32, "sample": 4, "how": how,
        "training": {"batch": 128, "rate": 2.0e-3, "warmup": 0.02, "flip": 0.5},
    }  # fmt: skip


def few(desk: Desk, result: Result) -> None:
    """Adds one to four steps beside 25, and the GAN."""
    stage = desk.latents(shared(desk), **LATENTS)
    cond = recipes.by_class() if desk.labelled else None
    fields = recipes.denoiser(stage, cond)
    teacher = desk.trained("teacher", fields, desk.budget("teacher", fields, TEACHER * desk.hours))
    scale = guided(desk)
    rows: dict[str, Row] = {"teacher, 25 steps": few_rows(desk, "few-teacher", teacher, 25, guidance=scale)}
    for n in FEW:  # on the better of two grids: students have their own
        grids = [few_rows(desk, f"few-teacher-{g}", teacher, n, guidance=scale, grid=g) for g in ("karras", "even")]
        rows[f"teacher, {n}"] = min(grids, key=lambda row: row[distance(desk)].value)
    for how in WAYS:
        taught = student(teacher, how, scale)
        folder = desk.trained(f"few-{how}", taught, desk.budget(f"few-{how}", taught, EACH * desk.hours))
        for n in FEW:
            rows[f"{how}, {n}"] = few_rows(desk, f"few-{how}", folder, n)
    gan, time = recipes.gan(), shared(desk) + (TEACHER + EACH) * desk.hours
    rows[families.GAN] = few_rows(desk, "gan", desk.trained("gan", gan, desk.budget("gan", gan, time)), 1)
    name, kernel = distance(desk), short(desk, "KID")
    lines = [[title, row[name].told(), row[kernel].told(), ""] for title, row in reals(desk).items()]
    lines += [[title, row[name].told(), row[kernel].told(), row.rate.told()] for title, row in rows.items()]
    result.tables.append(Table("Few steps", ["", name, kernel, "pictures a second, decoded"], lines))
    curves = [
        (how, list(FEW), [rows[f"{how}, {n}"][name].value for n in FEW]) for how in ("teacher", *WAYS)
    ] + [(f"{one}, any steps" if one == families.GAN else one, [FEW[0], FEW[-1]], 2 * [rows[one][name].value])
         for one in ("teacher, 25 steps", families.GAN)]  # fmt: skip
    path = plot(desk.folder / "steps.png", curves, "steps", name, log=(True, True))
    result.figures.append(Figure(path, f"{name} against steps"))
    result.figures.append(Figure(real(desk).sheet, "Held-out pictures"))
    result.figures += [Figure(row.sheet, title) for title, row in rows.items()]
    result.claims += quick(rows, name, floor(desk)[name].value)


def few_rows(desk: Desk, name: str, folder: Path, steps: int, **more: Any) -> Row:
    """A model in so many steps, in float32 as the GAN is."""
    return generated(desk, f"{name}-{steps}", folder, steps=steps, dtype=torch.float32, **more)


def guided(desk: Desk) -> float:
    """The teacher's guidance."""
    return GUIDANCE if desk.labelled else 1.0


def shared(desk: Desk) -> float:
    """Hours of the shared first stage."""
    return STAGES * desk.hours / (2 * len(CHANNELS))


def quick(rows: dict[str, Row], name: str, least: float = 0.0) -> list[Claim]:
    """Whether slow sampling is a limit still; `least` is the distance of as many real pictures."""
    best = {n: min(WAYS, key=lambda how: rows[f"{how}, {n}"][name].value) for n in FEW}
    slow, gan = rows["teacher, 25 steps"], rows[families.GAN]
    four, once = rows[f"{best[4]}, 4"], rows[f"{best[1]}, 1"]
    return [
        judged("Four steps of a student are within a fifth of the teacher's 25, above as many real pictures",
               f"{best[4]}: {four[name].told()} against {slow[name].told()}, as many real pictures {Spread(least, 0.0, 1).told()}; "
               f"{four.rate.value / slow.rate.value:.1f} times the pictures a second",
               Pair(four[name], _fifth_over(slow[name], least))),
        judged("One step of a student is better than the GAN",
               f"{best[1]}: {once[name].told()} against {gan[name].told()}", Pair(once[name], gan[name])),
        judged("One step of a student is faster than the GAN, decoding included",
               f"{best[1]}: {once.rate.told()} and {gan.rate.told()} pictures a second",
               Pair(once.rate, gan.rate, lower=False)),
    ]  # fmt: skip


def _fifth_over(found: Spread, least: float) -> Spread:
    """A distance whose part above `least` is a fifth longer; one at or below it, as models that repeat pictures are, stays."""
    if found.value <= least:
        return found
    over = 1 + FIFTH
    return dataclasses.replace(found, value=least + over * (found.value - least), spread=over * found.spread)


# channels


def channels(desk: Desk, result: Result) -> None:
    """Adds 4, 16 and 32 channels, each without and with the cure."""
    cond = recipes.by_class() if desk.labelled else None
    pairs = [(c, e) for c in CHANNELS for e in (0.0, EQUIVARIANCE)]
    rows, stages = {}, {}
    for c, e in pairs:
        title = f"f8-c{c}{'-eq' if e else ''}"
        first = recipes.first("kl", DEEP, c, equivariance=e)
        hours = STAGES * desk.hours / len(pairs)
        stages[c, e] = desk.trained(f"first-{title}", first, desk.budget(f"first-{title}", first, hours))
        fields = recipes.denoiser(stages[c, e], cond, width=128, multipliers=(1, 1))
        run = f"channels-{title}"
        model = desk.trained(run, fields, desk.budget(run, fields, DENOISERS * desk.hours / len(pairs)))
        rows[c, e] = generated(desk, run, model)
    name = distance(desk)
    again = {p: rebuilt(desk, f"first-f8-c{p[0]}{'-eq' if p[1] else ''}", stages[p]) for p in pairs}
    lines = [
        [
            f"{c}{', equivariant' if e else ''}",
            f"{again[c, e]['psnr']:.2f} ± {again[c, e]['psnr_error']:.2f} dB",
            Spread(again[c, e][name], 0.0, 1).told(),
            rows[c, e][name].told(),
        ]
        for c, e in pairs
    ]
    result.tables.append(
        Table(
            "Channels of latents at f = 8", ["channels", "PSNR", f"{name}, reconstructed", f"{name}, generated"], lines
        )
    )
    for c, e in pairs:
        said = f"{c} channels{', equivariant' if e else ''}"
        again_ = desk.folder / "sheets" / f"first-f8-c{c}{'-eq' if e else ''}.png"
        result.figures += [Figure(rows[c, e].sheet, said), Figure(again_, f"{said}: held-out pictures, rebuilt")]
    plain = {c: rows[c, 0.0][name] for c in CHANNELS}
    cured = {c: rows[c, EQUIVARIANCE][name] for c in CHANNELS}
    finest = CHANNELS[-1]
    made, few_ = again[finest, 0.0], again[CHANNELS[0], 0.0]
    gains = Spread.of([a - b for a, b in zip(made["each"], few_["each"], strict=True)])
    result.claims += [
        judged("More channels keep more precision",
               f"{few_['psnr']:.2f} dB with {CHANNELS[0]}, {made['psnr']:.2f} dB with {finest}, {gains.mean()} dB a picture",
               Pair(gains, Spread(0.0, 0.0, max(gains.count, 2)), lower=False)),
        judged("Many channels are harder to generate in equal time, with the same density of times",
               f"{plain[CHANNELS[0]].told()} with {CHANNELS[0]}, {plain[finest].told()} with {finest}",
               Pair(plain[CHANNELS[0]], plain[finest])),
        *(judged(f"Equivariance helps {c} channels to generate",
                 f"{cured[c].told()} with, {plain[c].told()} without", Pair(cured[c], plain[c])) for c in CHANNELS[1:]),
    ]  # fmt: skip


# super-resolution


def exact(desk: Desk, result: Result) -> None:
    """Adds super-resolution that shrinks back to what was given."""
    stage = desk.latents(shared(desk), **LATENTS)
    data = {**desk.data, "degrade": {"how": "bicubic", "factor": FACTOR}}
    factor = recipes.latents(desk.train.size, **LATENTS)["autoencoder"]["coder"]["factor"]
    stages = max((factor // FACTOR).bit_length() - 1, 0)
    fields = {
        **recipes.denoiser(stage, {"small": {"kind": "lowres", "width": 64, "stages": stages, "noise": 0.3, "dropout": 0.0}}),
        "data": data,
    }  # fmt: skip
    model = desk.trained("upscale", fields, desk.budget("upscale", fields, UPSCALE * desk.hours))
    key = [files.sha256(model / "model.yaml"), desk.steps, desk.held_out.fingerprint, VERSIONS]
    found = desk.once("upscale-exact", key, lambda: shrunk_again(desk, model, data))
    values = found["consistent"]
    kinds = {"plain": "as the model makes it", "consistent": "with the correction, the default",
             "bicubic": "bicubic", "bicubic, consistent": "bicubic with the correction"}  # fmt: skip
    result.tables.append(Table(
        "Super-resolution x4",
        ["", "made small again, against what was given: lowest", "mean", "against the original: mean"],
        [[told, *_two(found[k]), _two(found[f"{k}, original"])[1]] for k, told in kinds.items()],
    ))  # fmt: skip
    result.figures.append(
        Figure(desk.folder / found["sheet"], "Given (enlarged), bicubic with the correction, made, the original")
    )
    result.claims.append(Claim(
        f"Pictures made small again are what was given, to {WITHIN:g} dB", HOLDS if min(values) >= WITHIN else FAILS,
        f"lowest of {len(values)}: {min(values):.1f} dB",
    ))  # fmt: skip


def _two(values: Sequence[float]) -> tuple[str, str]:
    return f"{min(values):.1f} dB", f"{sum(values) / len(values):.1f} dB"


@torch.no_grad()
def shrunk_again(desk: Desk, model: Path, data: dict[str, Any], count: int = 16) -> dict[str, Any]:
    """PSNR of made pictures, shrunk as the data shrink them, against the small ones, and as they are against the originals;
    with and without the correction, and the same of bicubic enlargements, for the correction makes any picture agree."""
    pipeline = Pipeline.load(model, device=str(desk.device))
    part = Data.model_validate(data).open("held_out")
    whole = torch.stack([part.image(k) for k in spread(len(part), count)]).float() / 127.5 - 1.0
    side = part.size // FACTOR
    small = image.to_uint8(shrunk(whole, (side, side))).float() / 127.5 - 1.0
    made: dict[str, torch.Tensor] = {}
    for name, keeps in (("plain", False), ("consistent", True)):
        made[name] = torch.stack([
            image.to_tensor(pipeline.upscale(picture=p, seed=k, steps=desk.steps, consistent=keeps)[0])
            for k, p in enumerate(image.to_pil(small))
        ])  # fmt: skip
    made["bicubic"] = F.interpolate(small, scale_factor=FACTOR, mode="bicubic").clamp(-1, 1)
    made["bicubic, consistent"] = torch.cat(
        [corrected(b[None], s) for b, s in zip(made["bicubic"], small, strict=True)]
    )
    found: dict[str, Any] = {}
    for name, pictures in made.items():
        again = image.to_uint8(shrunk(pictures, (side, side))).float() / 127.5 - 1.0
        found[name] = [float(v) for v in psnr(again, small)]
        found[f"{name}, original"] = [float(v) for v in psnr(pictures, whole)]
    large = F.interpolate(small, scale_factor=FACTOR, mode="nearest")
    rows = torch.cat([large, made["bicubic, consistent"], made["consistent"], whole])
    return {**found, "sheet": str(drawn(desk, "upscale", list(rows), len(whole)).relative_to(desk.folder))}
