"""What can be asked: one pydantic type a task, from which the Python call, the command and the route are made.

Nothing here imports torch, so that help and errors answer at once.
"""

import secrets
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from sfumato.config import Config
from sfumato.diffusion.names import DEFAULT, DEFAULT_GRID, GRIDS, SAMPLERS

# What users of image generators call the samplers: the text inside pictures tells these names, and requests take them.
TITLES = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "plms": "PLMS",
    "deis": "DEIS",
    "unipc": "UniPC",
    "lcm": "LCM",
    "adaptive": "DPM adaptive",
}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _known_sampler(value: Any) -> Any:
    titled = {title.lower(): name for name, title in TITLES.items()}
    if str(value).lower() in titled:
        return titled[str(value).lower()]
    name = str(value).lower().replace("-", "_").replace("++", "pp").replace(" ", "_")
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {value!r}; known: {', '.join(SAMPLERS)}")
    return name


def _known_grid(value: Any) -> Any:
    name = str(value).lower().replace("-", "_").replace(" ", "_")
    if name not in GRIDS:
        raise ValueError(f"unknown grid {value!r}; known: {', '.join(GRIDS)}")
    return name


Texts = Annotated[list[str], BeforeValidator(_listed)]


class Generate(Config):
    """Pictures from words, a class, or nothing at all."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    prompt: Texts | None = Field(None, description="what the picture shows; several prompts give one picture each")
    negative: str | None = Field(None, description="what to move away from; nothing: the unconditional prediction")
    label: str | None = Field(None, description="a class, for models that were trained with labels")
    count: int | None = Field(None, ge=1, le=10_000, description="pictures to make; one a prompt by default")
    seed: int = Field(-1, ge=-1, le=2**63 - 1, description="seed of the first picture, the next count up; -1: random")
    steps: int = Field(25, ge=1, le=1000, description="denoising steps")
    guidance: float = Field(3.0, ge=0, le=100, description="how strictly to follow the words; 1: not amplified")
    sampler: Annotated[str, BeforeValidator(_known_sampler)] = Field(
        DEFAULT, description=f"one of {', '.join(SAMPLERS)}"
    )
    grid: Annotated[str, BeforeValidator(_known_grid)] = Field(
        DEFAULT_GRID, description=f"where the steps lie: {', '.join(GRIDS)}"
    )
    width: int | None = Field(None, ge=1, le=16_384, description="pixels; by default what the model was trained at")
    height: int | None = Field(None, ge=1, le=16_384, description="pixels; by default what the model was trained at")
    batch: int = Field(64, ge=1, le=4096, description="pictures made at once; it does not change them")

    @model_validator(mode="after")
    def _says_something(self) -> "Generate":
        if self.prompt is not None and not self.prompt:
            raise ValueError("the list of prompts is empty; leave prompt out for an unconditional picture")
        for prompt in self.prompt or []:
            if not prompt.strip():
                raise ValueError("a prompt is empty; leave it out for an unconditional picture")
        if self.prompt and len(self.prompt) > 1 and self.count not in (None, len(self.prompt)):
            raise ValueError(f"{len(self.prompt)} prompts give {len(self.prompt)} pictures; leave count out")
        return self

    @property
    def total(self) -> int:
        """How many pictures this asks for."""
        return len(self.prompt) if self.prompt and len(self.prompt) > 1 else self.count or 1

    def seeds(self) -> list[int]:
        """A seed a picture: the first and those that follow it."""
        first = secrets.randbelow(2**32) if self.seed < 0 else self.seed
        return [(first + k) % 2**63 for k in range(self.total)]

    def prompts(self) -> list[str | None]:
        """A prompt a picture, None where nothing was said."""
        if not self.prompt:
            return [None] * self.total
        return [*self.prompt] if len(self.prompt) > 1 else [*self.prompt * self.total]
