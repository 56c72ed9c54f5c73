"""What all samplers share: `denoise(x_t, t) -> x_0` with condition and guidance bound, a step's outcome, and the moves.

With y = x / alpha and r = sigma / alpha the flow of every schedule is one equation, dy/dr = eps = (x - alpha x_0) / sigma
(Song et al., 2021, eq. 14), and with z = x / sigma and m = alpha / sigma it is dz/dm = x_0. A sampler is a quadrature
of one of them. Coefficients are numbers on the host; only x and the estimates are tensors.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec

import torch
from torch import Tensor

from sfumato.diffusion.grid import Row
from sfumato.streams import Stream

Denoise = Callable[[Tensor, Tensor], Tensor]
P = ParamSpec("P")


class Step(NamedTuple):
    """The end of one step: its time (float64, on the host), x there, and the last estimate of x_0."""

    time: Tensor
    x: Tensor
    x_0: Tensor


def last(steps: Iterator[Step]) -> Tensor:
    """Run a sampler to its end and give x."""
    x: Tensor | None = None
    for step in steps:
        x = step.x
    assert x is not None, "a grid has at least one step"
    return x


def times(x: Tensor, t: float) -> Tensor:
    """The time (B,) on x's device, float32 or x's float64, with the number kept beside it for `moment`."""
    t_x = torch.full((len(x),), t, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device)
    t_x.moment = t  # type: ignore[attr-defined]
    return t_x


def moment(t: Tensor) -> float | None:
    """The one time of a batch (B,), without asking the device where a sampler made it; None where times differ."""
    known = getattr(t, "moment", None)
    if known is None and bool((t == t[0]).all()):
        known = float(t[0])
    return known


def repeated(t: Tensor, count: int) -> Tensor:
    """The times (B,) of a batch that is there `count` times over, (count B,), their one moment still known."""
    many = torch.cat([t] * count)
    if (known := getattr(t, "moment", None)) is not None:
        many.moment = known  # type: ignore[attr-defined]
    return many


def made(denoise: Denoise, parts: Iterable[Any] = (), memory: Any = None) -> Denoise:
    """`denoise`, with what it is made of beside it (`parts`, which may grow), and the memory of a run that it keeps.

    A memory has `forget()`. One must not be shared by parts of a canvas, nor by images at times of their own; `memories`
    finds them inside of whatever combinators.
    """
    denoise.made_of, denoise.memory_of_run = parts, memory  # type: ignore[attr-defined]
    return denoise


def memories(denoise: Any) -> set[Any]:
    """The memories of earlier steps that are anywhere inside; empty where an estimate depends on x_t and t alone."""
    own = getattr(denoise, "memory_of_run", None)
    return set(() if own is None else (own,)).union(*map(memories, getattr(denoise, "made_of", ())))


def sampling(
    sampler: Callable[Concatenate[Denoise, P], Iterator[Step]],
) -> Callable[Concatenate[Denoise, P], Iterator[Step]]:
    """A sampler as its callers get it: without gradients, and what its `denoise` remembers of another run is forgotten."""

    @torch.no_grad()
    @wraps(sampler)
    def run(denoise: Denoise, *args: P.args, **options: P.kwargs) -> Iterator[Step]:
        for memory in memories(denoise):
            memory.forget()
        yield from sampler(denoise, *args, **options)

    return run  # type: ignore[return-value]  # the first argument's name is lost, and nobody gives it by name


def ask(denoise: Denoise, x: Tensor, row: Row) -> Tensor:
    """The estimate of x_0 (B, C, h, w) at a row."""
    return denoise(x, times(x, row.t))


def done(row: Row, x: Tensor, x_0: Tensor) -> Step:
    """The step that ended at a row."""
    return Step(torch.tensor(row.t, dtype=torch.float64), x, x_0)


def noise_of(x: Tensor, x_0: Tensor, row: Row) -> Tensor:
    """eps, from x = alpha x_0 + sigma eps."""
    return (x - row.alpha * x_0) / row.sigma


def move(x: Tensor, x_0: Tensor, here: Row, there: Row, down: float | None = None) -> Tensor:
    """Keep both estimates and change the scales: alpha' x_0 + alpha' down eps, down = sigma' / alpha' unless given.

    Song et al. (2021), eq. 12; Euler's method in (y, r), exact where x_0 does not change. To the clean end it is x_0.
    """
    if down is None:
        down = there.ratio
    return (there.alpha * down / here.sigma) * x + (there.alpha * (1 - down / here.ratio)) * x_0


def ancestral(here: Row, there: Row, eta: float) -> tuple[float, float]:
    """Ratios (down, up) with down² + up² = r'²: kept noise and fresh noise, `eta` times the posterior's.

    At eta 1 up is the standard deviation of q(y' | y, x_0), Ho et al. (2020), eq. 7.
    """
    if not there.ratio:
        return 0.0, 0.0
    up = min(eta * there.ratio * math.sqrt(max(1 - (there.ratio / here.ratio) ** 2, 0.0)), there.ratio)
    return math.sqrt(there.ratio**2 - up**2), up


def snr(row: Row) -> float:
    """(alpha / sigma)²: the time of the Brownian path that drives the reverse process; infinite at the clean end."""
    return math.inf if not row.sigma else (row.alpha / row.sigma) ** 2


def needed(noise: Stream | None, name: str) -> Stream:
    """The stream, or a `ValueError` that asks for it."""
    if noise is None:
        raise ValueError(f"{name} draws noise: give the images' `noise` stream")
    return noise


def checked(name: str, value: float, low: float, high: float) -> float:
    """The value, or a `ValueError` with its range."""
    if not low <= value <= high:
        raise ValueError(f"{name} lies between {low:g} and {high:g}; got {value}")
    return value
