"""`families`: a GAN, a VAE, two autoregressive models, diffusion of pixels, and latent diffusion, at equal training time.

The time of the two that need a first stage holds their first stage's training. All sample in float32.

What the paper says of each in its introduction and related work: GANs are sharp, miss modes and are hard to train; VAEs
cover and blur; autoregressive models have good likelihoods, are slow and stay small; diffusion of pixels is good and
costly; two stages of transformers need many parameters where codes are many.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sfumato import device as devices
from sfumato import files
from sfumato.autoencoder.codec import Codec
from sfumato.evaluation.likelihood import likelihood
from sfumato.families.base import Family, FamilyConfig, Shape
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.streams import Stream
from sfumato.studies import recipes
from sfumato.studies.desk import Desk
from sfumato.studies.guidance import good_stage
from sfumato.studies.measure import REAL, Row, cell, distance, generated, real, short
from sfumato.studies.recipes import wider
from sfumato.studies.result import Figure, Result, Table, plot
from sfumato.studies.verdict import Claim, better
from sfumato.tasks.pipeline import opened
from sfumato.tasks.requests import Generate
from sfumato.tasks.walk import walk

Fields = dict[str, Any]
SMALL = 32  # pixels a side that the transformer over pixels draws at most
MEASURING = 0.25  # of the hours
FIRST = 0.3  # of the time of a model with a first stage
SIDES = (16, 32, 64)  # of the curve of seconds against resolution
LDM, PIXELS, GAN, VAE, AR, TWO = "LDM-8", "pixel diffusion", "GAN", "VAE", "pixel transformer", "VQ + transformer"


def small(desk: Desk) -> int:
    """Pixels a side that the transformer over pixels draws; its pictures are enlarged."""
    return min(desk.train.size, SMALL)


def family(kind: str, *, batch: int = 32, **settings: Any) -> Fields:
    """The recipe of a family."""
    training = {"batch": batch, "rate": 5.0e-3, "flip": 0.5}
    return {"stage": "family", "family": {"kind": kind, **settings}, "training": training}


def fields(desk: Desk, stage: Path, codes: Path) -> dict[str, Fields]:
    """All six, of about equal size."""
    side = small(desk)
    cond = recipes.by_class() if desk.labelled else None
    return {
        GAN: family("gan", width=32, latent=128, r1=2.0),
        VAE: family("vae", width=48, channels=16),
        AR: family("autoregressive", tokens="palette", side=side, colours=256, width=256, depth=6, heads=4, batch=16),
        TWO: {
            **family("autoregressive", tokens="codes", width=256, depth=6, heads=4, top=256),
            "autoencoder": str(codes),
        },
        PIXELS: recipes.denoiser(desk.pixels(), cond),
        LDM: recipes.denoiser(stage, cond, width=128, multipliers=(1, 1)),
    }


def study(desk: Desk) -> Result:
    """Train six models for equal seconds, measure, judge."""
    hours = (1 - MEASURING) * desk.hours / 6
    stage, vq = good_stage(desk, FIRST * hours), recipes.first("vq", 4, 4)
    codes = desk.trained("first-codes", vq, desk.budget("first-codes", vq, FIRST * hours))
    wanted = fields(desk, stage, codes)
    models, rows, seen, bits = {}, {}, {}, {}
    for name, one in wanted.items():
        run = f"family-{name.replace(' ', '-').replace('+-', '')}"
        seen[name] = desk.budget(run, one, hours * (1 - FIRST) if name in (LDM, TWO) else hours)
        models[name] = desk.trained(run, one, seen[name])
        rows[name] = generated(desk, run, models[name], guidance=1.0, judge=desk.judge, dtype=torch.float32)
        bits[name] = bounded(desk, run, models[name])
    result = Result(
        "families", "The other families",
        f"Six models of {desk.name} at {desk.train.size} pixels, each trained {hours * 60:.0f} minutes on this machine, {FIRST:.0%} "
        f"of which are the first stage's where there is one. The transformer over pixels draws {small(desk)} a side, its "
        "pictures are enlarged.",
        protocol={**desk.protocol(**{"minutes each": hours * 60}), "precision of sampling": "float32"}, claims=claims(desk, rows),
    )  # fmt: skip
    measures = [distance(desk), short(desk, "precision"), short(desk, "recall")]
    extra = [m for m in ("classes covered",) if m in rows[LDM].measures]
    ceiling = real(desk, desk.judge)
    lines = [[REAL, "", "", *(cell(ceiling, m) for m in [*measures, *extra]), "", ""]]
    for name, row in rows.items():
        count = sum(p.numel() for p in parameters(models[name])) / 1e6
        lines.append([
            name, f"{count:.1f} M", f"{seen[name]:,}", *(cell(row, m) for m in [*measures, *extra]),
            _bits(bits[name]), f"{1000 / row.rate.value:,.1f} ms",
        ])  # fmt: skip
    head = ["", "parameters", "images seen", *measures, *extra, "bits a dimension", "a picture takes"]
    result.tables.append(Table("At equal training time", head, lines))
    curves = desk.once("family-seconds", [list(SIDES), desk.train.size], lambda: seconds(desk, wanted))
    drawn = [(n, [p[0] for p in c], [p[1] for p in c]) for n, c in curves.items()]
    path = plot(desk.folder / "seconds.png", drawn, "pixels a side", "seconds a picture", log=(True, True))
    result.figures.append(
        Figure(path, "Seconds a picture against resolution, fresh networks of the same recipes, one picture at a time")
    )
    result.figures.append(Figure(ceiling.sheet, "Held-out pictures"))
    result.figures += [Figure(row.sheet, f"{name}: {seen[name]:,} images seen") for name, row in rows.items()]
    return result


def _bits(found: dict[str, float] | None) -> str:
    return f"{found['bits']:.2f}" if found else ""


def parameters(folder: Path) -> list[torch.nn.Parameter]:
    """The weights that draw pictures: a first stage's encoder and decoder are not among them."""
    model = opened(folder, torch.device("cpu"))
    if isinstance(model, Family):
        return [p for m in model.learned(next(iter(model.turns))) for p in m.parameters()]
    return [*model.denoiser.parameters(), *model.conditions.parameters()]


def bounded(desk: Desk, name: str, folder: Path) -> dict[str, float] | None:
    """Bits per dimension of held-out pictures, None where undefined or of another picture than the data's."""

    def make() -> dict[str, float] | None:
        model = opened(folder, desk.device)
        return likelihood(model, desk.held_out) if isinstance(model, Family) else None

    kept: dict[str, float] | None = desk.once(f"bits-{name}", files.sha256(folder / "model.yaml"), make)
    return kept


@torch.no_grad()
def seconds(desk: Desk, wanted: dict[str, Fields]) -> dict[str, list[tuple[int, float]]]:
    """(pixels a side, seconds a picture) of each, with fresh weights: time does not hang on what was learned."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, one in wanted.items():
        found[name] = [(side, timed(sampler(desk, wider(one, desk.scale), side), desk.device)) for side in SIDES]
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
    fid, recall = distance(desk), short(desk, "recall")

    def beats(one: str, other: str, measure: str, text: str, lower: bool = True) -> Claim:
        a, b = rows[one][measure], rows[other][measure]
        return Claim(text, better(a, b, lower=lower), f"{measure}: {one} {a.told()}, {other} {b.told()}")

    made = [
        beats(LDM, other, fid, f"At equal training time latent diffusion is better than {what}")
        for other, what in ((GAN, "a GAN"), (VAE, "a VAE"), (AR, "a transformer over pixels"), (PIXELS, "diffusion of pixels"),
                            (TWO, "a transformer over codes"))
    ]  # fmt: skip
    made.append(beats(LDM, GAN, recall, "A GAN misses modes that latent diffusion reaches", lower=False))
    made.append(beats(VAE, GAN, recall, "A VAE covers what a GAN misses", lower=False))
    made.append(beats(LDM, VAE, short(desk, "precision"), "A VAE's pictures are blurred beside it", lower=False))

    def faster(one: str, other: str, text: str) -> Claim:
        a, b = rows[one].rate, rows[other].rate
        return Claim(text, better(a, b, lower=False), f"pictures a second: {one} {a.told()}, {other} {b.told()}")

    made.append(faster(LDM, AR, f"Autoregressive models of pixels sample slowly, at {small(desk)} pixels already"))
    made.append(faster(GAN, LDM, f"A GAN samples faster than latent diffusion in {desk.steps} steps"))
    return made
