"""What can be asked: one pydantic type a task, from which the Python call, the command and the route are made.

Nothing here imports torch, so that help and errors answer at once.
"""

import json
import operator
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

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


SPOKEN = re.compile(r"\s*(.*?)" + 4 * r"[\s,]+([^\s,]+)" + r"[\s,]*")  # a box in words: a class and four corners
METHODS = ("auto", "trained", "free")  # of inpainting


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


def _known_method(value: Any) -> Any:
    if value not in METHODS:
        raise ValueError(f"unknown method {value!r}; known: {', '.join(METHODS)}")
    return value


def _classes(value: Any) -> Any:
    """Classes by name or by number, one or several."""
    several = value if isinstance(value, list | tuple) else [value]
    found = [_integer(one) for one in several]
    return [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in found]


def _integer(value: Any) -> Any:
    """A whole number of another library as Python's; anything else as it is."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


Texts = Annotated[list[str], BeforeValidator(_listed)]
Classes = Annotated[list[str], BeforeValidator(_classes)]


def _picture(value: Any) -> Any:
    """A path, or a picture that is open: PIL's, known by what it can do, for nothing here imports it."""
    if isinstance(value, str):
        value = Path(value)
    if isinstance(value, Path):
        if not value.is_file():
            raise ValueError(f"there is no file {value}; give a picture")
        return value
    if hasattr(value, "convert") and hasattr(value, "size"):
        return value
    raise ValueError(f"a picture is a path or a PIL picture; got {type(value).__name__}")


def _pictures(value: Any) -> Any:
    """One picture or several."""
    several = list(value) if isinstance(value, list | tuple) else [value]
    if not several:
        raise ValueError("the list of pictures is empty; leave it out")
    return [_picture(one) for one in several]


def _folder(value: Any) -> Any:
    if not Path(value).is_dir():
        raise ValueError(f"there is no folder {value}; give a folder of pictures")
    return Path(value)


def _boxes(value: Any) -> Any:
    """Boxes as Python has them, as words («red apple 0.1 0.2 0.5 0.9»), or in a JSON file."""
    if isinstance(value, str | Path | Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"boxes are a list; got {type(value).__name__}")
    found: list[Any] = []
    for one in value:
        if isinstance(one, str | Path) and str(one).lower().endswith(".json"):
            found += _boxes_of(Path(one))
        else:
            found.append(one)
    return [_spoken(one) if isinstance(one, str) else _plain(one) for one in found]


def _plain(one: Any) -> Any:
    """A box with the numbers of another library as Python's, which are kept in the picture; what is no box as it is."""
    if isinstance(one, Mapping) and set(one) == {"label", "box"}:
        corners = one["box"]
        return {"label": _integer(one["label"]), "box": _floats(corners)}
    if isinstance(one, list | tuple) and len(one) == 5:
        return (_integer(one[0]), *_floats(one[1:]))
    return one


def _floats(corners: Any) -> Any:
    try:
        return [float(c) for c in corners]
    except (TypeError, ValueError, OverflowError):
        return corners  # which is told where boxes are read


def _spoken(words: str) -> Any:
    """«red apple 0.1 0.2 0.5 0.9», its corners with commas or without."""
    found = SPOKEN.fullmatch(words)
    label, *corners = found.groups() if found else ("",)
    try:
        if label:
            return (" ".join(label.split()), *(float(c) for c in corners))
    except ValueError:
        pass
    raise ValueError(f'a box is a class and four corners, "dog 0.1 0.2 0.5 0.9"; got {words!r}')


def _boxes_of(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give a JSON list of boxes")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); give a list of {{label, box: [x0, y0, x1, y1]}}") from None
    if not isinstance(found, list):
        raise ValueError(f"{path} holds no list; give a list of {{label, box: [x0, y0, x1, y1]}}")
    return found


def _sides(value: Any) -> Any:
    """«32,0,32,0» or one number for all four sides."""
    words = [value] if isinstance(value, int) else value.split(",") if isinstance(value, str) else value
    try:
        sides = [int(w) for w in words]
    except (TypeError, ValueError):
        raise ValueError(f"pixels to add are left,top,right,bottom or one number; got {value!r}") from None
    sides = sides * 4 if len(sides) == 1 else sides
    if len(sides) != 4 or min(sides) < 0:
        raise ValueError(f"pixels to add are left,top,right,bottom, none below 0; got {value!r}")
    return tuple(sides)


def _span(value: Any) -> Any:
    """«0.2,0.8» or two numbers."""
    words = value.split(",") if isinstance(value, str) else value
    try:
        low, high = (float(w) for w in words)
    except (TypeError, ValueError):
        raise ValueError(
            f"an interval is two times from 0, clean, to 1, noise, such as 0.2,0.8; got {value!r}"
        ) from None
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"an interval goes up, from 0 at the least to 1 at the most; got {low:g},{high:g}")
    return low, high


Picture = Annotated[Any, BeforeValidator(_picture)]
Pictures = Annotated[list[Any], BeforeValidator(_pictures)]
Folder = Annotated[Path, BeforeValidator(_folder)]
Boxes = Annotated[list[Any], BeforeValidator(_boxes)]
Sides = Annotated[tuple[int, int, int, int], BeforeValidator(_sides)]
Span = Annotated[tuple[float, float], BeforeValidator(_span)]


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
    sampler: Annotated[str, BeforeValidator(_known_sampler)] = Field(
        DEFAULT, description=f"one of {', '.join(SAMPLERS)}"
    )
    grid: Annotated[str, BeforeValidator(_known_grid)] = Field(
        DEFAULT_GRID, description=f"where the steps lie: {', '.join(GRIDS)}"
    )
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
    method: Annotated[str, BeforeValidator(_known_method)] = Field(
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
