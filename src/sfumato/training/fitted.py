"""Conditioners completed by the training data, and refused where the data have not what they read."""

from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.conditioning.base import ConditionerConfig
from sfumato.conditioning.bundle import silent
from sfumato.conditioning.lowres import LowresConfig
from sfumato.conditioning.pretrained_text import PretrainedText
from sfumato.conditioning.reference import ReferenceConfig
from sfumato.data.base import Part
from sfumato.data.degrade import DegradeConfig
from sfumato.data.once import warn
from sfumato.data.renumbered import renumbered
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.training.readable import readable
from sfumato.training.recipe import DiffusionRecipe

WITHIN = ("boxes", "map")  # kinds whose classes are of things in a picture
ALWAYS = ("frame",)  # what the loader says of every picture
REMEDIES = {
    "masked": "let `data.masks: {}` make it",
    "lowres": "let `data.degrade: {factor: 4}` make it",
    "caption": "put a NAME.txt beside each picture, or metadata.jsonl",
    "reference": "let `data.embed: {network: FILE}` make it",
    "near": "let `data.embed: {network: FILE, neighbours: 20}` make it",
    "label": "sort the pictures into class folders",
    "stride": "leave it to `stage: distillation` with `how: shortcut`, which tells it",
}


def fitted(
    recipe: DiffusionRecipe, part: Part, apart: Part | None = None
) -> tuple[DiffusionConfig, dict[str, dict[str, str]]]:
    """The model's configuration with its conditioners completed by the training data, and their texts.

    Raises `ValueError` where no picture has the field that a conditioner reads, as it would be trained on nothing, and
    where it could not read what the part, or `apart`, which is held out, has.
    """
    conditioners, texts = {}, {}
    for name, conditioner in recipe.conditioners.items():
        values = present(conditioner, part)
        # the classes of a picture are not those of what is in it
        names = part.class_names.get(conditioner.field, () if conditioner.kind_name() in WITHIN else part.labels)
        learnt, own = conditioner.learn(values, names)
        texts[name] = {
            **own,
            **(conditioner.heard(present(conditioner, part, conditioner.beside)) if conditioner.beside else {}),
        }
        learnt = learnt.model_copy(update={"always": always(conditioner, values, part)})
        regular(learnt, part)
        conditioners[name] = shrunk(seen(learnt.coloured(part.palettes.get(conditioner.field, ())), part), part)
        readable(learnt, texts[name], part, ())  # its values were learned from
        if apart is not None:
            readable(learnt, texts[name], apart)
    for conditioner in recipe.conditioners.values():
        if conditioner.beside and conditioner.beside not in {other.field for other in recipe.conditioners.values()}:
            raise ValueError(
                f"a planner reads {conditioner.beside!r}, which no conditioner tells the denoiser; add one of kind text for it"
            )
    undivided(conditioners)
    kept = {name: getattr(recipe, name) for name in DiffusionConfig.model_fields}
    return DiffusionConfig(**{**kept, "conditioners": conditioners}), texts


def present(conditioner: ConditionerConfig, part: Part, beside: str = "") -> list[Any]:
    """The values that a part has of a conditioner's field, or of the one `beside`; the first one alone where it does not
    read them all.

    Raises `ValueError` where there is none.
    """
    field = beside or conditioner.field
    if not field or field in ALWAYS:
        return []
    if conditioner.reads:
        found = [v for k in part.telling(field) if (v := part.field(k, field)) is not None]
        if all(silent(v) for v in found):
            raise ValueError(absent(conditioner, field))
        return found
    read = part.told if field in part.derived else part.fields
    first = next((v for k in range(len(part)) if not silent(v := read(k).get(field))), None)
    if first is None:
        raise ValueError(absent(conditioner, field))
    return [first]


def always(conditioner: ConditionerConfig, values: Sequence[Any], part: Part) -> bool | None:
    """Whether every example says a conditioner's field, of which the part has these values; None where not all are read."""
    known = part.every(conditioner.field)
    if known is not None or not conditioner.reads or not conditioner.field:
        return known
    return len(values) == len(part.telling(conditioner.field)) and not any(silent(v) for v in values)


def seen(conditioner: ConditionerConfig, part: Part) -> ConditionerConfig:
    """The recipe of a conditioner that reads embeddings, told the network that the data have them of.

    Raises `ValueError` where it knows another.
    """
    if not isinstance(conditioner, ReferenceConfig) or part.embeddings is None:
        return conditioner
    if conditioner.field not in part.embeddings.fields:
        return conditioner
    return conditioner.seen(part.embeddings.config.network, part.embeddings.looks())


def shrunk(conditioner: ConditionerConfig, part: Part) -> ConditionerConfig:
    """The recipe of a conditioner of small pictures, told whether the data make them by a resize and nothing else, and how
    large the one of a square is."""
    if not isinstance(conditioner, LowresConfig):
        return conditioner
    made = [d for d in part.derivations if isinstance(d, DegradeConfig) and d.field == conditioner.field]
    side = conditioner.side if part.shapes is None else part.size // (made[0].factor if made else 1)
    plain = any(d.how == "bicubic" for d in made) if conditioner.plain is None else conditioner.plain
    return conditioner.model_copy(update={"plain": plain, "side": side})


def gridded(config: DiffusionConfig, size: int, factor: int) -> DiffusionConfig:
    """The configuration with small pictures brought to the grid of latents of `factor` by as many learned halvings as they are
    larger, for pictures of `size`; what is lost all the same is warned of."""
    found = dict(config.conditioners)
    for name, one in found.items():
        if not isinstance(one, LowresConfig) or one.side is None:
            continue
        grid = max(size // factor, 1)
        fitting = max(one.side // grid, 1).bit_length() - 1
        found[name] = told = one if one.stages is not None else one.model_copy(update={"stages": min(fitting, 5)})
        seen = grid << (told.stages or 0)
        if one.side > seen:
            more = f"; conditioners.{name}.stages={fitting} keeps more of them" if fitting > (told.stages or 0) else ""
            warn(
                __name__,
                f"the small pictures of {one.side} pixels a side are shrunk to {seen} before the denoiser sees them{more}",
            )
    return config.model_copy(update={"conditioners": found})


def regular(conditioner: ConditionerConfig, part: Part) -> None:
    """Raise `ValueError` where the small pictures of a part are not all as many times smaller, or are not shown so."""
    fault = part.irregular(conditioner.field) if isinstance(conditioner, LowresConfig) else ""
    if fault:
        raise ValueError(f"{fault}, and an upscaler learns one magnification")


def undivided(conditioners: Mapping[str, ConditionerConfig]) -> None:
    """Raise `ValueError` where guidance would amplify what one conditioner hears in a field, and what another hears there it
    would not, for that was told in every example of the training."""
    several: dict[str, list[str]] = {}
    for name, one in conditioners.items():
        several.setdefault(one.field, []).append(name)
    for field, names in several.items():
        kept = [name for name in names if conditioners[name].always and not conditioners[name].dropout]
        if others := [name for name in names if conditioners[name].dropout and kept]:
            raise ValueError(
                f"conditioners {kept[0]!r} and {others[0]!r} both hear {field}, and only {others[0]!r} is trained without, so "
                "that guidance could amplify neither; give both a dropout, or neither"
            )


def absent(conditioner: ConditionerConfig, field: str) -> str:
    """What to do where no picture has a field that a conditioner reads."""
    remedy = REMEDIES.get(field, f"give the pictures a {field}, name another `field` that they have")
    kind = conditioner.kind_name()
    return f"no picture of the data has {field!r}, which a conditioner of kind {kind} reads: {remedy}, or leave it out"


def classes(model: LatentDiffusion) -> tuple[str, ...]:
    """The names of the classes that a model is told as `label`, () where it is told none."""
    told = "label" in model.conditions.fields.values()
    return tuple(getattr(model.conditions.reader("label"), "labels", ())) if told else ()


def shared(part: Part, model: LatentDiffusion) -> Part:
    """The part with its classes numbered as the model's of the same names; as it is where no name is shared.

    Raises `ValueError` where the model knows some of them only.
    """
    names = classes(model)
    gone = [name for name in part.labels if name not in names]
    if names and gone and len(gone) < len(part.labels):
        raise ValueError(f"the model does not know the class {gone[0]!r} of the data; it knows {', '.join(names[:20])}")
    return renumbered(part, names)


def called(conditioner: ConditionerConfig, part: Part) -> None:
    """Raise `ValueError` where a part's maps are of other classes than a trained model's, or of the same in another order."""
    own, theirs = getattr(conditioner, "labels", ()), part.class_names.get(conditioner.field, ())
    if conditioner.kind_name() == "map" and own and theirs and tuple(own) != tuple(theirs):
        raise ValueError(
            f"the maps of the data are of {', '.join(theirs[:10])}, and the model's of {', '.join(own[:10])}, in this order; "
            "number and name them as the model does (classes.json), or train a new model"
        )


def made_small(model: LatentDiffusion, part: Part) -> dict[str, ConditionerConfig]:
    """The model's conditioners as this part's small pictures have it: how large these are, and how they are made."""
    found = dict(model.config.conditioners)
    for name, conditioner in found.items():
        if isinstance(conditioner, LowresConfig):
            fresh = shrunk(conditioner.model_copy(update={"side": None, "plain": None}), part)
            found[name], _ = fresh.learn(present(conditioner, part), ())
    return found


def as_small(model: LatentDiffusion, part: Part) -> None:
    """Raise `ValueError` where a part's small pictures are of another size than a model was told."""
    for name, fresh in made_small(model, part).items():
        told = model.config.conditioners[name]
        if not isinstance(told, LowresConfig) or not isinstance(fresh, LowresConfig):
            continue
        if told.side not in (None, fresh.side):
            raise ValueError(
                f"the data make small pictures of {fresh.side} pixels a side, and the model was told ones of {told.side}; "
                "give it the same data.degrade"
            )


def known(model: LatentDiffusion, part: Part, apart: Part | None) -> tuple[Part, Part | None]:
    """Both parts as a trained model is told of them.

    Raises `ValueError` where they have not what its conditioners read, or say what these cannot read.
    """
    part, apart = shared(part, model), apart and shared(apart, model)
    for name, conditioner in model.config.conditioners.items():
        values = present(conditioner, part)
        seen(conditioner, part)
        called(conditioner, part)
        reader = model.conditions.reader(conditioner.field)
        if isinstance(reader, PretrainedText):
            reader.taught(values)
        for shown in filter(None, (part, apart)):
            readable(conditioner, model.texts[name], shown)
    return part, apart


def networks(model: LatentDiffusion) -> dict[str, str]:
    """The SHA-256 of the frozen networks that conditioners listen to, by the conditioners' names."""
    found = dict[str, str]()
    for name, conditioner in model.config.conditioners.items():
        sha256 = getattr(getattr(conditioner, "looks", conditioner), "sha256", None)
        if isinstance(sha256, str):
            found[name] = sha256
    return found


def heard(model: LatentDiffusion) -> None:
    """Raise `ValueError` where a conditioner tells tokens alone, and the network hears none."""
    if getattr(model.config.backbone, "attend", None) != "self":
        return
    for name, field in model.conditions.fields.items():
        sizes = model.conditions.reader(field).sizes
        if sizes.tokens and not sizes.vector:
            raise ValueError(
                f"conditioner {name!r} tells tokens, and a network with attend: self hears none; leave attend out"
            )


def varied(model: LatentDiffusion, part: Part) -> None:
    """Warn where all that cross-attention looks at is one token, whatever the picture: it tells every place the same."""
    readers: dict[str, Any] = dict(model.conditions.conditioners.items())
    sources = [name for name, reader in readers.items() if reader.sizes.tokens]
    conditioner = model.config.conditioners[sources[0]] if len(sources) == 1 else None
    if getattr(conditioner, "door", None) != "tokens":  # others are not asked for all their values again
        return
    assert conditioner is not None
    if conditioner.lone([value for value in present(conditioner, part) if not silent(value)]):
        warn(
            __name__,
            f"conditioner {sources[0]!r} tells one token of every picture, and cross-attention to one token gives every place "
            "the same; door: vector tells it for less",
        )
