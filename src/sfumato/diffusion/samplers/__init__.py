"""Samplers: generator functions from noise to data, a file a family. Which to choose: `docs/diffusion.md`."""

from collections.abc import Callable, Iterator
from typing import Any

from sfumato.diffusion.names import SAMPLERS
from sfumato.diffusion.samplers.base import Denoise, Step, last
from sfumato.diffusion.samplers.ddim import ddim
from sfumato.diffusion.samplers.dpmpp import dpmpp_2m
from sfumato.diffusion.samplers.heun import heun

__all__ = ["SAMPLERS", "Denoise", "Step", "ddim", "dpmpp_2m", "heun", "last", "sampler"]


def sampler(name: str) -> Callable[..., Iterator[Step]]:
    """The sampler of this name. Raises `ValueError` with the known names."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
    found: Any = globals()[name]
    return found  # type: ignore[no-any-return]
