"""What feeds a training step, part by part: images a second of reading, decoding, resizing, assembling, and of the step.

Each part is measured alone, with its inputs lying in memory, by 1, 2, 4, ... threads. The step is measured on a batch
that is there already. Who is slower is the bottleneck, and what is slowest in it is what to change.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sfumato import device as devices
from sfumato import image
from sfumato.data import loader
from sfumato.data.base import Part
from sfumato.image import Stored
from sfumato.lanes import threads
from sfumato.shape import Pixels, squared
from sfumato.training import ahead, compiled
from sfumato.training.autoencoder import Reconstruction
from sfumato.training.diffusion import Denoising
from sfumato.training.family import Modelling
from sfumato.training.latents import Fresh
from sfumato.training.loop import Loop
from sfumato.training.rate import seconds_of_steps
from sfumato.training.recipe import FamilyRecipe, Recipe
from sfumato.training.run import objective_of

SAMPLE, ROOM = 256, 256 << 20  # pictures at most whose parts are kept for measuring, and bytes of them
SLACK = 1.1  # loading that is faster than the step by this factor does not hold it up
CURES = {
    "reading": "keep the data on a faster disk, or pack its files into Parquet files or tars (docs/data.md)",
    "decoding": "store smaller pictures (twice data.size a side is enough, JPEG decodes fastest)",
    "resizing": "store the pictures at data.size, so that nothing is resized",
    "assembling": "let more threads do it (training.workers)",
    "drawing": "draw the pictures once into a folder and train on that",
}
Item = TypeVar("Item")


@dataclass(frozen=True)
class Feeding:
    """Images a second."""

    parts: dict[str, dict[int, float]]  # name -> threads -> rate
    whole: dict[int, float]  # from positions to a batch, threads -> rate
    step: float | None  # the training step, or for a cached data set the encoder; None where the recipe cannot be built
    why: str = ""  # it cannot be built
    workers: int = 0  # that the recipe takes
    encodes: bool = field(default=False)  # whether pictures are encoded once, so that `step` is the encoder


class Kept(Part):
    """A part's pictures, held in memory."""

    def __init__(self, part: Part, indices: Sequence[int]) -> None:
        self.part, self.indices = part, list(indices)
        self.images = [part.image(k) for k in indices]
        self.channels, self.size, self.labels, self.fingerprint = part.channels, part.size, part.labels, ""
        self.derivations = part.derivations
        self.families = [(k,) for k in range(len(self.indices))]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Tensor:
        return self.images[index]

    def fields(self, index: int) -> dict[str, Any]:
        return self.part.fields(self.indices[index])

    def field(self, index: int, name: str) -> Any:
        return self.part.field(self.indices[index], name)

    def few(self, index: int, read: Collection[str]) -> dict[str, Any]:
        return self.part.few(self.indices[index], read)


def feeding(recipe: Recipe, where: torch.device, most: int, seconds: float = 0.5) -> Feeding:
    """Measure the recipe's data with up to `most` threads, each number for so many seconds."""
    settled = {"batch": recipe.training.batch or 32, "accumulate": recipe.training.accumulate or 1}  # not `auto`
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=settled)})
    recipe = recipe.model_copy(update={"data": recipe.data.squares()})  # of other shapes there are as many pixels
    train = recipe.data.open("train")
    counts = sorted({*(2**k for k in range(most.bit_length())), most})
    parts = _before(train, recipe.training.seed, counts, seconds)
    objective, why = _built(recipe, where)
    make = objective.batch if isinstance(objective, Reconstruction) else _pictures(train, recipe)
    positions = [
        range(b, b + recipe.training.batch) for b in range(0, 64 * recipe.training.batch, recipe.training.batch)
    ]
    whole = {n: recipe.training.batch * rate(make, positions, n, seconds) for n in counts}
    kept = Kept(train, _chosen(train, recipe.training.seed, range(SAMPLE)))
    if isinstance(objective, Reconstruction):
        objective.train = kept
    else:
        make = _pictures(kept, recipe)
    parts["assembling"] = {n: recipe.training.batch * rate(make, positions, n, seconds) for n in counts}
    workers = ahead.workers(recipe.training.workers, where)
    if objective is None:
        return Feeding(parts, whole, None, why, workers)
    encodes = isinstance(objective, Denoising) and getattr(recipe, "cache", False)
    return Feeding(parts, whole, _needed(objective, recipe, where, encodes, seconds), "", workers, encodes)


def rate(function: Callable[[Item], object], items: Sequence[Item], count: int, seconds: float) -> float:
    """Calls a second by `count` threads that take one item after the other, round and round."""
    function(items[0])
    numbers, pool = itertools.count(1), threads(count, 1, "bench")
    begin = time.perf_counter()

    def run() -> int:
        for done in itertools.count(1):
            function(items[next(numbers) % len(items)])
            if time.perf_counter() - begin >= seconds:
                return done
        return 0

    with pool:
        calls = sum(found.result() for found in [pool.submit(run) for _ in range(count)])
    return calls / (time.perf_counter() - begin)


def _chosen(part: Part, seed: int, positions: range) -> list[int]:
    """The first different pictures that a run shows."""
    return list(dict.fromkeys(loader.draw(part, seed, p) for p in positions))


def _before(part: Part, seed: int, counts: Sequence[int], seconds: float) -> dict[str, dict[int, float]]:
    """Rates of what makes one picture: reading, decoding, resizing; or drawing, where there are no files."""
    chosen = _chosen(part, seed, range(SAMPLE))
    if part.stored(chosen[0]) is None:
        return {"drawing": {n: rate(part.image, chosen, n, seconds) for n in counts}}
    later = [_chosen(part, seed, range(SAMPLE * k, SAMPLE * (k + 1))) for k in range(1, len(counts) + 1)]
    reading = {n: rate(lambda k: _content(part, k), some, n, seconds) for n, some in zip(counts, later, strict=True)}
    stored, arrays, room = list[Stored](), list[Pixels](), ROOM
    for k in chosen:
        stored.append(_content(part, k))
        arrays.append(image.pixels(stored[-1], part.channels, least=2 * part.size))
        room -= len(stored[-1].content) + arrays[-1].nbytes
        if room < 0:
            break
    decode = {
        n: rate(lambda s: image.pixels(s, part.channels, least=2 * part.size), stored, n, seconds) for n in counts
    }
    resize = {n: rate(lambda a: squared(a, part.size), arrays, n, seconds) for n in counts}
    return {"reading": reading, "decoding": decode, "resizing": resize}


def _content(part: Part, index: int) -> Stored:
    found = part.stored(index)
    assert found is not None
    return Stored(found.read_bytes(), str(found)) if isinstance(found, Path) else found


def _pictures(part: Part, recipe: Recipe) -> Callable[[Sequence[int]], loader.Batch]:
    read = ("label",) if isinstance(recipe, FamilyRecipe) else None
    return lambda positions: loader.batch(part, recipe.training.seed, positions, recipe.training.flip, read)


def _built(recipe: Recipe, where: torch.device) -> tuple[Reconstruction | Denoising | Modelling | None, str]:
    """The objective with fresh weights, or None and why it cannot be built."""
    try:
        with torch.random.fork_rng(devices=[]):
            if "cache" in type(recipe).model_fields:
                recipe = recipe.model_copy(update={"cache": False})
            objective = objective_of(recipe, Path(), where)
    except (ValueError, OSError) as error:
        return None, str(error)
    if isinstance(objective, Reconstruction) and not objective.learns:
        return None, "this first stage has nothing to train"
    return objective, ""


def _needed(
    objective: Reconstruction | Denoising | Modelling,
    recipe: Recipe,
    where: torch.device,
    encodes: bool,
    seconds: float,
) -> float:
    """Images a second of what takes the pictures: the step; the encoder, where it runs once; or both, one by one."""
    encoder = 0.0
    if isinstance(objective, Denoising):
        assert isinstance(objective.latents, Fresh)
        indices = _chosen(objective.train, recipe.training.seed, range(recipe.training.batch))
        objective.latents.part = Kept(objective.train, indices)
        encoder = _seconds(lambda: objective.latents.rows(range(len(indices))), where, seconds) / len(indices)
        if encodes:
            return 1 / encoder
        objective.latents.part = objective.train
    dtype = devices.precision(recipe.training.precision, where)
    for module in objective.turns.values():
        module.to(where, torch.float64 if dtype == torch.float64 else None)
    config = recipe.training.model_copy(update={"workers": 1})
    compiled.ready(objective.turns.values(), config, where)  # as a training does
    loop = Loop(objective, config, Path(), "", where, dtype, quiet=True)
    begin = max(config.images // config.batch - 1, 0) * config.batch  # where all that a run begins has begun
    positions = ahead.next_step(begin, config.batch, config.images)
    with loop.ahead:  # which makes the batch once and holds it
        return 1 / (_seconds(lambda: loop.step(positions), where, seconds) / len(positions) + encoder)


def _seconds(call: Callable[[], object], where: torch.device, least: float) -> float:
    """The median time of a call, after two that warm up."""

    def step(number: int) -> None:
        call()
        devices.wait(where)

    return statistics.median(seconds_of_steps(step, least))


def verdict(found: Feeding) -> str:
    """What the bottleneck is, and what to change, in a sentence."""
    slowest = min(found.parts, key=lambda name: found.parts[name][1])
    cure = f"the slowest part is {slowest}: {CURES[slowest]}"
    most, best = max(found.whole.items(), key=lambda pair: pair[1])
    if found.step is None:
        return (
            f"The recipe cannot be built here ({found.why}), so what its step needs is not known; "
            f"loading gives {found.whole[1]:,.0f} images/s by one thread and {best:,.0f} by {most}; {cure}."
        )
    taker, need = "encoder, which sees every picture once," if found.encodes else "training step", found.step
    if found.workers == 0 or found.encodes:  # pictures are made where they are taken, one after the other
        share = need / (need + found.whole[1])
        if share < 1 - 1 / SLACK:
            return (
                f"The bottleneck is the {taker} with {need:,.0f} images/s: loading gives {found.whole[1]:,.0f} and is "
                f"{share:.0%} of the time; nothing in the data is worth changing."
            )
        more = _enough(found)
        hidden = "" if found.encodes or more is None else f", or set training.workers={more} where cores are free"
        return (
            f"Loading is {share:.0%} of the time: it gives {found.whole[1]:,.0f} images/s and the {taker} alone would take "
            f"{need:,.0f}; {cure}{hidden}."
        )
    have = max((rate for n, rate in found.whole.items() if n <= found.workers), default=found.whole[1])
    if have >= SLACK * need:
        return (
            f"The bottleneck is the {taker} with {need:,.0f} images/s: training.workers={found.workers} gives {have:,.0f}; "
            "nothing in the data is worth changing."
        )
    more = _enough(found)
    if more is not None:
        return (
            f"The bottleneck is loading: training.workers={found.workers} gives {have:,.0f} images/s and the {taker} would take "
            f"{need:,.0f}; set training.workers={more}."
        )
    return f"The bottleneck is loading: the {taker} would take {need:,.0f} images/s and training.workers={most} gives {best:,.0f}; {cure}."


def _enough(found: Feeding) -> int | None:
    """The least number of workers, of those measured, that keep up with the step."""
    assert found.step is not None
    return next((n for n, rate in sorted(found.whole.items()) if rate >= SLACK * found.step), None)
