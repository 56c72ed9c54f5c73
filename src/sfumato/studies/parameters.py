"""`parameters`: do two-stage models need more parameters as compression falls, and latent diffusion not (Rombach et al.,
2022, sections 1 and 2)?

On the same VQ first stages of f = 4 and f = 2, a transformer over their codes in two sizes, one twice as wide as the other
and with more than three times the weights, and a denoiser of their latents. All see the same number of images in batches
of one size, so that what differs is what a model of that size can learn of so many, and not its speed. What first stages
lose is in all of these pictures: where factors are compared by ratios, distances are counted from those of rebuilt ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.studies import bits, recipes
from sfumato.studies.desk import Desk
from sfumato.studies.measure import Row, cell, distance, drawing, generated, real, reals, rebuilt, short, weights
from sfumato.studies.result import Figure, Result, Table
from sfumato.studies.verdict import Claim, Pair, Spread, judged

Fields = dict[str, Any]
FACTORS = (4, 2)
CHANNELS = 4  # of the latents of both
SMALL, LARGE, LDM = "small transformer", "large transformer", "latent diffusion"
WIDTHS = {SMALL: 64, LARGE: 128}
HEAD = 32  # channels
BATCH = 32
FIRST, MEASURING = 0.2, 0.3  # of the hours


def study(desk: Desk) -> Result:
    """Train what is not there, measure, judge."""
    desk.dividing(*FACTORS)
    stages = {f: first_stage(desk, f, FIRST * desk.hours / len(FACTORS)) for f in FACTORS}
    wanted = fields(desk, stages)
    runs = {pair: f"{pair[0].replace(' ', '-')}-f{pair[1]}" for pair in wanted}
    seconds = sum(1 / desk.rate(runs[pair], one) for pair, one in wanted.items())  # for an image of each
    each = 3600 * desk.hours * (1 - FIRST - MEASURING) / seconds
    models, rows = dict[tuple[str, int], Path](), dict[tuple[str, int], Row]()
    for pair, one in wanted.items():
        images = desk.planned(runs[pair], one, lambda: each)
        models[pair] = desk.trained(runs[pair], one, images)
        rows[pair] = generated(desk, runs[pair], models[pair], guidance=1.0)
    result = Result(
        "parameters",
        "Parameters where compression falls",
        f"A transformer over codes in two sizes and latent diffusion, on the same VQ first stages of f = {FACTORS[0]} and "
        f"{FACTORS[1]}, of {desk.name} at {desk.train.size} pixels. All models see {each:,.0f} images, within a batch, "
        "in as many steps.",
        protocol=desk.protocol(equal="images"),
        claims=claims(desk, rows, lost(desk, stages)),
    )
    result.tables.append(table(desk, wanted, runs, models, rows, stages))
    told = {f"{name}, f = {f}": models[name, f] for name in WIDTHS for f in FACTORS}
    result.tables.append(bits.known(desk, told))
    result.figures.append(Figure(real(desk).sheet, "Held-out pictures"))
    result.figures += [Figure(row.sheet, f"{name}, f = {f}") for (name, f), row in rows.items()]
    return result


def first_stage(desk: Desk, factor: int, hours: float) -> Path:
    """The first stage of a factor, whose codes transformers draw and whose latents are denoised."""
    name, one = f"first-codes-f{factor}", recipes.first("vq", factor, CHANNELS)
    return desk.trained(name, one, desk.budget(name, one, hours))


def fields(desk: Desk, stages: Mapping[int, Path]) -> dict[tuple[str, int], Fields]:
    """The recipes of all models, by name and factor."""
    cond, found = recipes.by_class() if desk.labelled else None, dict[tuple[str, int], Fields]()
    for factor, stage in stages.items():
        for name, width in WIDTHS.items():
            one = recipes.family(
                "autoregressive", batch=BATCH, tokens="codes", width=width, depth=6, heads=width // HEAD
            )
            found[name, factor] = {**one, "autoencoder": str(stage)}
        found[LDM, factor] = recipes.denoiser(stage, cond, batch=BATCH, **recipes.fitting(desk.train.size // factor))
    return found


def lost(desk: Desk, stages: Mapping[int, Path]) -> dict[int, float]:
    """The distance of rebuilt training pictures, by factor."""
    return {f: rebuilt(desk, f"rebuilt-f{f}", stage)[distance(desk)] for f, stage in stages.items()}


def table(
    desk: Desk, wanted: Mapping[tuple[str, int], Fields], runs: Mapping[tuple[str, int], str],
    models: Mapping[tuple[str, int], Path], rows: Mapping[tuple[str, int], Row], stages: Mapping[int, Path],
) -> Table:  # fmt: skip
    """What each model came to."""
    measures = [distance(desk), *(short(desk, m) for m in ("KID", "precision", "recall", "coverage"))]
    lines = [[title, *[""] * 5, *(cell(row, m) for m in measures)] for title, row in reals(desk).items()]
    lines += [
        [f"rebuilt, f = {f}", *[""] * 5, f"{d:.0f}", *[""] * (len(measures) - 1)] for f, d in lost(desk, stages).items()
    ]
    for pair, row in rows.items():
        images, batch = desk.plan("images")[runs[pair]], wanted[pair]["training"]["batch"]
        lines.append([
            f"{pair[0]}, f = {pair[1]}", f"{weights(models[pair]) / 1e6:.2f} M", f"{drawing(models[pair]) / 1e6:.2f} M", f"{images:,}", f"{images // batch:,}",
            f"{desk.seconds(runs[pair]) / 60:.1f}", *(cell(row, m) for m in measures),
        ])  # fmt: skip
    return Table(
        "After as many images",
        ["", "parameters", "with the decoder", "images seen", "steps", "minutes", *measures],
        lines,
    )


def claims(desk: Desk, rows: Mapping[tuple[str, int], Row], lost: Mapping[int, float]) -> list[Claim]:
    """What the paper says of two-stage models; `lost` are the distances of rebuilt pictures."""
    coarse, fine = FACTORS
    found = {pair: row[distance(desk)] for pair, row in rows.items()}
    made = [
        judged(
            f"A {name} over codes is worse at f = {fine} than at f = {coarse}, after as many images",
            f"{found[name, fine].told()} against {found[name, coarse].told()}",
            Pair(found[name, coarse], found[name, fine]),
        )
        for name in WIDTHS
    ]
    above = {(name, f): s.minus(Spread(lost[f], 0.0, s.count)) for (name, f), s in found.items()}
    gains = {f: above[SMALL, f].over(above[LARGE, f]) for f in FACTORS}
    made.append(judged(
        f"More parameters help a transformer over codes more at f = {fine} than at f = {coarse}",
        f"above rebuilt pictures the small one is {gains[fine].told()} times as far as the large one at f = {fine}, "
        f"{gains[coarse].told()} times at f = {coarse}",
        Pair(gains[fine], gains[coarse], lower=False),
    ))  # fmt: skip
    falls = {name: above[name, fine].over(above[name, coarse]) for name in (LARGE, LDM)}
    made.append(judged(
        f"From f = {coarse} to {fine} latent diffusion loses less than a transformer over codes",
        f"above rebuilt pictures it is {falls[LDM].told()} times as far at f = {fine} as at f = {coarse}, the large transformer "
        f"{falls[LARGE].told()} times",
        Pair(falls[LDM], falls[LARGE]),
    ))  # fmt: skip
    return made
