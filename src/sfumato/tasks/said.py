"""What is said of pictures: a request's words, classes, boxes and map, under the fields that the model's conditioners read."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.conditioning import pictures
from sfumato.conditioning.base import Draws
from sfumato.conditioning.boxes import box, scaled
from sfumato.conditioning.bundle import silent
from sfumato.conditioning.label import named
from sfumato.model import LatentDiffusion
from sfumato.tasks import given
from sfumato.tasks.canvas import Canvas
from sfumato.tasks.requests import Request

log = logging.getLogger(__name__)
Said = Mapping[str, Sequence[Any]]  # values by field, one a picture
ASKED = {  # what a request says to each role
    "caption": "a prompt", "label": "a label", "boxes": "boxes", "map": "a map", "reference": "a reference",
    "lowres": "a small picture", "masked": "a picture with a hole",
}  # fmt: skip
SAID = {  # the fields of a request in which it says something to each role
    "caption": ("prompt",), "label": ("label",), "boxes": ("boxes",), "map": ("map",), "reference": ("reference", "bank"),
}  # fmt: skip
TOLD = {"boxes": "layouts", "map": "semantic maps"}  # what a request of any task may say of where things stand


def fields(
    model: LatentDiffusion, prompts: Sequence[str | None], labels: Sequence[str] | None, what: str = "prompt"
) -> dict[str, list[Any]]:
    """What words, the request's `what`, and classes say; several classes are all of each picture.

    Raises `ValueError` where the model takes no text or no label, and where none of its fields knows a label.
    """
    said: dict[str, list[Any]] = {}
    if any(p is not None for p in prompts):
        said.update({field: list(prompts) for field in _words(model, what)})
    if labels is None:
        return said
    known = {field: model.conditions.reader(field) for field in model.conditions.asked("label")}
    if not known:
        raise ValueError("this model was trained without labels, so it takes no label; leave the label out")
    for one in labels:
        for field in _knowing(one, known):
            said.setdefault(field, []).append(named(one, getattr(known[field], "labels", ())))
    several = {field: said[field] for field in known if field in said}
    said.update({field: [found if len(found) > 1 else found[0]] * len(prompts) for field, found in several.items()})
    return said


def _knowing(label: str, readers: Mapping[str, Any]) -> list[str]:
    """The fields that a label is said of: the only one, or of several those that know its name, or the one that is called
    so. Raises `ValueError` where there is none of these, for a number is a class of each."""
    found = [field for field, reader in readers.items() if label in getattr(reader, "labels", ())]
    if not found and "label" in readers:
        return ["label"]
    if found or len(readers) == 1:
        return found or list(readers)
    known = "; ".join(f"{field}: {', '.join(map(str, reader.labels[:20]))}" for field, reader in readers.items())
    raise ValueError(f"no label of this model is called {label!r}; give a name of one of its labels ({known})")


def _words(model: LatentDiffusion, what: str) -> list[str]:
    known = model.conditions.asked("caption")
    if not known:
        raise ValueError(f"this model was trained without text, so it takes no {what}; leave the {what} out")
    return known


def placed(model: LatentDiffusion, request: Request, canvas: Canvas) -> dict[str, Any]:
    """What the request's boxes and map say of every picture, over the latents of its canvas, which may reach further than
    the picture. Raises `ValueError` where the model takes none, or cannot read them."""
    said: dict[str, Any] = {}
    down, across = canvas.covered(model.codec.factor)
    for role, what in TOLD.items():
        value = getattr(request, role)
        if value is None:
            continue
        field = takes(model, role, what)
        if role == "boxes":
            known = getattr(model.conditions.reader(field), "labels", ())
            value = [_numbered(one, known) for one in value]
            said[field] = value if down == across == 1 else scaled(value, down, across)
        else:
            numbers = model.conditions.reader(field).value(given.opened(value, role))
            size = canvas.height, canvas.width
            pixel = max(1.0, *(n / m for n, m in zip(size, numbers.shape, strict=True)))  # sizes may be rounded to one
            pictures.fits(numbers, size, field, pixel)
            said[field] = given.larger(
                numbers, *(round(n / s) for n, s in zip(numbers.shape, (down, across), strict=True))
            )
    return said


def _numbered(one: Any, labels: Sequence[str]) -> Any:
    """A box whose class is said by its number, in words, with the number; other boxes as they are."""
    found = box(one)
    return (named(found.label, labels), *found[1:]) if isinstance(found.label, str) else found


def planned(model: LatentDiffusion, said: Said, seeds: Sequence[int]) -> Said:
    """With the boxes that a model with a planner draws from words, each picture's from its own seed, where none are said.

    Nothing is planned where a map tells it, nor by tasks that begin with a picture: what is there stands where it stands.
    """
    told = any(not silent(value) for field in model.conditions.asked("map") for value in said.get(field, ()))
    return said if told else model.conditions.imagined(said, len(seeds), Draws.request(seeds))


def takes(model: LatentDiffusion, role: str, what: str) -> str:
    """The field of the conditioner that plays this role. Raises `ValueError` unless the model was trained with one, and where
    several fields are meant and none of them is called so."""
    found: list[str] = model.conditions.asked(role)
    if not found:
        known = ", ".join(ASKED[one] for one in ASKED if model.conditions.asked(one))
        raise ValueError(
            f"this model was not trained for {what}: it takes {known or 'no condition'}; use a model whose recipe has a "
            f"conditioner of the kind {role!r}"
        )
    if len(found) > 1:
        raise ValueError(
            f"this model was trained for {what} in {' and '.join(found)}, and a request says one; in Python "
            "`model.conditions` is told each by its field, or train one whose recipe calls the one that is meant "
            f"{role!r}"
        )
    return found[0]


def negative(model: LatentDiffusion, request: Request, said: Said, count: int) -> dict[str, list[Any]]:
    """What guidance moves away from: the request's negative, and what is kept on both sides, such as a masked picture."""
    kept = {name: list(values) for name, values in said.items() if name in model.conditions.kept}
    if denied(request):
        kept.update({field: [request.negative] * count for field in _words(model, "negative")})
    return kept


def denied(request: Request) -> bool:
    """Whether the request has a negative that says something."""
    return bool(request.negative and request.negative.strip())


def scale(model: LatentDiffusion, request: Request, said: Said) -> float:
    """The request's guidance, 1 where nothing is said that guidance could amplify or move away from."""
    return request.guidance if denied(request) or set(said) - model.conditions.kept else 1.0


def heeded(model: LatentDiffusion, request: Request) -> bool:
    """Whether the request says anything that guidance can amplify or move away from; warns where it asks for guidance, or an
    interval of it, which do nothing then."""
    told = [role for role, several in SAID.items() if any(getattr(request, field) is not None for field in several)]
    spoken = {field for role in told for field in model.conditions.asked(role)}
    if denied(request) or spoken - model.conditions.kept:
        return True
    asked = request.guidance != 1.0 and "guidance" in request.model_fields_set
    if asked or request.interval is not None:
        log.warning("nothing is said that guidance could amplify: pictures are made without, at guidance 1")
    return False


def complete(model: LatentDiffusion, said: Said) -> None:
    """Raise `ValueError` where nothing is said of what the model was told in every example of its training."""
    made_up = sorted(model.conditions.tellable & model.conditions.kept)  # from words, where a task plans at all
    wanting = [*model.conditions.wanting(said), *(f for f in made_up if any(silent(v) for v in said.get(f, (None,))))]
    if wanting:
        raise ValueError(
            f"this model was told {' and '.join(wanting)} in every example of its training and makes nothing without; "
            "say it, or use a model whose recipe has a dropout there"
        )
