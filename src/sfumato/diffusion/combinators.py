"""Combinators on `denoise`: each takes one and gives one back, and none edits a sampler.

They compose freely, but for `keeping`, which is outermost: what another one did to its estimate after it (averaged it
over windows, rounded it, pushed it away from a condition) would no longer be the picture that was to be kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.samplers.base import Denoise, made, memories, moment
from sfumato.windows import Window, blend

SHARED = "windows share guidance that remembers a run's steps: give each its own, at=lambda w: apg(branches.at(w), ...)"


class Kept:
    """What `keeping` gives, and what no combinator takes."""

    def __init__(self, denoise: Denoise, known: Tensor, mask: Tensor) -> None:
        self.denoise, self.known, self.mask = denoise, known, mask
        self.made_of = (denoise,)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = self.denoise(x_t, t)
        return torch.lerp(x_0, self.known.to(x_0), self.mask.to(x_0).expand_as(x_0))


def inner(*several: Any) -> None:
    """Raise `ValueError` where one of them is a `keeping`."""
    if any(isinstance(one, Kept) for one in several):
        raise ValueError("`keeping` must be outermost: apply it last, to what the other combinators and guidance give")


def keeping(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Inpainting: where `mask` is 1 the estimate is `known`, between 0 and 1 it is a mixture.

    known (B or 1, C, h, w) is clean data; mask broadcasts to it. Where the mask is 1 the last x is `known`, bit for bit.
    Raises `ValueError` for a mask outside of [0, 1], and inside of another combinator.
    """
    inner(denoise)
    if bool((mask < 0).any()) or bool((mask > 1).any()):
        raise ValueError(f"a mask lies between 0 and 1; got {float(mask.min()):g} to {float(mask.max()):g}")
    return Kept(denoise, known, mask.to(known.dtype))


def tiled(
    denoise: Denoise | None,
    size: int,
    stride: int,
    *,
    at: Callable[[Window], Denoise] | None = None,
    wrap: bool = False,
) -> Denoise:
    """A canvas larger than the network was trained on: overlapping windows, blended (Bar-Tal et al., 2023, eq. 5).

    Windows are `size` by `size` latent places, `stride` apart, flush with the edges, for any canvas. `at(window)`, instead
    of `denoise`, gives the denoise of a window, with the picture and box conditions cropped: for guidance,
    `at=lambda w: guided(branches.at(w), scale)`; it is asked once a window. With `wrap` the right edge goes on at the left.
    Exact for a denoiser that looks no further than its own place.

    Raises `ValueError` where windows share guidance that remembers a run's steps: each needs its own, by `at`.
    """
    inner(denoise)
    if (denoise is None) == (at is None):
        raise ValueError("tiled takes one denoise for all windows, or `at`, which gives each window its own")
    if memories(denoise):
        raise ValueError(SHARED)
    places: dict[Window, Denoise] = {}

    def work(window: Window, part: Tensor, t: Tensor) -> Tensor:
        if at is None:
            return denoise(part, t)  # type: ignore[misc]
        if window not in places:
            places[window] = at(window)
            inner(places[window])
        return places[window](part, t)

    def whole(x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = blend(x_t, size, stride, lambda window, part: work(window, part, t), wrap=wrap)
        kept = [memory for local in places.values() for memory in memories(local)]
        if len(set(kept)) < len(kept):
            raise ValueError(SHARED)
        return x_0

    return made(whole, places.values())


def within(denoise: Denoise, otherwise: Denoise, low: float, high: float) -> Denoise:
    """`denoise` where low <= t <= high, `otherwise` outside: guidance in an interval (Kynkäänniemi et al., 2024).

    Only the one that is needed runs; both do where a batch is at several times, as in the adaptive sampler.
    """
    inner(denoise, otherwise)
    if not low <= high:
        raise ValueError(f"an interval of times goes up; got {low} to {high}")

    def either(x_t: Tensor, t: Tensor) -> Tensor:
        time = moment(t)
        if time is not None:
            return denoise(x_t, t) if low <= time <= high else otherwise(x_t, t)
        inside = ((t >= low) & (t <= high)).reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.where(inside, denoise(x_t, t), otherwise(x_t, t))

    return made(either, (denoise, otherwise))


def clamped(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """The estimate of x_0 kept in [low, high] (Ho et al., 2020): for models of pixels, or latents of a known range."""
    inner(denoise)
    if not low < high:
        raise ValueError(f"the range goes up; got {low} to {high}")
    return made(lambda x_t, t: denoise(x_t, t).clamp(low, high), (denoise,))


def quantised(denoise: Denoise, nearest: Callable[[Tensor], Tensor], *, below: float = 1.0) -> Denoise:
    """The estimate of x_0 moved to its nearest code, argmin |x_0 - e_k| at every place (van den Oord et al., 2017, eq. 1).

    For VQ latents, as the published samplers' `quantize_denoised`: `nearest` maps (B, C, h, w) to codes, in x_0's units.
    `below` limits it to times at or under it: an early estimate is a mean of many, and no code.
    """
    inner(denoise)

    def rounded(x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = denoise(x_t, t)
        late = t <= below if moment(t) is None else moment(t) <= below  # type: ignore[operator]
        if isinstance(late, bool):
            return nearest(x_0) if late else x_0
        return torch.where(late.reshape(-1, *[1] * (x_0.ndim - 1)), nearest(x_0), x_0)

    return made(rounded, (denoise,))
