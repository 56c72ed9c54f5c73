"""`cost`: how much cheaper is a latent than a pixel (Rombach et al., 2022, table 6: 2.7 times faster, 1.6 times better)?

LDM-4 and LDM-8 beside LDM-1, the same network at the same training FLOPs: speed, the seconds of training until a distance
is reached, energy and CO2. The runs are those of `compression` where it was run in the same folder.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from sfumato.studies import compression, recipes
from sfumato.studies.compression import Trained
from sfumato.studies.desk import Desk
from sfumato.studies.energy import GRID, Energy, kwh, metered
from sfumato.studies.measure import Row, distance, generated
from sfumato.studies.result import Figure, Result, Table, plot
from sfumato.studies.verdict import FAILS, HOLDS, Claim, better
from sfumato.training.rate import rate
from sfumato.training.run import objective_of

FACTORS = (1, 4, 8)
PAPER_SPEED, PAPER_QUALITY = 2.7, 1.6  # table 6
Curve = list[tuple[float, float]]  # (seconds, distance)


def study(desk: Desk, watts: float | None = None, grid: float = GRID) -> Result:
    """Train what is not there, measure, judge."""
    several = compression.trained(desk, FACTORS, ("kl",))
    name, energy = distance(desk), power(desk, several, watts)
    rows = {t.factor: generated(desk, f"compression-{compression.slug(t)}", t.model) for t in several}
    curves = {t.factor: timed(desk, t) for t in several}
    aim = rows[1][name].value  # what pixels reach at the end
    reached = {t.factor: reach(curves[t.factor], aim) for t in several}
    result = Result(
        "cost", "Latents beside pixels",
        f"LDM-4 and LDM-8 beside LDM-1 on {desk.name} at {desk.train.size} pixels: one network, the same training FLOPs. "
        f"Seconds are until the {name} that pixels end at, {aim:.1f}, read off the curve between measured points. "
        f"Energy is {energy.how}: {energy.watts:.0f} W; CO2 by {grid:g} kg a kWh.",
        protocol={**compression.protocol(desk), "energy": dataclasses.asdict(energy), "kg CO2 a kWh": grid},
    )  # fmt: skip
    lines = []
    for t in several:
        spent = t.images / t.rate
        used = kwh(energy.watts, spent)
        seconds = reached[t.factor]
        lines.append([
            t.name, f"{t.rate:,.1f}", f"{rows[t.factor].rate:.2f}", rows[t.factor][name].told(), f"{spent:,.0f} s",
            f"{seconds:,.0f} s" if seconds is not None else "not reached", f"{1000 * used:.1f} Wh", f"{1000 * used * grid:.1f} g",
        ])  # fmt: skip
    head = ["", "training images/s", "sampled pictures/s", name, "training", f"until {aim:.1f}", "energy", "CO2"]
    result.tables.append(Table("At equal training FLOPs", head, lines))
    lines_ = [(t.name, [p[0] for p in curves[t.factor]], [p[1] for p in curves[t.factor]]) for t in several]
    path = plot(desk.folder / "cost" / "seconds.png", lines_, "seconds of training", name, log=(True, True))
    result.figures.append(Figure(path, f"{name} against seconds of training"))
    result.figures += [Figure(rows[t.factor].sheet, f"{t.name}: {t.images:,} images seen") for t in several]
    result.claims += claims(desk, several, rows, reached)
    return result


def timed(desk: Desk, t: Trained) -> Curve:
    """The curve along training against seconds."""
    return [(pflop * 1e15 / t.flops / t.rate, value) for pflop, value in compression.along(desk, t)]


def reach(curve: Curve, aim: float) -> float | None:
    """When a curve first is as low as `aim`, linear between its points; its first point where that is lower; None: never."""
    before: tuple[float, float] | None = None
    for seconds, value in sorted(curve):
        if value <= aim:
            if before is None or before[1] <= value:
                return seconds
            return before[0] + (seconds - before[0]) * (before[1] - aim) / (before[1] - value)
        before = seconds, value
    return None


def power(desk: Desk, several: Sequence[Trained], watts: float | None) -> Energy:
    """The power of training, over some seconds of it."""

    def measure() -> dict[str, object]:
        t = several[-1]
        fields = recipes.denoiser(t.first, recipes.by_class() if desk.labelled else None)
        recipe = desk.recipe("power", fields, 1_000_000)
        objective = objective_of(recipe, desk.run(f"denoiser-{t.kind}-f{t.factor}"), desk.device)
        with metered(desk.device, watts) as found:
            rate(objective, recipe.training, desk.device, seconds=10.0)
        return dataclasses.asdict(found)

    return Energy(**desk.once("power", [watts, str(desk.device)], measure))


def claims(
    desk: Desk, several: Sequence[Trained], rows: Mapping[int, Row], reached: Mapping[int, float | None]
) -> list[Claim]:
    """Table 6's two numbers beside ours."""
    name, by = distance(desk), {t.factor: t for t in several}
    made = []
    for f in (4, 8):
        gain = by[f].rate / by[1].rate
        made.append(Claim(
            f"LDM-{f} trains at least {PAPER_SPEED:g} times as many images a second as LDM-1",
            HOLDS if gain >= PAPER_SPEED else FAILS, f"{gain:.1f} times",
        ))  # fmt: skip
        one, other = rows[f][name], rows[1][name]
        ratio = other.value / one.value
        made.append(Claim(
            f"LDM-{f}'s distance is at least {PAPER_QUALITY:g} times lower at equal compute",
            better(one, other, by=1 - 1 / PAPER_QUALITY), f"{one.told()} against {other.told()}: {ratio:.2f} times",
        ))  # fmt: skip
        seconds, pixels = reached[f], by[1].images / by[1].rate
        told = (
            "never"
            if seconds is None
            else f"after {seconds:,.0f} s of {pixels:,.0f} s, {pixels / max(seconds, 1e-9):.1f} times sooner"
        )
        made.append(
            Claim(
                f"LDM-{f} is where pixels end sooner",
                HOLDS if seconds is not None and seconds < pixels else FAILS,
                told,
            )
        )
    return made
