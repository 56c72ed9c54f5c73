"""Where a sampler steps: N + 1 rows of falling noise, the first where it starts, the last clean (alpha 1, sigma 0).

The end of the path belongs to the grid, not to the sampler. Whatever the schedule's own last row is, the step after it
goes to the clean end, where x is the estimate of x_0 itself; so the last noisy row decides how much that jump leaves
out. Published samplers stop at the first row of their table and leave its noise in: `clean=False` gives their grids.

Rows are numbers on the host in float64. A sampler multiplies tensors with them and never asks the device for one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.diffusion.schedule import Scales, Schedule

TOP, FAR = 20.0, 200.0  # ratio-spaced grids count down from TOP where they start at pure noise, or at ratios above FAR
END = 0.02  # and end here, where a schedule has no smallest ratio of its own (benchmarks/samplers.py)


class Row(NamedTuple):
    """One place on the path; x there is alpha x_0 + sigma eps."""

    t: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha, infinite for pure noise."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma), infinite at the ends."""
        return math.inf if not self.sigma else -math.inf if not self.alpha else math.log(self.alpha / self.sigma)


@dataclass(frozen=True, eq=False)
class Grid:
    """Rows of falling noise, (N + 1,) float64 each, and the schedule that answers for times between them."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    schedule: Schedule | None = None

    @property
    def steps(self) -> int:
        """N, the number of steps."""
        return len(self.t) - 1

    def rows(self) -> list[Row]:
        """The rows as numbers."""
        return [Row(*r) for r in zip(self.t.tolist(), self.alpha.tolist(), self.sigma.tolist(), strict=True)]

    def pairs(self) -> Iterator[tuple[Row, Row]]:
        """Neighbouring rows, N of them."""
        rows = self.rows()
        return zip(rows[:-1], rows[1:], strict=True)

    def begin(self, noise: Tensor) -> Tensor:
        """x at the first row of a path that begins with nothing but noise, of noise with variance 1: as large as x is there."""
        first = self.rows()[0]
        return math.hypot(first.alpha, first.sigma) * noise

    def at(self, ratio: float) -> Row:
        """The row at sigma / alpha = ratio in [0, infinity], the schedule's nearest where it has no such row."""
        t, alpha, sigma = self.over(torch.tensor(ratio, dtype=torch.float64).log())
        return Row(float(t), float(alpha), float(sigma))

    def over(self, log_ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t, alpha and sigma where log(sigma / alpha) is as given, (...) float64. Needs the schedule."""
        if self.schedule is None:
            raise ValueError("this sampler needs rows between rows: give the grid its schedule")
        t = self.schedule.time(Scales.of(log_ratio)).clamp(0, 1)
        alpha, sigma = self.schedule(t)
        return t, alpha, sigma


def even(schedule: Schedule, steps: int, start: float = 1.0, *, clean: bool = True) -> Grid:
    """N = `steps` equal steps of time, t_k = start (1 - k / N). `start` below 1 begins part of the way down: image-to-image.

    All grids raise `ValueError` where `steps` is not in 1..1000 or `start` not in (0, 1].
    """
    _check(steps, start)
    return _grid(schedule, torch.linspace(start, 0, steps + 1, dtype=torch.float64), clean)


def trailing(schedule: Schedule, steps: int, start: float = 1.0, *, rows: int = 1000) -> Grid:
    """Rows of a table counted down from its last, 999, 979, ... for 50: Lin et al. (2024), table 2."""
    _check(steps, start)
    places = torch.linspace(start * rows, 0, steps + 1, dtype=torch.float64)[:-1].round() - 1
    if steps > start * rows:
        places = torch.linspace(start * (rows - 1), 0, steps + 1, dtype=torch.float64)[:-1]
    return _close(schedule, _row_times(schedule, places, rows))


def leading(
    schedule: Schedule, steps: int, start: float = 1.0, *, rows: int = 1000, offset: int = 1, clean: bool = True
) -> Grid:
    """Rows of a table counted up from its first, 1, 21, ... 981 for 50: the spacing of DDIM, LDM and SD.

    It starts below the noise that it is given; it is here for comparisons. With `clean=False` it ends on the table's
    first row, as published. Unlike the published one it has the asked number of steps for every number.
    """
    _check(steps, start)
    count = int(start * rows)
    places = torch.arange(steps, dtype=torch.float64).flip(0) * (count // steps or start * rows / steps)
    if float(places[0]) + offset <= rows - 1:
        places = places + offset
    t = _row_times(schedule, places, rows)
    if not clean:
        return _grid(schedule, torch.cat([t, t.new_zeros(1)]), clean=False)
    return _close(schedule, t)


def sgm_uniform(schedule: Schedule, steps: int, start: float = 1.0, *, rows: int = 1000) -> Grid:
    """Rows of a table, evenly from its last towards its first and not reaching it: Stability's generative-models."""
    _check(steps, start)
    places = torch.linspace(start * (rows - 1), 0, steps + 1, dtype=torch.float64)[:-1]
    if steps <= start * rows:
        places = places.floor()
    return _close(schedule, _row_times(schedule, places, rows))


def karras(schedule: Schedule, steps: int, start: float = 1.0, *, rho: float = 7.0, end: float | None = None) -> Grid:
    """Equal steps of (sigma / alpha)^(1 / rho): Karras et al. (2022), eq. 5. `end` is the last ratio before clean."""
    high, low = _ends(schedule, steps, start, end)
    line = torch.linspace(0, 1, steps, dtype=torch.float64)
    return _spaced(schedule, start, torch.lerp(high ** (1 / rho), low ** (1 / rho), line).log() * rho)


def exponential(schedule: Schedule, steps: int, start: float = 1.0, *, end: float | None = None) -> Grid:
    """Equal steps of log(sigma / alpha): Lu et al. (2022), section 4.3. `end` is the last ratio before clean."""
    return polyexponential(schedule, steps, start, rho=1.0, end=end)


def polyexponential(
    schedule: Schedule, steps: int, start: float = 1.0, *, rho: float = 1.0, end: float | None = None
) -> Grid:
    """log r = log low + (1 - k / (N - 1))^rho (log high - log low), r = sigma / alpha: k-diffusion's, (N + 1,) rows.

    `rho` above 1 stays longer near clean; 1 is `exponential`. `end` is the last ratio before clean.
    """
    high, low = _ends(schedule, steps, start, end)
    line = torch.linspace(1, 0, steps, dtype=torch.float64) ** rho
    return _spaced(schedule, start, torch.lerp(low.log(), high.log(), line))


def beta(schedule: Schedule, steps: int, start: float = 1.0, *, a: float = 0.6, b: float = 0.6) -> Grid:
    """Times at even quantiles of Beta(a, b), both 1/2 or more: denser at both ends (Lee et al., 2024, section 3.2)."""
    _check(steps, start)
    if min(a, b) < 0.5:
        raise ValueError(f"a and b of the beta grid are 1/2 at the least; got {a} and {b}")
    angle = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)  # t = sin² angle: no pole at the ends
    density = angle.sin() ** (2 * a - 1) * angle.cos().clamp(min=0) ** (2 * b - 1)
    mass = torch.cat([density.new_zeros(1), (density[1:] + density[:-1]).cumsum(0)])
    want = mass[-1] * torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    high = torch.searchsorted(mass, want).clamp(1, len(mass) - 1)
    share = (want - mass[high - 1]) / (mass[high] - mass[high - 1])
    t = torch.lerp(angle[high - 1], angle[high], share).sin() ** 2
    return _grid(schedule, start * t, clean=True)


def shifted(schedule: Schedule, steps: int, start: float = 1.0, *, shift: float = 3.0) -> Grid:
    """Even steps moved towards noise, t -> s t / (1 + (s - 1) t): flows of large pictures (Esser et al., 2024, eq. 23)."""
    _check(steps, start)
    if not shift > 0:
        raise ValueError(f"a shift must be above 0; got {shift}")
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return _grid(schedule, start * (shift * t / (1 + (shift - 1) * t)), clean=True)


def default(schedule: Schedule, steps: int, start: float = 1.0) -> Grid:
    """The grid for a model of which nothing else is known: `karras`, the best beside sampler `deis`; docs/diffusion.md."""
    return karras(schedule, steps, start)


GRIDS: dict[str, Callable[..., Grid]] = {
    g.__name__: g for g in (even, trailing, leading, sgm_uniform, karras, exponential, polyexponential, beta, shifted)
}


def grid(name: str) -> Callable[..., Grid]:
    """The grid of this name. Raises `ValueError` with the known names."""
    if name not in GRIDS:
        raise ValueError(f"unknown grid {name!r}; known: {', '.join(GRIDS)}")
    return GRIDS[name]


def _check(steps: int, start: float) -> None:
    if not 1 <= steps <= 1000:
        raise ValueError(f"steps lie between 1 and 1000; got {steps}")
    if not 0.0 < start <= 1.0:
        raise ValueError(f"the start lies above 0 and at most at 1; got {start}")


def _row_times(schedule: Schedule, places: Tensor, rows: int) -> Tensor:
    """Times of rows 0 to rows - 1; where t = 0 is clean already, a table of it begins one row above."""
    if float(schedule(places.new_zeros(())).sigma):
        return places / (rows - 1)
    return (places + 1) / rows


def _grid(schedule: Schedule, t: Tensor, clean: bool) -> Grid:
    alpha, sigma = (s.clone() for s in schedule(t))
    if clean:
        alpha[-1], sigma[-1] = 1, 0
    return Grid(t, alpha, sigma, schedule)


def _close(schedule: Schedule, t: Tensor) -> Grid:
    """The grid of these N times, with the clean end after them."""
    return _grid(schedule, torch.cat([t, t.new_zeros(1)]), clean=True)


def _ends(schedule: Schedule, steps: int, start: float, end: float | None) -> tuple[Tensor, Tensor]:
    """The highest and the lowest noisy ratio of a grid that is spaced in them."""
    _check(steps, start)
    if end is not None and not 0 < end < math.inf:
        raise ValueError(f"the end is a ratio sigma / alpha above 0; got {end}")
    alpha, sigma = schedule(torch.tensor([start, 0.0], dtype=torch.float64))
    high, own = sigma / alpha
    high = high if float(high) <= FAR else torch.full_like(high, TOP)
    low = torch.full_like(high, END if end is None else end).clamp(min=own)
    return high, torch.maximum(torch.minimum(low, high / 2), own)


def _spaced(schedule: Schedule, start: float, log_ratio: Tensor) -> Grid:
    t = schedule.time(Scales.of(log_ratio)).clamp(0, 1)
    t[0] = start
    return _close(schedule, t)
