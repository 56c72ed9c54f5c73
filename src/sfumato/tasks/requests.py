"""What can be asked: one pydantic type a task, from which the Python call, the command and the route are made.

Nothing here imports torch, so that help and errors answer at once.
"""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from sfumato.config import Config
from sfumato.diffusion.names import DEFAULT, DEFAULT_GRID, GRIDS, SAMPLERS
from sfumato.tasks.forms import (
    METHODS,
    Boxes,
    Classes,
    Folder,
    Grid,
    Method,
    Picture,
    Pictures,
    Sampler,
    Sides,
    Span,
    Texts,
)

BOXES = '"dog 0.1 0.2 0.5 0.9", class and corners; or a JSON file of them'
MAP = "class numbers, gray or with a palette, or the classes' colours"


class Request(Config):
    """What every task asks: words, a class or a reference, seeds, and how it is sampled."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    prompt: Texts | None = Field(None, description="what the picture shows; several prompts give one picture each")
    negative: str | None = Field(None, description="what to move away from; nothing: the unconditional prediction")
    label: Classes | None = Field(
        None, description="a class, for models that were trained with labels; several are all of one picture"
    )
    reference: Pictures | None = Field(
        None, description="pictures to be like, for models that were trained with embeddings of pictures"
    )
    boxes: Boxes | None = Field(None, description=f"where things stand: {BOXES}")
    map: Picture | None = Field(None, description=f"what is where: {MAP}")
    bank: Folder | None = Field(
        None, description="folder of pictures: those that are nearest to the reference are told instead"
    )
    neighbours: int | None = Field(None, ge=1, description="how many of the bank; by default as many as in training")
    count: int | None = Field(None, ge=1, le=10_000, description="pictures to make; one a prompt by default")
    seed: int = Field(-1, ge=-1, le=2**63 - 1, description="seed of the first picture, the next count up; -1: random")
    steps: int = Field(25, ge=1, le=1000, description="denoising steps")
    guidance: float = Field(3.0, ge=0, le=100, description="how strictly to follow the words; 1: not amplified")
    interval: Span | None = Field(
        None, description="times low,high from 0, clean, to 1, noise, between which guidance acts; else everywhere"
    )
    sampler: Sampler = Field(DEFAULT, description=f"one of {', '.join(SAMPLERS)}")
    grid: Grid = Field(DEFAULT_GRID, description=f"where the steps lie: {', '.join(GRIDS)}")
    batch: int = Field(64, ge=1, le=4096, description="pictures made at once; it does not change them")

    @model_validator(mode="before")
    @classmethod
    def _both_in_one(cls, values: Any) -> Any:
        """«DPM++ 2M Karras», as others write it, is a sampler and a grid."""
        if not isinstance(values, Mapping) or not isinstance(said := values.get("sampler"), str):
            return values
        name, _, grid = said.rpartition(" ")
        if not name or grid.lower() not in GRIDS or "grid" in values:
            return values
        return {**values, "sampler": name, "grid": grid}

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.neighbours is not None and self.bank is None:
            raise ValueError("neighbours are looked for in a bank; give both or neither")
        if self.boxes is not None and not self.boxes:
            raise ValueError("the list of boxes is empty; give at least one")
        if self.label is not None and not self.label:
            raise ValueError("the list of labels is empty; leave label out for a picture of no class")
        if any(not str(label).strip() for label in self.label or []):
            raise ValueError("a label is empty; leave label out for a picture of no class")
        if self.prompt is not None and not self.prompt:
            raise ValueError("the list of prompts is empty; leave prompt out for an unconditional picture")
        for text in [*(self.prompt or []), self.negative or "", getattr(self, "source", None) or ""]:
            if text != text.encode(errors="replace").decode():
                raise ValueError(f"a text is not UTF-8: {text[:40]!r}; set the terminal or the script to UTF-8")
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


Side = Annotated[int | None, Field(ge=1, le=16_384, description="pixels; by default what the model was trained at")]


class Generate(Request):
    """Pictures from words, a class, or nothing at all."""

    width: Side = None
    height: Side = None
    variation_seed: int | None = Field(None, ge=0, le=2**63 - 1, description="mix in the noise of this seed, and on")
    variation: float = Field(0.1, ge=0, le=1, description="how much of the variation seed's noise is mixed in")
    until: int | None = Field(
        None, ge=0, le=2**63 - 1, description="from the seed's picture to this seed's, in `count` pictures"
    )
    plan: bool = Field(
        True, description="draw a layout from the words first, where the model has a planner and no boxes are said"
    )

    def seeds(self) -> list[int]:
        """A seed a picture; between two seeds all noise but the first is the first seed's."""
        return [self.seed] * self.total if self.until is not None else super().seeds()

    @model_validator(mode="after")
    def _goes_somewhere(self) -> Self:
        if self.until is not None and (self.total < 2 or self.seed < 0):
            raise ValueError(
                "interpolation goes from --seed to --until in --count pictures, at least two; give all three"
            )
        if self.variation != type(self).model_fields["variation"].default and self.variation_seed is None:
            raise ValueError("variation is how much of another seed's noise is mixed in; say which as variation_seed")
        if self.until is not None and self.variation_seed is not None:
            raise ValueError("interpolation and variation both mix noise; give until or variation_seed")
        return self


class Vary(Request):
    """Another picture like a given one: its noise begins part of the way (Meng et al., 2022, «SDEdit»)."""

    picture: Picture = Field(description="the picture to begin from")
    strength: float = Field(0.6, gt=0, le=1, description="how far it goes back to noise; 1: nothing is left of it")
    invert: bool = Field(
        False, description="find the picture's own noise by DDIM inversion, for edits that keep its form"
    )
    source: str | None = Field(None, description="with invert: what the given picture shows")

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.invert and self.total > 1 and len(self.prompt or []) < 2:
            raise ValueError(
                f"an inversion begins with the picture's own noise, whatever the seed, so that {self.total} pictures would be "
                "the same; leave count out, or give several prompts"
            )
        return self


class Inpaint(Request):
    """Fill a hole in a picture, or add to its sides; what is outside of the hole comes back as it is."""

    picture: Picture = Field(description="the picture")
    mask: Picture | None = Field(None, description="white where there is a hole; gray is soft; as large as the picture")
    expand: Sides | None = Field(None, description="outpainting: pixels to add left,top,right,bottom")
    method: Method = Field(
        "auto", description=f"one of {', '.join(METHODS)}; trained: by a model made for it; free: by any"
    )
    resample: int = Field(
        3, ge=1, le=50, description="free: how often a step is taken (RePaint, by ddim); 1: the sampler"
    )
    soften: int = Field(0, ge=0, le=256, description="pixels over which the hole's edge fades into the picture")

    @model_validator(mode="after")
    def _has_a_hole(self) -> Self:
        if self.mask is None and not any(self.expand or ()):
            raise ValueError("there is nothing to fill: give a mask, or expand")
        return self


class Upscale(Request):
    """A larger picture with the detail that the small one lacks (Saharia et al., 2021; Rombach et al., 2022, 4.4)."""

    picture: Picture = Field(description="the small picture, of any size")
    level: float | None = Field(
        None, ge=0, le=1, description="noise added to the small picture; more invents more, 0 trusts it"
    )
    consistent: bool | None = Field(
        None,
        description="correct the picture until, made small again, it is the one given; by default where the model was "
        "trained on small pictures without noise, blur or blocks of their own",
    )
    guidance: float = Field(1.0, ge=0, le=100, description="how strictly to follow words, where the model takes them")


class Layout(Request):
    """A picture whose things stand where boxes say."""

    boxes: Boxes = Field(description=BOXES)
    width: Side = None
    height: Side = None


class Semantic(Request):
    """A picture from a map that says what is where."""

    map: Picture = Field(description=MAP)
    width: int | None = Field(None, ge=1, le=16_384, description="pixels; by default as the map, in its shape")
    height: int | None = Field(None, ge=1, le=16_384, description="likewise")


class Panorama(Request):
    """A picture larger than the model was trained on, made of windows that agree (Bar-Tal et al., 2023)."""

    width: int = Field(ge=1, le=16_384, description="pixels")
    height: Side = None
    overlap: float = Field(0.5, ge=0, lt=1, description="share of a window that the next one covers too")
    wrap: bool = Field(False, description="the right edge goes on at the left, as in a view all around")
    whole: bool = Field(
        False, description="no windows: the network sees all of it at once (Rombach et al., 2022, 4.3.2)"
    )
