"""What every task does: read what is asked, bind conditions and guidance, walk from noise to pictures, batch by batch.

Picture k of a request depends on seed + k and on what is said of it alone, not on the batch it is made in.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sfumato import distributed
from sfumato.conditioning.base import Conditions, Draws
from sfumato.conditioning.label import named
from sfumato.diffusion.combinators import tiled, within
from sfumato.diffusion.grid import Grid, grid
from sfumato.diffusion.names import SAMPLERS
from sfumato.diffusion.samplers import Denoise, sampler
from sfumato.model import LatentDiffusion
from sfumato.streams import Stream
from sfumato.tasks.reference import references
from sfumato.tasks.requests import Request
from sfumato.tasks.strides import strode, teller
from sfumato.windows import Window, starts

LARGEST = 64  # times the pixels that the model was trained at; attention over more would never end
WINDOWS = 4096  # of a canvas that is worked on in parts; each is a pass through the network at every step
Progress = Callable[[int, int], None]  # (steps done, in all)
Said = Mapping[str, Sequence[Any]]  # values by field, one a picture
Tell = Callable[[int], None]  # steps done of a batch


@dataclass(frozen=True)
class Made:
    """Pictures of one batch: (B, C, H, W) in [-1, 1], with the seed and the prompt of each."""

    pictures: Tensor
    seeds: list[int]
    prompts: list[str | None]


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


def fields(model: LatentDiffusion, prompts: Sequence[str | None], labels: Sequence[str] | None) -> dict[str, list[Any]]:
    """What words and classes say, by the fields that the model's conditioners read; several classes are all of each picture.

    Raises `ValueError` where the model takes no text or no label.
    """
    known = set(model.conditions.fields.values())
    said: dict[str, list[Any]] = {}
    if any(p is not None for p in prompts):
        if "caption" not in known:
            raise ValueError("this model was trained without text, so it takes no prompt; leave the prompt out")
        said["caption"] = list(prompts)
    if labels is not None:
        if "label" not in known:
            raise ValueError("this model was trained without labels, so it takes no label; leave the label out")
        known_labels = getattr(model.conditions.reader("label"), "labels", ())
        several: list[Any] = [named(one, known_labels) for one in labels]
        said["label"] = [several if len(several) > 1 else several[0]] * len(prompts)
    return said


def takes(model: LatentDiffusion, field: str, what: str) -> None:
    """Raise `ValueError` unless the model was trained with this field."""
    known = sorted(set(model.conditions.fields.values()))
    if field not in known:
        raise ValueError(
            f"this model was not trained for {what}: it takes {', '.join(known) or 'no condition'}, and not {field!r}; "
            "use a model whose recipe has that conditioner"
        )


def fits(model: LatentDiffusion, width: int, height: int) -> None:
    """Raise `ValueError` for pictures that would never end."""
    largest = LARGEST * model.size**2
    if width * height > largest:
        raise ValueError(
            f"the model was trained at {model.size} pixels a side and makes at most {LARGEST} times as many pixels at once: "
            f"ask for no more than {math.isqrt(largest)}x{math.isqrt(largest)}"
        )


def windowed(model: LatentDiffusion, width: int, height: int, stride: int) -> None:
    """Raise `ValueError` for pictures of so many windows, `stride` latent places apart, that they would never end."""
    side, factor = model.latent_shape()[1], model.codec.factor
    across, down = (len(starts(-(-n // factor), side, stride)) for n in (width, height))
    if across * down > WINDOWS:
        raise ValueError(
            f"{width}x{height} pixels are {across * down:,} windows of {model.size} pixels a side, and at most {WINDOWS:,} "
            "are worked on: ask for a smaller picture, or where that can be said for less overlap"
        )


def apart(model: LatentDiffusion, width: int, height: int) -> int | None:
    """How many latent places windows over a picture are apart; None where the model sees all of it at once.

    Raises `ValueError` for pictures that would never end.
    """
    if max(width, height) <= model.size:
        return None
    stride = max(model.latent_shape()[1] // 2, 1)
    windowed(model, width, height, stride)
    return stride


def batches(
    model: LatentDiffusion,
    request: Request,
    make: Callable[[Rows], Tensor],
    tell: Progress | None = None,
    steps: int | None = None,
) -> Iterator[Made]:
    """The request's pictures, a batch at a time; several processes take turns at batches, and each yields all.

    `make` gives the pictures (B, C, H, W) of some rows; `steps` are told to be done for each batch.
    """
    seeds, prompts = request.seeds(), request.prompts()
    begins = range(0, len(seeds), request.batch)
    whole = request.steps if steps is None else steps
    referred = references(model, request)

    def spoken(words: Sequence[str | None]) -> dict[str, list[Any]]:
        return {**fields(model, words, request.label), **{name: [v] * len(words) for name, v in referred.items()}}

    def made(number: int) -> Made:
        places = range(begins[number], min(begins[number] + request.batch, len(seeds)))
        own, words = seeds[places.start : places.stop], prompts[places.start : places.stop]

        def told(step: int) -> None:
            if tell is not None:
                tell(number * whole + step, len(begins) * whole)

        rows = Rows(places, own, words, spoken(words), Stream(own), told)
        with torch.no_grad():
            return Made(make(rows).cpu(), own, words)

    for begin in begins:  # a word that the last batch cannot read is told before the first is sampled
        words = prompts[begin : begin + request.batch]
        said = spoken(words)
        with torch.no_grad():
            model.conditions(said, len(words))
            negative(model, request, said, len(words))
    yield from distributed.spread(made, range(len(begins)))


def negative(model: LatentDiffusion, request: Request, said: Said, count: int) -> dict[str, list[Any]]:
    """What guidance moves away from: the request's negative, and what is kept on both sides, such as a masked picture."""
    kept = {name: list(values) for name, values in said.items() if name in model.conditions.kept}
    if not (request.negative and request.negative.strip()):
        return kept
    if "caption" not in set(model.conditions.fields.values()):
        raise ValueError("this model was trained without text, so it takes no negative; leave it out")
    return {**kept, "caption": [request.negative] * count}


@torch.no_grad()
def steer(
    model: LatentDiffusion,
    said: Said,
    size: tuple[int, int],
    draws: Draws | None,
    scale: float,
    other: Said | None = None,
    window: Window | None = None,
    count: int = 1,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """`denoise(x_t, t)` for `count` pictures of which this is said, guided away from `other`, from the null where that
    says nothing; for a window of the canvas (h, w) `size` where one is given. Outside of the `interval` of times, where
    there is one, guidance rests."""

    def read(what: Said) -> Conditions:
        found: Conditions = model.conditions(what, count, size=size, draws=draws, window=window)
        return found

    given = read(said)
    amplified = model.denoise(given, read(other) if other else None, scale)
    if interval is None or scale == 1.0:
        return amplified
    return within(amplified, model.denoise(given), *interval)


def guidance(request: Request, said: Said, kept: frozenset[str]) -> float:
    """The request's guidance, 1 where nothing is said that guidance could amplify."""
    return request.guidance if set(said) - kept else 1.0


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
    """From noise x (B, c, h, w), at the first of `rows`, to whitened latents under the request's settings.

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
        return _bound(model, x, request, {**said, told.field: [length] * len(x)}, noise, stride, wrap)

    return strode(under, _rows(model, request) if rows is None else rows, told.known)


def _bound(
    model: LatentDiffusion,
    x: Tensor,
    request: Request,
    said: Said,
    noise: Stream | None,
    stride: int | None,
    wrap: bool,
) -> Denoise:
    size, count = (x.shape[-2], x.shape[-1]), len(x)
    draws = None if noise is None else Draws.request(noise.seeds)
    other, scale = negative(model, request, said, count), guidance(request, said, model.conditions.kept)
    if stride is None:
        return steer(model, said, size, draws, scale, other, count=count, interval=request.interval)
    side = model.latent_shape()[1]

    @cache
    def at(window: Window) -> Denoise:
        return steer(model, said, size, draws, scale, other, window, count, request.interval)

    return tiled(None, side, stride, at=at, wrap=wrap)


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
    """Run the request's sampler over `rows`, by default its grid from pure noise."""
    rows = _rows(model, request) if rows is None else rows
    drawn = {"noise": noise} if SAMPLERS[request.sampler].stochastic else {}
    for number, step in enumerate(sampler(request.sampler)(denoise, x, rows, **drawn), 1):
        x = step.x
        if tell is not None:
            tell(number)
    return x


def _rows(model: LatentDiffusion, request: Request) -> Grid:
    """The request's grid from pure noise."""
    return grid(request.grid)(model.denoiser.schedule, request.steps)
