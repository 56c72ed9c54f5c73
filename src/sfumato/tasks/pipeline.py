"""What `sfumato.load` returns: a model with a method a task, pictures in and out as PIL images."""

import hashlib
import importlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from pydantic import ValidationError

from sfumato import __version__, image, shipped
from sfumato import device as devices
from sfumato.conditioning.boxes import Box
from sfumato.config import explain
from sfumato.families import base as families
from sfumato.families.base import Family
from sfumato.model import LatentDiffusion
from sfumato.tasks import few, given, metadata
from sfumato.tasks.generate import unused
from sfumato.tasks.requests import Generate, Inpaint, Layout, Panorama, Request, Semantic, Upscale, Vary
from sfumato.tasks.said import fields, heeded, planned
from sfumato.tasks.walk import Progress

log = logging.getLogger(__name__)


class Pipeline:
    """A loaded model. `model` is the LatentDiffusion itself, for those who want the tensors; `family` is set instead
    where the folder holds a model of another family, which can only `generate`."""

    def __init__(
        self, model: LatentDiffusion | Family, name: str, dtype: torch.dtype = torch.float32, digest: str = ""
    ) -> None:
        self.name, self.digest, self.told = name, digest, set[str]()
        # what else a picture hangs on
        self.beside = {} if dtype == torch.float32 else {"precision": devices.named(dtype)}
        self.family = model.eval() if isinstance(model, Family) else None
        if self.family is not None and dtype != torch.float32:
            raise ValueError("a model of this family works in float32; leave precision out")
        if not isinstance(model, Family):
            self.model = model.eval().for_sampling(dtype)

    @property
    def channels(self) -> int:
        """Of the pictures that the model reads."""
        return 3 if self.family is not None else self.model.codec.image_channels

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", precision: str = "fp32", trust: bool = False) -> Self:
        """Open a model folder, a run folder that holds one, or a model that ships, by its name.

        `precision` is that of the network's weights and work (`fp32`, `bf16`, or `auto`); noise, latents and the
        decoder stay in float32.
        `trust` allows kinds that are foreign code. Raises `ValueError` where something is missing, damaged or foreign.
        """
        path = shipped.folder(folder)
        if not path.exists():
            raise ValueError(f"there is no model folder {path}; {shipped.told()}")
        where = devices.pick(device)
        model = opened(path, where, trust)
        own = path.resolve()
        name = own.parent.name if own.name == "model" else own.name
        # model.yaml holds the hash of every file beside it, so its own names the whole model
        digest = hashlib.sha256((path / "model.yaml").read_bytes()).hexdigest()[:10]
        fixed = isinstance(model, Family) and precision == "auto"  # which one that draws in float32 need not choose
        return cls(model, name, devices.precision("fp32" if fixed else precision, where), digest)

    def generate(self, request: Generate | None = None, **settings: Any) -> list[Image.Image]:
        """Pictures for a request, or for its fields as keywords: prompt, count, seed, steps, guidance, negative, ...

        Each picture's `info` holds its settings. Raises `ValueError` where the request or the model does not allow it.
        So do all tasks; their fields are those of the request types in `sfumato.tasks.requests`.
        """
        return self._all(Generate, request, settings)

    def vary(self, request: Vary | None = None, **settings: Any) -> list[Image.Image]:
        """Pictures like the given `picture`: strength, invert, prompt, ..."""
        return self._all(Vary, request, settings)

    def inpaint(self, request: Inpaint | None = None, **settings: Any) -> list[Image.Image]:
        """The given `picture` with the hole of `mask` filled, or with `expand` pixels added to its sides."""
        return self._all(Inpaint, request, settings)

    def upscale(self, request: Upscale | None = None, **settings: Any) -> list[Image.Image]:
        """The given `picture`, larger by the model's factor."""
        return self._all(Upscale, request, settings)

    def layout(self, request: Layout | None = None, **settings: Any) -> list[Image.Image]:
        """Pictures whose things stand where `boxes` say."""
        return self._all(Layout, request, settings)

    def plan(self, prompt: str, seed: int = 0) -> list[Box]:
        """The boxes that `generate` draws this prompt in with this seed, of a model whose boxes have a planner: (label, x0,
        y0, x1, y1) with corners in [0, 1], to look at, to change, and to hand to `layout`. Raises `ValueError` for others."""
        if self.family is not None or not self.model.conditions.besides:
            raise ValueError("this model has no planner, so it draws no layouts from words; give `layout` the boxes")
        if not prompt.strip() or seed < 0:
            raise ValueError("a layout is planned from words and a seed that is not negative; give both")
        said = planned(self.model, fields(self.model, [prompt], None), [seed])
        found: list[Box] = said[next(iter(self.model.conditions.tellable))][0]
        return found

    def semantic(self, request: Semantic | None = None, **settings: Any) -> list[Image.Image]:
        """Pictures of what `map` says is where."""
        return self._all(Semantic, request, settings)

    def panorama(self, request: Panorama | None = None, **settings: Any) -> list[Image.Image]:
        """Pictures of `width` by `height`, larger than the model was trained on."""
        return self._all(Panorama, request, settings)

    def stream(self, request: Request, tell: Progress | None = None) -> Iterator[Image.Image]:
        """The pictures of a request of any task one by one, as their batches are done."""
        if self.family is not None and not isinstance(request, Generate):
            raise ValueError(
                f"a model of this family makes pictures of nothing but a class; it cannot {_name(type(request))}"
            )
        if self.family is None:
            amplified = heeded(self.model, request)
            request = few.settled(self.model, request)
            request = request if amplified else request.model_copy(update={"guidance": 1.0})  # which a picture tells
        place = itertools.count()
        for made in task(request)(self.family or self.model, request, tell=tell):
            pictures = image.to_pil(made.pictures)
            for picture, seed, prompt in zip(pictures, made.seeds, made.prompts, strict=True):
                s = metadata.settings(
                    made.request, next(place), seed, prompt, picture.size, self.name, self.digest, __version__
                )
                s, unsaid = {**s, **self.beside}, unused(self.family)
                yield metadata.attach(picture, {name: value for name, value in s.items() if name not in unsaid})

    def _all(self, kind: type[Request], request: Request | None, settings: dict[str, Any]) -> list[Image.Image]:
        if request is not None and settings:
            raise ValueError(f"give a request or its fields, not both; got also {', '.join(settings)}")
        if request is not None and not isinstance(request, kind):
            raise ValueError(
                f"{_name(kind)} takes a request of its own type, {kind.__name__}; got {type(request).__name__}"
            )
        request = request or asked(kind, settings)
        for what, said in given.converted(request, self.channels):
            if said not in self.told:
                log.warning("%s: %s; others like it are not told", what, said)
            self.told.add(said)
        return list(self.stream(request))


def opened(path: Path, where: torch.device, trust: bool = False) -> LatentDiffusion | Family:
    """The model of a folder, of whatever stage it is."""
    text = (
        (path / "model.yaml").read_text(encoding="utf-8", errors="replace") if (path / "model.yaml").is_file() else ""
    )
    if "stage: family" in text.splitlines():
        return families.load(path, where, trust)
    return LatentDiffusion.load(path, where, trust=trust)


def _name(kind: type[Request]) -> str:
    return kind.__name__.lower()


def task(request: Request) -> Any:
    """The function of a request's task, which bears its name: `Vary` is `sfumato.tasks.vary.vary`."""
    name = _name(type(request))
    return getattr(importlib.import_module(f"sfumato.tasks.{name}"), name)


def asked(kind: type[Request], settings: dict[str, Any]) -> Any:
    """A request from its fields. Raises `ValueError`, one line a fault."""
    try:
        return kind(**settings)
    except ValidationError as error:
        raise ValueError(explain(error, _name(kind))) from None
