"""What every task does: read what is asked, bind conditions and guidance, walk from noise to pictures, batch by batch.

Picture k of a request depends on seed + k and on what is said of it alone, not on the batch it is made in.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato import distributed
from sfumato.conditioning.base import Conditions, Draws
from sfumato.diffusion.combinators import tiled, within
from sfumato.diffusion.grid import Grid, grid
from sfumato.diffusion.names import SAMPLERS
from sfumato.diffusion.samplers import Denoise, sampler
from sfumato.model import LatentDiffusion
from sfumato.streams import Stream
from sfumato.tasks.canvas import Canvas
from sfumato.tasks.reference import references
from sfumato.tasks.requests import Request
from sfumato.tasks.said import Said, complete, fields, negative, placed
from sfumato.tasks.said import scale as scaled
from sfumato.tasks.strides import asked_of, strode, teller
from sfumato.windows import Window

Progress = Callable[[int, int], None]  # (steps done, in all)
Tell = Callable[[int], None]  # steps done of a batch


@dataclass(frozen=True)
class Made:
    """Pictures of one batch: (B, C, H, W) in [-1, 1], with the seed and the prompt of each."""

    pictures: Tensor
    seeds: list[int]
    prompts: list[str | None]
    request: Request  # as it was carried out


@dataclass(frozen=True)
class Rows:
    """One batch of a request: which of its pictures, what is said of them, their noise."""

    places: range
    seeds: list[int]
    prompts: list[str | None]
    said: dict[str, list[Any]]
    noise: Stream
    tell: Tell

    def __len__(self) -> int:
        return len(self.seeds)

    def every(self, field: str, value: Any) -> dict[str, list[Any]]:
        """What is said, and one value of a field for all."""
        return {**self.said, field: [value] * len(self)}


def batches(
    model: LatentDiffusion,
    request: Request,
    canvas: Canvas,
    make: Callable[[Rows], Tensor],
    tell: Progress | None = None,
) -> Iterator[Made]:
    """The request's pictures, a batch at a time; several processes take turns at batches, and each yields all.

    `make` gives pictures (B, C, H, W) of some rows, which are cut to the canvas's size.
    """
    (seeds,) = distributed.spread(lambda _: request.seeds(), [None])  # drawn once, where they are random
    prompts = request.prompts()
    begins = range(0, len(seeds), request.batch)
    of_all = {**references(model, request), **placed(model, request, canvas)}

    def spoken(words: Sequence[str | None]) -> dict[str, list[Any]]:
        return {**fields(model, words, request.label), **{name: [v] * len(words) for name, v in of_all.items()}}

    def made(number: int) -> Made:
        places = range(begins[number], min(begins[number] + request.batch, len(seeds)))
        own, words = seeds[places.start : places.stop], prompts[places.start : places.stop]

        def told(step: int) -> None:
            if tell is not None:
                tell(number * request.steps + step, len(begins) * request.steps)

        rows = Rows(places, own, words, spoken(words), Stream(own), told)
        with torch.no_grad():
            return Made(canvas.cut(make(rows)).cpu(), own, words, request)

    with torch.no_grad():  # what the last batch cannot read is told before the first is sampled, in every process
        model.conditions({name: [value] for name, value in of_all.items()}, 1, size=canvas.places)
        for begin in begins:
            words = prompts[begin : begin + request.batch]
            model.conditions(fields(model, words, request.label), len(words))
        negative(model, request, {}, 1)
    yield from distributed.spread(made, range(len(begins)))


def steer(
    model: LatentDiffusion,
    given: Conditions,
    other: Conditions | None,
    scale: float,
    interval: tuple[float, float] | None,
) -> Denoise:
    """`denoise(x_t, t)` under conditions, guided away from the `other`, the null where there are none. Outside of the
    `interval` of times, where there is one, guidance rests."""
    amplified = model.denoise(given, other, scale)
    if interval is None or scale == 1.0:
        return amplified
    return within(amplified, model.denoise(given), *interval)


def walk(
    model: LatentDiffusion,
    x: Tensor,
    request: Request,
    said: Said,
    noise: Stream | None = None,
    tell: Tell | None = None,
    *,
    rows: Grid | None = None,
    stride: int | None = None,
    wrap: bool = False,
) -> Tensor:
    """From noise of variance 1, x (B, c, h, w), to whitened latents under the request's settings; with `rows` from x at
    their first.

    With `stride` the canvas is worked on in windows as large as the model was trained at, so many places apart.
    """
    denoise = bound(model, x, request, said, noise, rows=rows, stride=stride, wrap=wrap)
    return follow(model, x, request, denoise, noise, tell, rows)


def bound(
    model: LatentDiffusion,
    x: Tensor,
    request: Request,
    said: Said,
    noise: Stream | None = None,
    *,
    rows: Grid | None = None,
    stride: int | None = None,
    wrap: bool = False,
) -> Denoise:
    """`denoise` for x's canvas (B, c, h, w), with all that is said of it and the request's guidance bound.

    A shortcut model is told how long its steps are between `rows`, by default those of `follow`.
    """
    told = teller(model, request)
    if told is None:
        return _bound(model, x, request, said, noise, stride, wrap)

    def under(length: float) -> Denoise:
        asked = asked_of(model, request, length)
        return _bound(model, x, asked, {**said, told.field: [length] * len(x)}, noise, stride, wrap)

    return strode(under, _rows(model, request) if rows is None else rows, told.known)


@torch.no_grad()
def _bound(
    model: LatentDiffusion,
    x: Tensor,
    request: Request,
    said: Said,
    noise: Stream | None,
    stride: int | None,
    wrap: bool,
) -> Denoise:
    complete(model, said)
    size, count = (x.shape[-2], x.shape[-1]), len(x)
    draws = None if noise is None else Draws.request(noise.seeds)
    other, scale = negative(model, request, said, count), scaled(model, request, said)
    given = model.conditions.over(said, count, size=size, draws=draws)
    # what was left unsaid is made on the canvas on both sides, and cut alike
    against = model.conditions.over(other, count, size=size, draws=draws) if scale != 1.0 else None

    @torch.no_grad()
    def at(window: Window | None) -> Denoise:
        return steer(model, given(window), against(window) if against else None, scale, request.interval)

    if stride is None:
        return at(None)
    return tiled(None, model.latent_shape()[1], stride, at=at, wrap=wrap)


@torch.no_grad()
def follow(
    model: LatentDiffusion,
    x: Tensor,
    request: Request,
    denoise: Denoise,
    noise: Stream | None = None,
    tell: Tell | None = None,
    rows: Grid | None = None,
) -> Tensor:
    """Run the request's sampler over `rows`, from x at their first; by default over its grid, from noise of variance 1."""
    if rows is None:
        rows = _rows(model, request)
        x = rows.begin(x)
    drawn = {"noise": noise} if SAMPLERS[request.sampler].stochastic else {}
    for number, step in enumerate(sampler(request.sampler)(denoise, x, rows, **drawn), 1):
        x = step.x
        if tell is not None:
            tell(number)
    return x


def _rows(model: LatentDiffusion, request: Request) -> Grid:
    """The request's grid from pure noise."""
    return grid(request.grid)(model.denoiser.schedule, request.steps)
