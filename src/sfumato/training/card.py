"""The README of a model folder that a training writes."""

from collections.abc import Sequence

import yaml

from sfumato import __version__
from sfumato.training.recipe import DecoderRecipe, DiffusionRecipe, FamilyRecipe


def card(recipe: DiffusionRecipe | FamilyRecipe, labels: Sequence[str] = (), start: str = "") -> str:
    """The model folder's README: what it is, what it was trained on, how to use it.

    `labels` are those of a family, `start` is the model that was trained on.
    """
    said = {k: v for k, v in recipe.data.model_dump(mode="json").items() if v is not None}
    data = yaml.safe_dump(said, sort_keys=False).strip()
    kinds = {c.kind_name() for c in recipe.conditioners.values()} if isinstance(recipe, DiffusionRecipe) else set()
    if isinstance(recipe, DiffusionRecipe) and "lowres" in kinds:
        called = "upscale(picture=small, seed=0)"
    elif "masked" in kinds:
        called = "inpaint(picture=photo, mask=hole, seed=0)"
    else:
        called = f"generate({_said(kinds, bool(labels))}count=4, seed=0)"
    return (
        f"# {_called(recipe)} made with Sfumato {__version__}\n\n"
        f"Trained{f', from the weights of {start},' if start else ''} on {recipe.training.images:,} images of\n\n"
        f"```yaml\n{data}\n```\n\n"
        "The licence of the pictures it was trained on is that of their authors; see the data set."
        f"{' What the other model was trained on stands on its own card.' if start else ''}\n\n"
        '```python\nimport sfumato\nmodel = sfumato.load("this folder")\n'
        f"images = model.{called}\n```\n"
    )


def redecoded(before: str, recipe: DecoderRecipe) -> str:
    """The card of a model whose decoder went on learning: what it had, and that."""
    said = {k: v for k, v in recipe.data.model_dump(mode="json").items() if v is not None}
    data = yaml.safe_dump(said, sort_keys=False).strip()
    told = f"Its decoder went on learning, with Sfumato {__version__}, on {recipe.training.images:,} images of"
    return f"{before.rstrip()}\n\n{told}\n\n```yaml\n{data}\n```\n"


def _said(kinds: set[str], labels: bool) -> str:
    """What a first picture is asked by."""
    classes = labels or "label" in kinds
    places = "".join(f"{kind}=..., " for kind in ("boxes", "map") if kind in kinds)
    words = 'prompt="...", ' if kinds & {"text", "pretrained_text"} else 'label="...", ' if classes else ""
    return words + places


def _called(recipe: DiffusionRecipe | FamilyRecipe) -> str:
    return (
        "A latent diffusion model" if isinstance(recipe, DiffusionRecipe) else f"A model ({recipe.family.kind_name()})"
    )
