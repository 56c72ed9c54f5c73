"""All numbers of a model folder, with the protocol that made them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__, files
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Data
from sfumato.diffusion.names import DEFAULT, DEFAULT_GRID
from sfumato.evaluation.captions import Matcher
from sfumato.evaluation.denoising import denoising
from sfumato.evaluation.reconstruction import reconstruction
from sfumato.model import LatentDiffusion
from sfumato.tasks.generate import generate
from sfumato.tasks.requests import Generate

SEED = 12_345  # of the first sample of the caption match; the next count up


def evaluate_codec(codec: Codec, data: Data) -> dict[str, Any]:
    """Reconstruction of held-out pictures."""
    part = data.open("held_out")
    protocol = {"data": part.fingerprint, "autoencoder": codec.fingerprint(), "sfumato": __version__}
    return {"reconstruction": reconstruction(codec, part), "protocol": protocol}


def evaluate_model(
    model: LatentDiffusion,
    data: Data,
    *,
    captions: int = 512,
    steps: int = 25,
    guidance: float = 3.0,
    sampler: str = DEFAULT,
    grid: str = DEFAULT_GRID,
    dtype: torch.dtype = torch.float32,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Reconstruction, held-out denoising loss and, for captioned data with a part `all`, the caption match of each part.

    Raises `ValueError` where the data do not have what the model was trained on.
    """
    request = Generate(
        seed=SEED, steps=steps, guidance=guidance, sampler=sampler, grid=grid, batch=128
    )  # checked before hours pass
    part = data.open("held_out")
    say = tell or (lambda text: None)
    say("reconstruction")
    found = evaluate_codec(model.codec, data)
    say("held-out denoising loss")
    found["denoising"] = denoising(model, part)
    settings = {
        "steps": steps,
        "guidance": guidance,
        "sampler": request.sampler,
        "grid": request.grid,
        "seed": SEED,
        "captions": captions,
    }
    found["protocol"] |= {
        "model": files.fingerprint(model.state_dict()),
        "samples": settings,
        "precision": str(dtype),
    }
    if "all" in data.parts and "caption" in model.conditions.fields.values():
        matcher = Matcher(data)

        def draw(texts: list[str]) -> Tensor:
            drawn = generate(model, request.model_copy(update={"prompt": texts}), dtype)
            return torch.cat([made.pictures.cpu() for made in drawn])

        found["caption_match"] = dict(_matches(matcher, data, draw, model.codec, captions, say))
    return found


def _matches(
    matcher: Matcher,
    data: Data,
    draw: Callable[[list[str]], Tensor],
    codec: Codec,
    captions: int,
    say: Callable[[str], None],
) -> Iterator[tuple[str, Any]]:
    # The headline is `held_out`, the combinations of words that training never showed together.
    for name, source in (("train", "train"), ("held_out", "combinations"), ("held_out_bases", "held_out")):
        if source in data.parts:
            say(f"caption match, {name.replace('_', ' ')}")
            yield name, matcher.match(data.open(source), draw, codec, captions)


def read_data(folder: Path) -> dict[str, Any] | None:
    """The `data` of the recipe beside a model folder, None where there is none."""
    import yaml

    path = folder.parent / "recipe.yaml"
    if not path.is_file():
        return None
    fields: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    found: dict[str, Any] | None = fields.get("data")
    return found
