"""`stability`: are GANs hard to train (Rombach et al., 2022, sections 1 and 2: «difficult to optimize»)?

A GAN and latent diffusion, each trained at its own learning rate, at a quarter and at four times of it, and once more from
another seed: how much what comes out hangs on either. The GAN is also trained without its regularisation (R1), for which
diffusion has no counterpart. A training that ends in numbers that are not finite counts as the worst of all. One pair of
seeds says nothing of seeds: that claim is decided from two trainings of all on.
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
APART = 1000  # between the seeds of two trainings; those of `--trainings` are nearer
NOT_FINITE = "the numbers of a training are not finite"
FIRST, MEASURING = 0.15, 0.2  # of the hours: both first stages, and sampling


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
    several = trials(desk, *first_stages(desk, FIRST / 2 * desk.hours))
    hours = (1 - FIRST - MEASURING) * desk.hours / len(several)
    rows = {(t.family, t.change): row for t in several if (row := tried(desk, t, several, hours)) is not None}
    name = distance(desk)
    result = Result(
        "stability",
        "How hard a GAN is to train",
        f"A GAN and latent diffusion of {desk.name} at {desk.train.size} pixels, each trained {len(RATES) + 1} times for about "
        f"{hours * 60:.1f} minutes: at its own learning rate, at a quarter and at four times of it, and from another seed, that "
        "of the first stage too; the GAN once more without R1. The GAN learns by AdamW, latent diffusion by Muon, each as its "
        "recipe has it. All trainings of a family see the same number of images. The time of first stages is not in it.",
        protocol=desk.protocol(**{"minutes each": hours * 60, "rates": RATES}),
        claims=claims({pair: excess(desk, row[name]) for pair, row in rows.items()}),
    )
    result.tables.append(table(desk, several, rows))
    there = {family: [r for r in RATES if (family, rated(r)) in rows] for family in (GAN, LDM)}
    if drawn := [
        (f, several, [rows[f, rated(r)][name].value for r in several]) for f, several in there.items() if several
    ]:
        path = plot(desk.folder / "rates.png", drawn, "learning rate, times the recipe's", name, log=(True, True))
        result.figures.append(Figure(path, f"{name} against the learning rate"))
    result.figures.append(Figure(real(desk).sheet, "Held-out pictures"))
    result.figures += [Figure(row.sheet, f"{family}, {change}") for (family, change), row in rows.items()]
    return result


def rated(factor: float) -> str:
    """What a training at so many times the rate is called."""
    return "as it is" if factor == 1 else f"rate x {factor:g}"


def first_stages(desk: Desk, hours: float) -> tuple[Path, Path]:
    """The first stage of latent diffusion, and the same from another seed, of as many images."""
    one, name = desk.latents(hours), "first-latents-again"
    images = desk.plan("images")[one.parent.name]
    again = seeded(recipes.latents(desk.train.size), desk.seed + APART)
    return one, desk.trained(name, again, desk.planned(name, again, lambda: images))


def seeded(fields: Fields, seed: int) -> Fields:
    """A recipe with another seed."""
    return {**fields, "training": {**fields["training"], "seed": seed}}


def trials(desk: Desk, stage: Path, other: Path) -> list[Trial]:
    """All trainings, a family's own first; `other` is the first stage from another seed."""
    cond, seed = recipes.by_class() if desk.labelled else None, desk.seed + APART
    gan, rate = recipes.gan(), GanConfig().rate

    def changed(**family: Any) -> Fields:
        return {**gan, "family": {**gan["family"], **family}}

    def latent(**training: Any) -> Fields:
        return recipes.denoiser(stage, cond, **training)

    usual: float = latent()["training"]["rate"]
    return [
        *(Trial(GAN, rated(r), changed(rate=rate * r)) for r in sorted(RATES, key=lambda r: r != 1)),
        Trial(GAN, AGAIN, seeded(gan, seed)),
        Trial(GAN, BARE, changed(r1=0.0)),
        *(Trial(LDM, rated(r), latent(rate=usual * r)) for r in sorted(RATES, key=lambda r: r != 1)),
        Trial(LDM, AGAIN, seeded(recipes.denoiser(other, cond), seed)),
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
            told = str(error).split(";")[0]
            say.print(f"{told}; it counts as the worst", highlight=False)
            desk.keep_plan("ended", {**ended, trial.run: told})
    return None


def table(desk: Desk, several: Sequence[Trial], rows: Mapping[tuple[str, str], Row]) -> Table:
    """What each training came to."""
    measures = [distance(desk), *(short(desk, m) for m in ("KID", "precision", "recall", "coverage"))]
    lines = [[title, "", "", *(cell(row, m) for m in measures)] for title, row in reals(desk).items()]
    for t in several:
        row, images = rows.get((t.family, t.change)), max((n for n, _ in desk.elapsed(t.run)), default=0)
        told = [cell(row, m) for m in measures] if row else ["not finite", *[""] * (len(measures) - 1)]
        lines.append([f"{t.family}, {t.change}", f"{images:,}", f"{desk.seconds(t.run) / 60:.1f}", *told])
    return Table("The same recipe, changed", ["", "images seen", "minutes", *measures], lines)


def claims(found: Mapping[tuple[str, str], Spread]) -> list[Claim]:
    """What the paper says of GANs; `found` are distances above that of as many real pictures."""
    made = [hanging(found), seeds(found)]
    text = "Without its regularisation (R1) a GAN comes out worse"
    if (GAN, rated(1)) in found and (GAN, BARE) in found:
        one, other = found[GAN, rated(1)], found[GAN, BARE]
        made.append(judged(text, f"{one.told()} with, {other.told()} without, above real pictures", Pair(one, other)))
    else:
        made.append(Claim(text, HOLDS if (GAN, rated(1)) in found else OPEN, NOT_FINITE))
    return made


def seeds(found: Mapping[tuple[str, str], Spread]) -> Claim:
    """Whether the seed matters more to a GAN: how far two trainings lie apart. One pair of them decides nothing, for another
    pair would lie apart by another length."""
    text = "A GAN's distance hangs on the seed of its training more than that of latent diffusion"
    by = {f: [found[f, change] for change in (rated(1), AGAIN) if (f, change) in found] for f in (GAN, LDM)}
    if ended := unfinished(text, by, 2):
        return ended
    one, other = (apart(*by[family]) for family in (GAN, LDM))
    told = f"two trainings differ by {one.told()} and {other.told()} of their mean"
    return Claim(text, OPEN, told, (Pair(one, other, lower=False),))


def unfinished(text: str, by: Mapping[str, Sequence[Spread]], whole: int) -> Claim | None:
    """The claim where a family has fewer than `whole` trainings whose numbers are finite: it is the one that is hard to train."""
    ended = [family for family in by if len(by[family]) < whole]
    if not ended:
        return None
    outcome: Outcome = OPEN if len(ended) > 1 else HOLDS if ended == [GAN] else FAILS
    return Claim(text, outcome, f"in one of the trainings the numbers of {' and '.join(ended)} are not finite")


def hanging(found: Mapping[tuple[str, str], Spread]) -> Claim:
    """Whether the learning rate matters more to a GAN: the worst over the best of its rates."""
    text = "A GAN's distance hangs on its learning rate more than that of latent diffusion"
    by = {f: [found[f, rated(r)] for r in RATES if (f, rated(r)) in found] for f in (GAN, LDM)}
    if ended := unfinished(text, by, len(RATES)):
        return ended
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
