"""Numbers with their spread, and what they say of a claim."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Outcome = Literal["holds here", "does not hold here", "not decided here"]
HOLDS: Final = "holds here"
FAILS: Final = "does not hold here"
OPEN: Final = "not decided here"
SIGMAS = 2.0  # standard errors that a difference must have before it decides anything


@dataclass(frozen=True)
class Spread:
    """A mean over sampling seeds with their standard deviation (0 for a single one)."""

    value: float
    spread: float = 0.0
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The mean and the standard deviation of some values."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.spread / math.sqrt(self.count)

    def told(self, digits: int = 3) -> str:
        """«41.2 ± 0.3», to so many significant digits of the value."""
        if not math.isfinite(self.value):
            return str(self.value)
        places = max(digits - 1 - (math.floor(math.log10(abs(self.value))) if self.value else 0), 0)
        text = f"{self.value:,.{places}f}"
        return f"{text} ± {self.spread:,.{places}f}" if self.count > 1 else text


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, what was measured here, and whether the two agree."""

    text: str
    outcome: Outcome
    measured: str

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def better(one: Spread, other: Spread, *, lower: bool = True, by: float = 0.0) -> Outcome:
    """Whether `one` beats `other`: by more than the share `by` of it, and by more than two standard errors.

    Where either falls short of two standard errors in both directions nothing is decided.
    """
    gap = other.value * (1 - by) - one.value if lower else one.value - other.value * (1 + by)
    doubt = SIGMAS * math.hypot(one.error, other.error)
    if abs(gap) <= doubt:
        return OPEN
    return HOLDS if gap > 0 else FAILS


def every(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a claim that has parts: it fails with any, and is open while any is."""
    if FAILS in outcomes:
        return FAILS
    return OPEN if OPEN in outcomes or not outcomes else HOLDS
