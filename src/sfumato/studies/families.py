"""`families`: a GAN, a VAE, autoregressive models, diffusion of pixels, and latent diffusion, at equal training time.

The time of those that need a first stage holds their first stage's training. All sample in float32. The transformer over
codes is trained at two factors: what it comes to where compression falls, at the size that it has.

What the paper says of each in its introduction and related work: GANs are sharp, miss modes and are hard to train; VAEs
cover and blur; autoregressive models have good likelihoods, are slow and stay small; diffusion of pixels is good and
costly; two stages of transformers need many parameters where codes are many.
"""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sfumato import device as devices
from sfumato.autoencoder.codec import Codec
from sfumato.families.base import FamilyConfig, Shape
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.streams import Stream
from sfumato.studies import bits, recipes
from sfumato.studies.bits import PIXELS, VAE
from sfumato.studies.desk import Desk
from sfumato.studies.measure import SHARP, VERSIONS, Row, cell, distance, drawing, floor, generated, real, reals, short
from sfumato.studies.recipes import wider
from sfumato.studies.result import Figure, Result, Table, plot
from sfumato.studies.verdict import Claim, Pair, Spread, judged
from sfumato.tasks.requests import Generate
from sfumato.tasks.walk import walk

Fields = dict[str, Any]
SMALL = 16  # pixels a side that the transformer over pixels draws at most: four times the pictures in its time that 32 allow
MEASURING = 0.25  # of the hours
MODELS = 7
BITS = 0.03  # of the hours, of MEASURING's part: each of the three whose bits are compared
FIRST = 0.3  # of the time of a model with a first stage
SIDES = (16, 32, 64)  # of the curve of seconds against resolution
CODES = 4  # the factor of the codes that a transformer draws
FINER = 2  # and that where compression falls: four times the codes
LDM, GAN, AR = "latent diffusion", "GAN", "pixel transformer"
TWO, FINE = "VQ + transformer", f"VQ + transformer, f = {FINER}"


def small(desk: Desk) -> int:
    """Pixels a side that the transformer over pixels draws; its pictures are enlarged."""
    return min(desk.train.size, SMALL)


def fields(desk: Desk, stage: Path, codes: dict[str, Path]) -> dict[str, Fields]:
    """All of them, of two to seven million weights that draw on two cores; `codes` are the first stages of the transformers."""
    side = small(desk)
    cond = recipes.by_class() if desk.labelled else None
    return {
        GAN: recipes.gan(),
        VAE: recipes.family("vae", width=48, channels=16),
        AR: recipes.family(
            "autoregressive", tokens="palette", side=side, colours=256, width=256, depth=6, heads=4, batch=8
        ),
        **{
            name: {
                **recipes.family("autoregressive", tokens="codes", width=256, depth=6, heads=4),
                "autoencoder": str(path),
            }
            for name, path in codes.items()
        },
        PIXELS: recipes.denoiser(desk.pixels(), cond, **recipes.fitting(desk.train.size)),
        LDM: recipes.denoiser(stage, cond),
    }


def study(desk: Desk) -> Result:
    """Train all models for equal seconds, measure, judge."""
    desk.drawable(recipes.gan())
    desk.dividing(CODES)
    desk.keeping("shares of the hours", [MODELS, MEASURING, BITS, FIRST])
    hours = (1 - MEASURING) * desk.hours / MODELS
    stage, codes = desk.latents(FIRST * hours), coded(desk, FIRST * hours)
    wanted = fields(desk, stage, codes)
    models, rows = dict[str, Path](), dict[str, Row]()
    for name, one in wanted.items():
        run = "-".join(["family", *re.findall(r"\w+", name)])
        images = desk.budget(run, one, hours * (1 - FIRST) if name in (LDM, *codes) else hours)
        models[name] = desk.trained(run, one, images)
        rows[name] = generated(desk, run, models[name], guidance=1.0, judge=desk.judge, dtype=torch.float32)
    side = small(desk)
    result = Result(
        "families", "The other families",
        f"{len(wanted)} models of {desk.name} at {desk.train.size} pixels, each trained about {hours * 60:.0f} minutes on this machine, "
        f"{FIRST:.0%} of which are the first stage's where there is one. "
        + (f"The transformer over pixels draws {side} a side, its pictures are enlarged. " if side < desk.train.size else ""),
        protocol={**desk.protocol(**{"minutes each": hours * 60}), "precision of sampling": "float32"}, claims=claims(desk, rows),
    )  # fmt: skip
    before = {n: desk.seconds(p.parent.name) for n, p in {LDM: stage, **codes}.items()}
    result.tables.append(table(desk, wanted, models, rows, before))
    likely, told = bits.compared(desk, BITS * desk.hours, models[VAE])
    result.tables.append(likely)
    result.claims += told
    result.tables.append(bits.known(desk, {name: models[name] for name in (AR, *codes)}))
    curves = desk.once(
        "family-seconds",
        [list(wanted), list(SIDES), desk.train.size, desk.steps, str(desk.device), VERSIONS],
        lambda: seconds(desk, wanted),
    )
    drawn = [(n, [p[0] for p in c], [p[1] for p in c]) for n, c in curves.items() if c]
    path = plot(desk.folder / "seconds.png", drawn, "pixels a side", "seconds a picture", log=(True, True))
    result.figures.append(
        Figure(path, "Seconds a picture against resolution, fresh networks of the same recipes, one picture at a time")
    )
    result.figures.append(Figure(real(desk, desk.judge).sheet, "Held-out pictures"))
    result.figures += [Figure(row.sheet, name) for name, row in rows.items()]
    return result


def coded(desk: Desk, hours: float) -> dict[str, Path]:
    """The first stages whose codes transformers draw, each trained so long."""
    found = {}
    for name, factor in ((TWO, CODES), (FINE, FINER)):
        run, vq = "first-codes" if factor == CODES else f"first-codes-f{factor}", recipes.first("vq", factor, 4)
        found[name] = desk.trained(run, vq, desk.budget(run, vq, hours))
    return found


def table(
    desk: Desk, wanted: dict[str, Fields], models: dict[str, Path], rows: dict[str, Row], before: dict[str, float]
) -> Table:
    """What all took and came to; `before` are the seconds of the first stages."""
    measures = [distance(desk), *(short(desk, m) for m in ("KID", "precision", "recall", "coverage"))]
    measures += [m for m in ("classes covered", "agreement") if m in rows[LDM].measures]
    least = floor(desk)
    lines = [
        [title, *[""] * 4, *(cell(row, m) for m in measures), sharp(row, least), ""]
        for title, row in reals(desk, desk.judge).items()
    ]
    for name, row in rows.items():
        run = models[name].parent.name
        images, batch = desk.plan("images")[run], wanted[name]["training"]["batch"]
        lines.append([
            name, f"{drawing(models[name]) / 1e6:.1f} M", f"{(desk.seconds(run) + before.get(name, 0.0)) / 60:.1f}",
            f"{images:,}", f"{images // batch:,}", *(cell(row, m) for m in measures), sharp(row, least),
            f"{1000 / row.rate.value:,.1f} ms",
        ])  # fmt: skip
    head = [
        "",
        "parameters that draw",
        "minutes",
        "images seen",
        "steps",
        *measures,
        "sharpness, of real pictures'",
        "a picture of a batch takes",
    ]
    return Table("At equal training time", head, lines)


def sharp(row: Row, least: Row) -> str:
    """A row's sharpness as a share of real pictures'."""
    return f"{100 * row[SHARP].value / least[SHARP].value:.0f} %" if SHARP in row.measures else ""


@torch.no_grad()
def seconds(desk: Desk, wanted: dict[str, Fields]) -> dict[str, list[tuple[int, float]]]:
    """(pixels a side, seconds a picture) of each, with fresh weights: time does not hang on what was learned."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, one in wanted.items():
        least = Codec.load(Path(one["autoencoder"])).factor if "autoencoder" in one else 1
        sides = [side for side in SIDES if side >= least]
        found[name] = [(side, timed(sampler(desk, wider(one, desk.scale), side), desk.device)) for side in sides]
    return found


def sampler(desk: Desk, one: Fields, side: int) -> Callable[[], Any]:
    """A call that draws one picture of `side` pixels."""
    if one["stage"] == "family":
        config = FamilyConfig.model_validate({**one["family"], **({"side": side} if "side" in one["family"] else {})})
        codec = Codec.load(Path(one["autoencoder"])) if "autoencoder" in one else None
        made = config.build(Shape(desk.train.channels, side), (), codec).to(desk.device).eval()
        label = torch.zeros(1, dtype=torch.long, device=desk.device)
        return lambda: made.sample(Stream([0]), label)
    kept = {k: v for k, v in one.items() if k in DiffusionConfig.model_fields and k != "conditioners"}
    model = LatentDiffusion(Codec.load(Path(one["autoencoder"])), DiffusionConfig.model_validate(kept), side, {})
    model = model.to(desk.device).eval().for_sampling(torch.float32)
    request = Generate(seed=0, steps=desk.steps, guidance=1.0)

    def draw() -> Any:
        noise = Stream([0])
        return model.pictures(walk(model, noise.normal(model.latent_shape(), 0).to(desk.device), request, {}, noise))

    return draw


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """The median seconds of three calls after one that warms up."""
    taken = []
    for _ in range(4):
        begin = time.perf_counter()
        call()
        devices.wait(device)
        taken.append(time.perf_counter() - begin)
    return sorted(taken[1:])[1]


def claims(desk: Desk, rows: dict[str, Row]) -> list[Claim]:
    """What the paper says of each family."""
    fid, coverage = distance(desk), short(desk, "coverage")

    def beats(one: str, other: str, measure: str, text: str, lower: bool = True) -> Claim:
        a, b = rows[one][measure], rows[other][measure]
        return judged(text, f"{measure}: {one} {a.told()}, {other} {b.told()}", Pair(a, b, lower))

    made = [
        beats(LDM, other, fid, f"At equal training time latent diffusion is better than {what}")
        for other, what in ((GAN, "a GAN"), (VAE, "a VAE"), (AR, "a transformer over pixels"), (PIXELS, "diffusion of pixels"),
                            (TWO, "a transformer over codes"))
    ]  # fmt: skip
    made.append(
        beats(
            TWO,
            FINE,
            fid,
            f"A transformer over codes of the same size is worse at f = {FINER} than at {CODES}, in equal time",
        )
    )
    made.append(beats(LDM, FINE, fid, f"Latent diffusion is better than a transformer over codes of f = {FINER}"))
    made.append(beats(LDM, GAN, coverage, "A GAN misses pictures that latent diffusion comes near", lower=False))
    made.append(beats(VAE, GAN, coverage, "A VAE covers what a GAN misses", lower=False))
    made.append(
        beats(
            LDM,
            VAE,
            short(desk, "precision"),
            "A VAE's pictures are less like real ones than those of latent diffusion",
            lower=False,
        )
    )

    least = floor(desk)[SHARP].value

    def blurred(one: Spread, other: Spread, text: str) -> Claim:
        a, b = (dataclasses.replace(s, value=s.value / least, spread=s.spread / least) for s in (one, other))
        return judged(text, f"{a.told()} against {b.told()} of real pictures' sharpness", Pair(a, b))

    made.append(blurred(rows[VAE][SHARP], Spread(least, 0.0, desk.images), "A VAE's pictures are blurred"))
    made.append(blurred(rows[VAE][SHARP], rows[GAN][SHARP], "A GAN's are sharper than a VAE's"))

    def faster(one: str, other: str, text: str) -> Claim:
        a, b = rows[one].rate, rows[other].rate
        return judged(text, f"pictures a second: {one} {a.told()}, {other} {b.told()}", Pair(a, b, lower=False))

    made.append(faster(LDM, AR, f"Autoregressive models of pixels sample slowly, at {small(desk)} pixels already"))
    made.append(faster(GAN, LDM, f"A GAN samples faster than latent diffusion in {desk.steps} steps"))
    return made
