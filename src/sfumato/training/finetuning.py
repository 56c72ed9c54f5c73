"""A trained model that goes on learning, on other pictures: the second stage's objective with weights that are not fresh.

What the model is made of stays: its first stage, network, conditioners and vocabulary, schedule and prediction. The
denoiser and the conditioners that were trained with it learn; an encoder that was frozen stays so.
"""

import logging

import torch

from sfumato import shipped
from sfumato.conditioning.stride import FIELD
from sfumato.data.base import Part
from sfumato.model import LatentDiffusion
from sfumato.training.fitted import classes, made_small
from sfumato.training.given import there
from sfumato.training.recipe import FinetuningRecipe, TimesConfig

log = logging.getLogger(__name__)


def begun(recipe: FinetuningRecipe) -> LatentDiffusion:
    """The model that a fine-tuning begins with, of the data's size, on the CPU.

    Raises `ValueError` where it is not there, makes pictures of no such size, or is one that few steps were baked into.
    """
    model = plain(LatentDiffusion.load(there(shipped.folder(recipe.start), recipe.data)))
    size = recipe.data.size
    if size != model.size:
        log.warning("the model makes %d pixels a side and goes on with pictures of %d (data.size)", model.size, size)
        model = sized(model, size)
    model.denoiser.train()
    model.conditions.train()
    return model


def named(model: LatentDiffusion, part: Part) -> None:
    """Raise `ValueError` where the data's classes are none of the model's: they would be told under others' names."""
    names = classes(model)
    if names and part.labels and not set(part.labels) & set(names):
        raise ValueError(
            f"the data's classes ({', '.join(part.labels[:5])}) are none of the model's ({', '.join(names[:20])}); name their "
            "folders as the model names them, or train a new model"
        )


def times(recipe: FinetuningRecipe, model: LatentDiffusion) -> TimesConfig:
    """How training times are drawn: as the recipe says, else as the field's tables of betas and flows are trained."""
    if recipe.times is not None:
        return recipe.times
    return TimesConfig(density="uniform" if model.config.schedule.kind == "betas" else "logit_normal")


def magnifying(model: LatentDiffusion, part: Part) -> LatentDiffusion:
    """The model told how large the data's small pictures are and how they are made: by so much it magnifies from then on."""
    conditioners = made_small(model, part)
    if conditioners == model.config.conditioners:
        return model
    for name, fresh in conditioners.items():
        before, now = (getattr(c, "plain", None) for c in (model.config.conditioners[name], fresh))
        if None not in (before, now) and before is not now:
            log.warning(
                "the data's small pictures are %s, the model's were not: what it makes is %s to them in sampling",
                "large ones made small and nothing else" if now else "worse than large ones made small",
                "held" if now else "no longer held",
            )
    config = model.config.model_copy(update={"conditioners": conditioners})
    made = LatentDiffusion(model.codec, config, model.size, model.texts).to(model.device)
    made.denoiser.load_state_dict(model.denoiser.state_dict())
    made.conditions.load_state_dict(model.conditions.state_dict())
    made.denoiser.train()
    made.conditions.train()
    return made


def sized(model: LatentDiffusion, size: int) -> LatentDiffusion:
    """The model with pictures of another side. Raises `ValueError` for one that the first stage or the network cannot make."""
    made = LatentDiffusion(model.codec, model.config, size, model.texts)
    made.latent_shape()
    try:
        made.denoiser.load_state_dict(model.denoiser.state_dict())
        made.conditions.load_state_dict(model.conditions.state_dict())
    except RuntimeError:
        raise ValueError(f"this model cannot go on at {size} pixels a side; set data.size={model.size}") from None
    return made.eval()


@torch.no_grad()
def plain(model: LatentDiffusion) -> LatentDiffusion:
    """The model as it was before it was distilled: a shortcut that is told no stride, where that is its teacher's flow.

    What the stride 0 tells the network is the same for every picture, so it is added to the bias behind it, and the network
    gives what it gave. Raises `ValueError` where guidance and steps are baked in.
    """
    told = model.config.distilled
    if told is None:
        return model
    if told.how != "shortcut" or told.flow != "plain":
        raise ValueError(
            "this model was distilled into few steps, which training on pictures would undo; give the model that it was "
            "distilled from as `start`, and distil again after"
        )
    name = next(n for n, field in model.conditions.fields.items() if field == FIELD)
    reader, config = model.conditions.reader(FIELD), model.config
    rest = {n: c for n, c in config.conditioners.items() if n != name}
    made = LatentDiffusion(
        model.codec, config.model_copy(update={"conditioners": rest, "distilled": None}), model.size, model.texts
    )
    state = model.conditions.state_dict()
    made.conditions.load_state_dict({key: state[key] for key in made.conditions.state_dict()})
    weights, width = model.denoiser.state_dict(), made.conditions.sizes.vector
    said = weights.pop("network.vector.weight"), weights.pop("network.vector.bias")
    null = reader.null(1).vector
    assert null is not None
    always = said[1] + said[0][:, width:] @ null[0]
    if width:
        weights |= {"network.vector.weight": said[0][:, :width], "network.vector.bias": always}
    else:
        last = max(key for key in weights if key.startswith("network.time.layers.") and key.endswith("bias"))
        weights[last] = weights[last] + always
    made.denoiser.load_state_dict(weights)
    return made.eval()
