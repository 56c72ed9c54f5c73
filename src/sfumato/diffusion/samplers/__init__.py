"""Samplers: generator functions from noise to data, a file a family. Which to choose: `docs/diffusion.md`."""

from collections.abc import Callable, Iterator
from typing import Any

from sfumato.diffusion.names import SAMPLERS
from sfumato.diffusion.samplers.adaptive import adaptive
from sfumato.diffusion.samplers.base import Denoise, Step, last
from sfumato.diffusion.samplers.ddim import ddim, ddpm
from sfumato.diffusion.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_sde
from sfumato.diffusion.samplers.euler import euler, euler_ancestral
from sfumato.diffusion.samplers.heun import heun
from sfumato.diffusion.samplers.lcm import lcm
from sfumato.diffusion.samplers.multistep import deis, plms
from sfumato.diffusion.samplers.unipc import unipc

__all__ = [
    "SAMPLERS",
    "Denoise",
    "Step",
    "adaptive",
    "ddim",
    "ddpm",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "last",
    "lcm",
    "plms",
    "sampler",
    "unipc",
]


def sampler(name: str) -> Callable[..., Iterator[Step]]:
    """The sampler of this name. Raises `ValueError` with the known names."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
    found: Any = globals()[name]
    return found  # type: ignore[no-any-return]
