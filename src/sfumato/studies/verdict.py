"""Numbers with their spread, and what they say of a claim."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Outcome = Literal["holds here", "does not hold here", "not decided here"]
HOLDS: Final = "holds here"
FAILS: Final = "does not hold here"
OPEN: Final = "not decided here"
# two-sided 95 % quantiles of Student's t by degrees of freedom; between two the fewer degrees count
STUDENT = {
    1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 8: 2.31, 10: 2.23, 15: 2.13, 20: 2.09, 30: 2.04, 60: 2.00, 120: 1.98,
}  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """A mean over sampling seeds with their standard deviation (0 for a single one)."""

    value: float
    spread: float = 0.0
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The mean and the standard deviation of some values."""
        if not all(map(math.isfinite, values)):
            return cls(math.fsum(values), math.nan, len(values))
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.spread / math.sqrt(self.count)

    def minus(self, other: "Spread") -> "Spread":
        """The difference of two means that were sampled apart."""
        return Spread(self.value - other.value, math.hypot(self.spread, other.spread), min(self.count, other.count))

    def over(self, other: "Spread") -> "Spread":
        """The ratio of two means that were sampled apart, its spread to first order; nan where the lower is not above 0."""
        count = min(self.count, other.count)
        if not other.value > 0:
            return Spread(math.nan, math.nan, count)
        value = self.value / other.value
        return Spread(value, math.hypot(self.spread, value * other.spread) / other.value, count)

    def told(self, digits: int = 3) -> str:
        """«41.2 ± 0.3», to so many significant digits of the value."""
        if not math.isfinite(self.value):
            return str(self.value)
        places = max(digits - 1 - (math.floor(math.log10(abs(self.value))) if self.value else 0), 0)
        text = f"{self.value:,.{places}f}"
        return f"{text} ± {self.spread:,.{places}f}" if self.count > 1 else text

    def mean(self, digits: int = 3) -> str:
        """«41.2 ± 0.3» with the standard error in place of the deviation."""
        return Spread(self.value, self.error, self.count).told(digits)


@dataclass(frozen=True)
class Pair:
    """Two means of which one is to beat the other: `better`'s arguments."""

    one: Spread
    other: Spread
    lower: bool = True
    by: float = 0.0

    @property
    def outcome(self) -> Outcome:
        """What `better` says."""
        return better(self.one, self.other, lower=self.lower, by=self.by)

    @classmethod
    def over(cls, several: Sequence["Pair"]) -> "Pair":
        """The pair of several trainings: means over the trainings, whose spread is what counts then."""
        one, other = (
            Spread.of([p.value for p in side]) for side in zip(*((p.one, p.other) for p in several), strict=True)
        )
        return cls(one, other, several[0].lower, several[0].by)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, what was measured here, and whether the two agree: all `pairs`, where it hangs on such."""

    text: str
    outcome: Outcome
    measured: str
    pairs: tuple[Pair, ...] = ()
    barred: Outcome | None = None  # what may not be said of it, for what else differs helps to that

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {"text": self.text, "outcome": self.outcome, "measured": self.measured}


def judged(text: str, measured: str, *pairs: Pair) -> Claim:
    """A claim that holds where every pair is as it says."""
    return Claim(text, every([p.outcome for p in pairs]), measured, pairs)


def barring(claim: Claim, outcome: Outcome) -> Claim:
    """The claim, open where it would be told this outcome, by one training or by several."""
    return dataclasses.replace(claim, barred=outcome, outcome=OPEN if claim.outcome == outcome else claim.outcome)


def together(several: Sequence[Claim]) -> Outcome:
    """What several trainings say of one claim. Where it hangs on pairs of means, these are tested with the trainings'
    means as the values; else nothing is decided unless all say the same."""
    if not all(c.pairs for c in several) or len({len(c.pairs) for c in several}) > 1:
        return agreed([c.outcome for c in several])
    outcome = every([Pair.over(pairs).outcome for pairs in zip(*(c.pairs for c in several), strict=True)])
    return OPEN if outcome in {c.barred for c in several} else outcome


def better(one: Spread, other: Spread, *, lower: bool = True, by: float = 0.0) -> Outcome:
    """Whether `one` beats `other` by more than the share `by` of it: Welch's test at 95 %.

    Nothing is decided where a mean is of a single value or not finite, nor where the difference lies within what chance
    explains.
    """
    if min(one.count, other.count) < 2 or not all(
        map(math.isfinite, (one.value, one.spread, other.value, other.spread))
    ):
        return OPEN
    scale = 1 - by if lower else 1 + by
    gap = other.value * scale - one.value if lower else one.value - other.value * scale
    a, b = one.error**2, (scale * other.error) ** 2
    doubt = (
        math.sqrt(a + b) * quantile((a + b) ** 2 / (a**2 / (one.count - 1) + b**2 / (other.count - 1)))
        if a + b
        else 0.0
    )
    if abs(gap) <= doubt:
        return OPEN
    return HOLDS if gap > 0 else FAILS


def paired(text: str, worse: Sequence[float], well: Sequence[float]) -> Claim:
    """Whether losses, or bits, of the same pictures are higher in the first list."""
    gaps = Spread.of([a - b for a, b in zip(worse, well, strict=True)])
    one, other = Spread.of(well).value, Spread.of(worse).value
    pair = Pair(gaps, Spread(0.0, 0.0, max(gaps.count, 2)), lower=False)
    return judged(text, f"{one:.4f} against {other:.4f}, {gaps.mean(4)} a picture", pair)


def quantile(freedom: float) -> float:
    """Student's t for a two-sided test at 95 %."""
    return STUDENT[max(k for k in STUDENT if k <= max(freedom, 1.0))]


def agreed(outcomes: Sequence[Outcome]) -> Outcome:
    """What several trainings say of one claim: nothing is decided unless all say the same."""
    return outcomes[0] if len(set(outcomes)) == 1 else OPEN


def every(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a claim that has parts: it fails with any, and is open while any is."""
    if FAILS in outcomes:
        return FAILS
    return OPEN if OPEN in outcomes or not outcomes else HOLDS
