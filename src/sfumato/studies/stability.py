"""`stability`: are GANs hard to train (Rombach et al., 2022, sections 1 and 2: «difficult to optimize»)?

A GAN and latent diffusion, each trained at its own learning rate, at a quarter and at four times of it, and once more from
another seed: how much what comes out hangs on either. The GAN is also trained without its regularisation (R1), for which
diffusion has no counterpart. A training that ends in numbers that are not finite counts as the worst of all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.families.gan import GanConfig
from sfumato.studies import recipes
from sfumato.studies.desk import Desk, say
from sfumato.studies.measure import Row, cell, distance, excess, generated, real, reals, short
from sfumato.studies.result import Figure, Result, Table, plot
from sfumato.studies.verdict import FAILS, HOLDS, OPEN, Claim, Outcome, Pair, Spread, judged

Fields = dict[str, Any]
GAN, LDM = "GAN", "latent diffusion"
RATES = (0.25, 1.0, 4.0)  # of each family's own
AGAIN = "another seed"
BARE = "without R1"
NOT_FINITE = "the numbers of a training are not finite"
FIRST, MEASURING = 0.1, 0.2  # of the hours


@dataclass(frozen=True)
class Trial:
    """One training of a family, and what differs in it."""

    family: str
    change: str  # «rate x 4», «another seed», «without R1»
    fields: Fields

    @property
    def run(self) -> str:
        """Its run folder's name."""
        return "-".join([self.family.replace(" ", "-"), *self.change.replace(".", "").split()])


def study(desk: Desk) -> Result:
    """Train what is not there, measure, judge."""
    desk.drawable(recipes.gan())
    stage = desk.latents(FIRST * desk.hours)
    several = trials(desk, stage)
    hours = (1 - FIRST - MEASURING) * desk.hours / len(several)
    rows = {(t.family, t.change): row for t in several if (row := tried(desk, t, several, hours)) is not None}
    name = distance(desk)
    result = Result(
        "stability",
        "How hard a GAN is to train",
        f"A GAN and latent diffusion of {desk.name} at {desk.train.size} pixels, each trained {len(RATES) + 1} times for about "
        f"{hours * 60:.1f} minutes: at its own learning rate, at a quarter and at four times of it, and from another seed; the "
        "GAN once more without R1. All trainings of a family see the same number of images. The time of the first stage is "
        "not in it.",
        protocol=desk.protocol(**{"minutes each": hours * 60, "rates": RATES}),
        claims=claims({pair: excess(desk, row[name]) for pair, row in rows.items()}),
    )
    result.tables.append(table(desk, several, rows))
    drawn = [
        (family, [r for r in RATES if (family, rated(r)) in rows], [rows[family, rated(r)][name].value for r in RATES if (family, rated(r)) in rows])
        for family in (GAN, LDM)
    ]  # fmt: skip
    path = plot(desk.folder / "rates.png", drawn, "learning rate, times the recipe's", name, log=(True, True))
    result.figures.append(Figure(path, f"{name} against the learning rate"))
    result.figures.append(Figure(real(desk).sheet, "Held-out pictures"))
    result.figures += [Figure(row.sheet, f"{family}, {change}") for (family, change), row in rows.items()]
    return result


def rated(factor: float) -> str:
    """What a training at so many times the rate is called."""
    return "as it is" if factor == 1 else f"rate x {factor:g}"


def trials(desk: Desk, stage: Path) -> list[Trial]:
    """All trainings, a family's own first."""
    cond, seed = recipes.by_class() if desk.labelled else None, desk.seed + 1000
    gan, rate = recipes.gan(), GanConfig().rate

    def changed(**family: Any) -> Fields:
        return {**gan, "family": {**gan["family"], **family}}

    def latent(**training: Any) -> Fields:
        return recipes.denoiser(stage, cond, **training)

    usual = latent()["training"]["rate"]
    return [
        *(Trial(GAN, rated(r), changed(rate=rate * r)) for r in sorted(RATES, key=lambda r: r != 1)),
        Trial(GAN, AGAIN, {**gan, "training": {**gan["training"], "seed": seed}}),
        Trial(GAN, BARE, changed(r1=0.0)),
        *(Trial(LDM, rated(r), latent(rate=usual * r)) for r in sorted(RATES, key=lambda r: r != 1)),
        Trial(LDM, AGAIN, latent(seed=seed)),
    ]


def tried(desk: Desk, trial: Trial, several: Sequence[Trial], hours: float) -> Row | None:
    """What a training comes to; None where its numbers ended, which is kept, so that it is not tried again."""
    own = next(t for t in several if t.family == trial.family)
    count = desk.budget(own.run, own.fields, hours)
    images = desk.planned(trial.run, trial.fields, lambda: count)
    ended = desk.plan("ended")
    if trial.run not in ended:
        try:
            model = desk.trained(trial.run, trial.fields, images)
            return generated(desk, trial.run, model, guidance=1.0)
        except FloatingPointError as error:
            say.print(f"{error}; it counts as the worst", highlight=False)
            desk.keep_plan("ended", {**ended, trial.run: str(error)})
    return None


def table(desk: Desk, several: Sequence[Trial], rows: Mapping[tuple[str, str], Row]) -> Table:
    """What each training came to."""
    measures = [distance(desk), *(short(desk, m) for m in ("KID", "precision", "recall", "coverage"))]
    lines = [[title, "", "", *(cell(row, m) for m in measures)] for title, row in reals(desk).items()]
    for t in several:
        row, images = rows.get((t.family, t.change)), desk.plan("images")[t.run]
        told = [cell(row, m) for m in measures] if row else ["not finite", *[""] * (len(measures) - 1)]
        lines.append([f"{t.family}, {t.change}", f"{images:,}", f"{desk.seconds(t.run) / 60:.1f}", *told])
    return Table("The same recipe, changed", ["", "images seen", "minutes", *measures], lines)


def claims(found: Mapping[tuple[str, str], Spread]) -> list[Claim]:
    """What the paper says of GANs; `found` are distances above that of as many real pictures."""
    made = [hanging(found)]
    text, twice = (
        "A GAN's distance hangs on the seed of its training more than that of latent diffusion",
        (rated(1), AGAIN),
    )
    if all((family, change) in found for family in (GAN, LDM) for change in twice):
        one, other = (apart(*(found[family, change] for change in twice)) for family in (GAN, LDM))
        made.append(judged(
            text,
            f"two trainings differ by {one.told()} and {other.told()} of their mean",
            Pair(one, other, lower=False),
        ))  # fmt: skip
    else:
        made.append(Claim(text, OPEN, NOT_FINITE))
    text = "Without its regularisation (R1) a GAN comes out worse"
    if (GAN, rated(1)) in found and (GAN, BARE) in found:
        one, other = found[GAN, rated(1)], found[GAN, BARE]
        made.append(judged(text, f"{one.told()} with, {other.told()} without, above real pictures", Pair(one, other)))
    else:
        made.append(Claim(text, HOLDS if (GAN, rated(1)) in found else OPEN, NOT_FINITE))
    return made


def hanging(found: Mapping[tuple[str, str], Spread]) -> Claim:
    """Whether the learning rate matters more to a GAN: the worst over the best of its rates."""
    text = "A GAN's distance hangs on its learning rate more than that of latent diffusion"
    by = {f: [found[f, rated(r)] for r in RATES if (f, rated(r)) in found] for f in (GAN, LDM)}
    if ended := [family for family in by if len(by[family]) < len(RATES)]:
        outcome: Outcome = OPEN if len(ended) > 1 else HOLDS if ended == [GAN] else FAILS
        return Claim(text, outcome, f"with one of the rates the numbers of {' and '.join(ended)} are not finite")
    one, other = (worst(by[family]) for family in (GAN, LDM))
    told = "; ".join(f"{f} {', '.join(s.told() for s in by[f])}" for f in by)
    return judged(
        text,
        f"at {', '.join(f'{r:g}' for r in RATES)} times the rate, above real pictures: {told}; the worst over the best "
        f"{one.told()} and {other.told()}",
        Pair(one, other, lower=False),
    )


def worst(several: Sequence[Spread]) -> Spread:
    """The largest over the smallest."""
    ordered = sorted(several, key=lambda s: s.value)
    return ordered[-1].over(ordered[0])


def apart(one: Spread, other: Spread) -> Spread:
    """How far two distances lie apart, as a share of their mean."""
    gap = one.minus(other)
    return dataclasses.replace(gap, value=abs(gap.value)).over(Spread((one.value + other.value) / 2, 0.0, gap.count))
