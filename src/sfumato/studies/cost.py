"""`cost`: how much cheaper is a latent than a pixel (Rombach et al., 2022, table 6: 2.7 times faster, 1.6 times better)?

LDM-4 and LDM-8 beside LDM-1, networks of the same size trained for the same time: speed, the seconds of training until a
distance is reached, energy and CO2. Latents need a first stage before, pixels none: its seconds are counted where time is
claimed, and those in which pictures are encoded, or for pixels read. The paper compares LDM-4 with pixels on inpainting, at
equal epochs; here it is generation, at equal time.
"""

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from sfumato.autoencoder.codec import Codec
from sfumato.studies import compression
from sfumato.studies.compression import Trained
from sfumato.studies.desk import Desk
from sfumato.studies.energy import GRID, Energy, kwh, metered
from sfumato.studies.measure import Row, cell, distance, excess, generated, real, reals, short
from sfumato.studies.recipes import BATCH
from sfumato.studies.result import Figure, Result, Table, plot
from sfumato.studies.verdict import FAILS, HOLDS, OPEN, Claim, Outcome, Pair, Spread, barring, judged
from sfumato.training.latents import encoded
from sfumato.training.rate import rate
from sfumato.training.run import objective_of

FACTORS = (1, 4, 8)
FIRST_SHARE, MEASURING = 0.1, 0.3  # of the hours
PAPER_SPEED, PAPER_QUALITY = 2.7, 1.6  # table 6
EQUAL = 0.05  # by which seconds may differ that are called equal
ENCODED = 1024  # pictures by which the pace of encoding is told
CURVE = 4  # of the curve along training each seed draws so many times fewer images than of the table
Curve = list[tuple[float, float]]  # (seconds, distance)


def study(desk: Desk, watts: float | None = None, grid: float = GRID) -> Result:
    """Train what is not there, measure, judge."""
    desk.dividing(*FACTORS)
    several = compression.trained(desk, FACTORS, ("kl",), FIRST_SHARE, MEASURING)
    name, energy = distance(desk), {t.factor: power(desk, t, watts) for t in several}
    rows = {t.factor: generated(desk, f"cost-{compression.slug(t)}", t.model) for t in several}
    curves = {t.factor: timed(desk, t) for t in several}
    aims = [curve[-1][1] for curve in curves[1]]  # what pixels come to at their end, a sampling seed each
    reached = {f: [reach(*pair) for pair in zip(curves[f], aims, strict=True)] for f in curves if f > 1}
    before = {t.factor: prepared(desk, t) for t in several}
    few = of_a_point(desk)
    result = Result(
        "cost", "Latents beside pixels",
        f"LDM-4 and LDM-8 beside LDM-1 on {desk.name} at {desk.train.size} pixels: networks of one size, trained for the same "
        f"time. How long it takes until the {name} that pixels end at is read off curves of {few} images a point, between "
        "points that are averages of a run whose rate was still high, which counts against latents. The paper's table 6 is of "
        "inpainting, after equal epochs. Speeds of training are of stretches of one run each. "
        f"Energy is {energy[1].how}: {energy[1].watts:.0f} W for pixels; CO2 by {grid:g} kg a kWh.",
        protocol=desk.protocol(**{"energy": {f: dataclasses.asdict(e) for f, e in energy.items()}, "kg CO2 a kWh": grid, "images of the curve, a seed": few}),
    )  # fmt: skip
    result.tables.append(table(desk, several, rows, before))
    result.tables.append(as_far(desk, several, aims, reached, before, energy, grid))
    drawn = [(t.name, [p[0] + before[t.factor] for p in curves[t.factor][0]], means(curves[t.factor])) for t in several]
    path = plot(
        desk.folder / "seconds.png",
        drawn,
        "seconds, the first stage's and those of encoding too",
        name,
        log=(True, True),
    )
    result.figures.append(
        Figure(
            path,
            f"{name} of {few} images against seconds of training, those of the first stage and of encoding included",
        )
    )
    result.figures.append(Figure(real(desk).sheet, "Held-out pictures"))
    result.figures += [Figure(rows[t.factor].sheet, f"{t.name}: {t.images:,} images seen") for t in several]
    result.claims += claims(desk, several, rows, reached, before)
    return result


def table(desk: Desk, several: Sequence[Trained], rows: Mapping[int, Row], before: Mapping[int, float]) -> Table:
    """Speed and distances after the whole training."""
    name, kernel = distance(desk), short(desk, "KID")
    lines = [[title, *[""] * 5, cell(row, name), cell(row, kernel)] for title, row in reals(desk).items()]
    for t in several:
        row = rows[t.factor]
        lines.append([
            t.name, f"{before[t.factor]:,.0f} s", f"{desk.seconds(t.run.name):,.0f} s", f"{t.images:,}",
            Spread.of(desk.paces(t.run.name)).told(), row.rate.told(), row[name].told(), row[kernel].told(),
        ])  # fmt: skip
    head = [
        "",
        "first stage, encoding",
        "denoiser",
        "images seen",
        "training images/s",
        "sampled pictures/s",
        name,
        kernel,
    ]
    return Table("At equal training time of the denoiser", head, lines)


def as_far(
    desk: Desk, several: Sequence[Trained], aims: Sequence[float], reached: Mapping[int, Sequence["Reached | None"]],
    before: Mapping[int, float], energy: Mapping[int, Energy], grid: float,
) -> Table:  # fmt: skip
    """What it takes to be where pixels end."""
    lines = []
    for t in several:
        f = t.factor
        got = [s for s in reached[f] if s is not None] if f > 1 else [Reached(desk.seconds(t.run.name))]
        there, bound = [s.seconds for s in got], "at most " if any(s.latest for s in got) else ""
        whole = there and (f == 1 or len(there) == len(reached[f]))  # some alone would be the quick ones
        used = 1000 * kwh(energy[f].watts, Spread.of(there).value + before[f]) if whole else None
        lines.append([
            t.name, f"{before[f]:,.0f} s", until(reached[f]) if f > 1 else f"{there[0]:,.0f} s",
            *((f"{bound}{used:.2f} Wh", f"{bound}{used * grid:.2f} g") if used is not None else ("", "")),
        ])  # fmt: skip
    title = f"Until a {distance(desk)} of {Spread.of(aims).told()}, where pixels end"
    return Table(title, ["", "first stage, encoding", "denoiser", "energy of all", "CO2"], lines)


def prepared(desk: Desk, t: Trained) -> float:
    """Seconds before a denoiser's first step: of its first stage's training, and of encoding the training part, which pixels
    want too, to be read."""
    codec, part = Codec.load(t.first).to(desk.device), desk.train
    some = range(min(len(part), ENCODED))

    def measure() -> float:
        encoded(codec, part, some[:BATCH], True, BATCH)  # what warms up
        begin = time.perf_counter()
        encoded(codec, part, some, True, BATCH)
        return (time.perf_counter() - begin) / len(some)

    each: float = desk.once(f"encoding-{compression.slug(t)}", [codec.fingerprint(), str(desk.device)], measure)
    trained = 0.0 if t.factor == 1 else desk.seconds(t.first.parent.name)
    return trained + each * len(part)


def of_a_point(desk: Desk) -> int:
    """Images that each seed draws for a point of the curve."""
    return max(desk.images // CURVE, 8)


def timed(desk: Desk, t: Trained) -> list[Curve]:
    """The curves along training against seconds, one for each sampling seed."""
    clock = desk.elapsed(t.run.name)
    images, seconds = [0, *(k for k, _ in clock)], [0.0, *(s for _, s in clock)]
    found = compression.along(desk, t, of_a_point(desk), desk.seeds)
    return [[(float(np.interp(p * 1e15 / t.flops, images, seconds)), value) for p, value in curve] for curve in found]


def means(curves: Sequence[Curve]) -> list[float]:
    """The mean distance at each point."""
    return [statistics.fmean(curve[k][1] for curve in curves) for k in range(len(curves[0]))]


@dataclasses.dataclass(frozen=True)
class Reached:
    """When a curve first is as low as asked; `latest` where its first point is so already, for it may have been before."""

    seconds: float
    latest: bool = False


def reach(curve: Curve, aim: float) -> Reached | None:
    """When a curve first is as low as `aim`, linear between its points; None: never."""
    before: tuple[float, float] | None = None
    for seconds, value in sorted(curve):
        if value <= aim:
            if before is None:
                return Reached(seconds, latest=True)
            return Reached(before[0] + (seconds - before[0]) * (before[1] - aim) / (before[1] - value))
        before = seconds, value
    return None


def until(several: Sequence[Reached | None]) -> str:
    """When a distance was reached, by the sampling seeds."""
    there = [s for s in several if s is not None]
    if not there:
        return "not reached"
    text = f"{'at most ' if any(s.latest for s in there) else ''}{Spread.of([s.seconds for s in there]).told()} s"
    return text if len(there) == len(several) else f"{text}, in {len(there)} of {len(several)} samplings"


def power(desk: Desk, t: Trained, watts: float | None) -> Energy:
    """The power of a training, over some seconds of it."""

    def measure() -> dict[str, object]:
        recipe = desk.recipe("power", compression.denoiser(desk, t.kind, t.factor, t.first)[1], 1_000_000)
        objective = objective_of(recipe, desk.run(f"denoiser-{t.kind}-f{t.factor}"), desk.device)
        rate(objective, recipe.training, desk.device, seconds=0.0)  # what compiles and warms up is not the training's
        with metered(desk.device, watts) as found:
            rate(objective, recipe.training, desk.device, seconds=10.0)
        return dataclasses.asdict(found)

    return Energy(**desk.once(f"power-{compression.slug(t)}", [watts, str(desk.device), "after warming up"], measure))


def claims(
    desk: Desk,
    several: Sequence[Trained],
    rows: Mapping[int, Row],
    reached: Mapping[int, Sequence[Reached | None]],
    before: Mapping[int, float],
) -> list[Claim]:
    """Table 6's two numbers beside ours."""
    name, pixels = distance(desk), next(desk.seconds(t.run.name) for t in several if t.factor == 1)
    speeds = {t.factor: Spread.of(desk.paces(t.run.name)) for t in several}
    made = []
    for f in (f for f in speeds if f > 1):
        made.append(judged(
            f"LDM-{f} trains at least {PAPER_SPEED:g} times as many images a second as LDM-1",
            f"{speeds[f].told()} against {speeds[1].told()}: {speeds[f].value / speeds[1].value:.1f} times",
            Pair(speeds[f], speeds[1], lower=False, by=PAPER_SPEED - 1),
        ))  # fmt: skip
        one, other = (excess(desk, rows[k][name]) for k in (f, 1))
        seconds = next(desk.seconds(t.run.name) for t in several if t.factor == f)
        made.append(as_near(f, one, other, seconds / max(pixels, 1e-9)))
        there = [None if s is None else Reached(s.seconds + before[f], s.latest) for s in reached[f]]
        made.append(sooner(f, there, pixels + before[1], seconds + before[f]))
    return made


def as_near(factor: int, one: Spread, other: Spread, longer: float) -> Claim:
    """Whether latents come so much nearer than pixels in equal time, theirs being so many times as long as pixels'."""
    times = f"{max(other.value, 0.0) / one.value:.2f} times" if one.value > 0 else "no farther than real pictures"
    # shares of what lies above: models that repeat their pictures may lie below
    near, far = (dataclasses.replace(found, value=max(found.value, 0.0)) for found in (one, other))
    claim = judged(
        f"LDM-{factor}'s distance is at least {PAPER_QUALITY:g} times as near to that of as many real pictures, after equal "
        "time of the denoiser",
        f"{one.told()} above it against {other.told()}: {times}",
        Pair(near, far, by=1 - 1 / PAPER_QUALITY),
    )
    if abs(longer - 1) <= EQUAL:
        return claim
    measured = f"{claim.measured}, in {longer:.2f} times the seconds"
    easier: Outcome = HOLDS if longer > 1 else FAILS  # the verdict that the difference helps to
    return barring(dataclasses.replace(claim, measured=measured), easier)


def sooner(factor: int, reached: Sequence["Reached | None"], pixels: float, own: float) -> Claim:
    """Whether latents are where pixels end before these are, their first stage's training and encoding counted.

    `own` are the seconds that latents had; where they are fewer, what was not reached may have been reached in time.
    """
    text = f"LDM-{factor} is where pixels end sooner, the training of its first stage and encoding included"
    there = [s for s in reached if s is not None]
    if len(there) < len(reached):
        outcome: Outcome = OPEN if there or own < pixels or len(reached) < 2 else FAILS
        told = f"reached in {len(there)} of {len(reached)} samplings, in {own:,.0f} s against {pixels:,.0f} s of pixels"
        return Claim(text, outcome, told)
    found, bounds = Spread.of([s.seconds for s in there]), sum(s.latest for s in there)
    most, least = ("at most ", "at least ") if bounds else ("", "")
    told = f"after {most}{found.told()} s of {pixels:,.0f} s: {least}{pixels / max(found.value, 1e-9):.1f} times"
    claim = judged(text, told, Pair(found, Spread(pixels, 0.0, max(found.count, 2))))
    return barring(claim, FAILS) if bounds else claim  # it may have been sooner than the bound
