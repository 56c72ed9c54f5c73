"""Generate: pictures from words, a class, or nothing at all."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato import distributed
from sfumato.conditioning.base import Conditions, Draws
from sfumato.diffusion.grid import grid
from sfumato.diffusion.names import SAMPLERS
from sfumato.diffusion.samplers import Denoise, sampler
from sfumato.model import LatentDiffusion
from sfumato.streams import Stream
from sfumato.tasks.requests import Generate

LARGEST = 64  # times the pixels that the model was trained at; attention over more would never end
Progress = Callable[[int, int], None]  # (evaluations done, in all)


@dataclass(frozen=True)
class Made:
    """Pictures of one batch: (B, C, H, W) in [-1, 1], with the seed and the prompt of each."""

    pictures: Tensor
    seeds: list[int]
    prompts: list[str | None]


def fields(model: LatentDiffusion, prompts: Sequence[str | None], label: str | None) -> dict[str, list[Any]]:
    """What a request says, by the fields that the model's conditioners read.

    Raises `ValueError` where the model takes no text or no label.
    """
    known = set(model.conditions.fields.values())
    said: dict[str, list[Any]] = {}
    if any(p is not None for p in prompts):
        if "caption" not in known:
            raise ValueError("this model was trained without text, so it takes no prompt; leave the prompt out")
        said["caption"] = list(prompts)
    if label is not None:
        if "label" not in known:
            raise ValueError("this model was trained without labels, so it takes no label; leave the label out")
        said["label"] = [int(label) if label.isdigit() else label] * len(prompts)
    return said


def generate(
    model: LatentDiffusion,
    request: Generate,
    tell: Progress | None = None,
) -> Iterator[Made]:
    """The request's pictures, a batch at a time. Picture k depends on seed + k and its own words, not on the
    batch; several processes take turns at batches, and each yields all."""
    largest = LARGEST * model.size**2
    if (request.width or model.size) * (request.height or model.size) > largest:
        raise ValueError(
            f"the model was trained at {model.size} pixels a side and makes at most {LARGEST} times as many pixels at once: "
            f"ask for no more than {math.isqrt(largest)}x{math.isqrt(largest)}"
        )
    shape = model.latent_shape(request.width, request.height)
    seeds, prompts = request.seeds(), request.prompts()
    batches = range(0, len(seeds), request.batch)
    for begin in batches:  # a word that the last batch cannot read is told before the first is sampled
        conditions(model, request, prompts[begin : begin + request.batch])

    def made(number: int) -> Made:
        rows = slice(batches[number], batches[number] + request.batch)
        stream = Stream(seeds[rows])
        x = stream.normal(shape, 0).to(model.device)

        def told(step: int) -> None:
            if tell is not None:
                tell(number * request.steps + step, len(batches) * request.steps)

        latents = sample(model, x, request, prompts[rows], stream, told)
        with torch.no_grad():
            return Made(model.pictures(latents).cpu(), seeds[rows], prompts[rows])

    yield from distributed.spread(made, range(len(batches)))


@torch.no_grad()
def conditions(
    model: LatentDiffusion,
    request: Generate,
    prompts: Sequence[str | None],
    size: tuple[int, int] | None = None,
    draws: Draws | None = None,
) -> tuple[Conditions, Conditions | None]:
    """What the prompts and the label say, and what the negative says, None where it says nothing.

    `size` is the latent's grid (h, w), the request's where None; `draws` the randomness of conditions that are noised,
    by the images' seeds. Raises `ValueError` for what the model does not take or cannot read.
    """
    size = size or model.latent_shape(request.width, request.height)[1:]
    given = model.conditions(fields(model, prompts, request.label), len(prompts), size=size, draws=draws)
    if not (request.negative and request.negative.strip()):
        return given, None
    if "caption" not in set(model.conditions.fields.values()):
        raise ValueError("this model was trained without text, so it takes no negative; leave it out")
    return given, model.conditions({"caption": [request.negative] * len(prompts)}, len(prompts), size=size)


@torch.no_grad()
def sample(
    model: LatentDiffusion,
    x: Tensor,
    request: Generate,
    prompts: Sequence[str | None],
    noise: Stream | None = None,
    tell: Callable[[int], None] | None = None,
) -> Tensor:
    """From noise x (B, c, h, w) to whitened latents under the request's settings."""
    given, negative = conditions(model, request, prompts, _sides(x), _draws(noise))
    scale = request.guidance if fields(model, prompts, request.label) else 1.0
    return _walked(model, x, request, model.denoise(given, negative, scale), noise, tell)


@torch.no_grad()
def walk(
    model: LatentDiffusion,
    x: Tensor,
    request: Generate,
    said: Mapping[str, Sequence[Any]],
    scale: float,
    noise: Stream | None = None,
) -> Tensor:
    """As `sample`, with what is said picture by picture, by field, instead of by the request."""
    given = model.conditions(said, len(x), size=_sides(x), draws=_draws(noise))
    denoise = model.denoise(given, None, scale)
    return _walked(model, x, request, denoise, noise, None)


def _sides(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _draws(noise: Stream | None) -> Draws | None:
    return None if noise is None else Draws.request(noise.seeds)


def _walked(
    model: LatentDiffusion,
    x: Tensor,
    request: Generate,
    denoise: Denoise,
    noise: Stream | None,
    tell: Callable[[int], None] | None,
) -> Tensor:
    rows = grid(request.grid)(model.denoiser.schedule, request.steps)
    drawn = {"noise": noise} if SAMPLERS[request.sampler].stochastic else {}
    for number, step in enumerate(sampler(request.sampler)(denoise, x, rows, **drawn), 1):
        x = step.x
        if tell is not None:
            tell(number)
    return x


def between(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of two noises (..., C, h, w): what lies between is as long as noise is (Shoemake, 1985)."""
    flat_a, flat_b = a.flatten(-3), b.flatten(-3)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, -1).clamp(-0.999999, 0.999999)
    angle = cosine.acos()[..., None, None, None]
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
