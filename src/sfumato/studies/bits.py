"""Likelihoods in `families`: a transformer over bytes beside a VAE and diffusion of pixels, which tell the same pictures.

All values of 32 pixels a side are a chain of 3,072, too slow for two cores; at 8 pixels they are 192, and an exact
likelihood and two bounds are of the same 8-bit numbers. A GAN has none, and latents have one of their own, not of pixels.
Of transformers over palettes and codes the bits a token tell whether they learned the pictures or learned them by heart.
Held-out pictures are one of each family, as training shows its own.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sfumato import files
from sfumato.data.base import Part
from sfumato.data.picked import Picked, one_each
from sfumato.diffusion.grid import exponential
from sfumato.diffusion.likelihood import discrete
from sfumato.families.autoregressive import Autoregressive
from sfumato.families.base import Family
from sfumato.model import LatentDiffusion
from sfumato.streams import Stream
from sfumato.studies import recipes
from sfumato.studies.desk import Desk
from sfumato.studies.measure import drawing, spread
from sfumato.studies.result import Table
from sfumato.studies.verdict import Claim, Spread, paired
from sfumato.tasks.pipeline import opened
from sfumato.training.likelihood import Measure, over

SIDE = 8  # pixels
BYTES, VAE, PIXELS = "transformer over bytes", "VAE", "pixel diffusion"
# of the distance of two levels of 8 bits, each of which gives a bound: a model that knows of levels has the better one by
# the small blur, which costs it 0.2 bits of what it knows for sure, one that knows none by the large one
BLURS = (0.25, 0.5)
STEPS, PICTURES = 16, 128  # of the flow whose density is integrated, and how many pictures it is of
Found = dict[str, list[float]]  # bits per dimension of each picture, `held` and `trained`


def fields(small: Desk) -> dict[str, dict[str, Any]]:
    """All three, at 8 pixels. The VAE is small: with as many weights as the others it is behind itself after as long a
    training (of flowers, 6.88 bits rather than 6.44)."""
    cond = recipes.by_class() if small.labelled else None
    return {
        BYTES: recipes.family("autoregressive", tokens="bytes", side=SIDE, width=256, depth=6, heads=4, batch=8),
        VAE: recipes.family("vae", width=128, channels=16),
        PIXELS: recipes.denoiser(small.pixels("bits-pixels"), cond, width=128, multipliers=(1, 1)),
    }


def compared(desk: Desk, hours: float, whole: Path) -> tuple[Table, list[Claim]]:
    """Train all for so many hours each and measure them, and `whole`, the VAE of the study's own size, beside them."""
    small, found, lines = replace(desk, data={**desk.data, "size": SIDE}), dict[str, Found](), list[list[str]]()
    for name, one in fields(small).items():
        run = f"bits-{name.replace(' ', '-')}"
        folder = small.trained(run, one, small.budget(run, one, hours))
        found[name] = bits(small, run, folder)
        lines.append(line(small, name, folder, found[name]))
    lines.append(line(desk, VAE, whole, bits(desk, "bits-whole", whole)))
    head = ["", "pixels a side", "parameters that draw", "minutes", "held-out pictures", "pictures it was trained on"]
    table = Table(
        "Bits a dimension: exact of the transformer, bounds of the others; with the standard error", head, lines
    )
    well, claims = found[BYTES]["held"], list[Claim]()
    for name, what in ((VAE, "a VAE"), (PIXELS, "diffusion of pixels")) if well else ():
        worse = found[name]["held"]
        same = [well[k] for k in spread(len(well), len(worse))]  # diffusion's bound is of fewer, from all of them
        claims.append(paired(f"An autoregressive model's likelihood is better than the bound of {what}", worse, same))
    return table, claims


def line(desk: Desk, name: str, folder: Path, found: Found) -> list[str]:
    """A row of the table."""
    minutes = desk.seconds(folder.parent.name) / 60
    told = (_mean(found[part]) for part in ("held", "trained"))
    return [name, str(desk.train.size), f"{drawing(folder) / 1e6:.1f} M", f"{minutes:.1f}", *told]


def bits(desk: Desk, name: str, folder: Path) -> Found:
    """Of held-out pictures and of some of training, each."""

    def make() -> Found:
        model = opened(folder, desk.device)
        if isinstance(model, LatentDiffusion):
            return bounded(model, named(held(desk)), named(desk.shown))
        assert isinstance(model, Family)
        return {"held": of(model, held(desk), model.bits), "trained": of(model, desk.shown, model.bits)}

    kept: Found = desk.once(name, key(desk, folder), make)
    return kept


def held(desk: Desk) -> Part:
    """One held-out picture of each family."""
    return one_each(desk.held_out)


def key(desk: Desk, folder: Path) -> list[Any]:
    """What bits hang on."""
    return [files.sha256(folder / "model.yaml"), desk.shown.fingerprint, held(desk).fingerprint, BLURS, STEPS, PICTURES]


def bounded(model: LatentDiffusion, held_out: Part, shown: Part) -> Found:
    """The bounds of both parts by the blur that gives training pictures the lower one."""
    several = {blur: bound(model, shown, blur) for blur in BLURS}
    best = min(several, key=lambda blur: sum(several[blur]))
    return {"held": bound(model, held_out, best), "trained": several[best]}


@torch.no_grad()
def bound(model: LatentDiffusion, part: Part, blur: float) -> list[float]:
    """Bits a dimension that diffusion of pixels needs at most, of pictures from all of a part (`likelihood.discrete`), by a
    blur of so many distances of two levels."""
    shift, scale = (v[:, None] for v in (model.codec.shift, model.codec.scale))
    levels = (torch.arange(256, device=model.device) / 127.5 - 1.0 - shift) / scale  # (C, 256), of whitened pixels
    end = blur * float((levels[:, 1] - levels[:, 0]).min())
    grid, chosen, found = (
        exponential(model.denoiser.schedule, STEPS, end=end),
        spread(len(part), PICTURES),
        list[float](),
    )
    for begin in range(0, len(chosen), 64):
        rows = chosen[begin : begin + 64]
        pixels = torch.stack([part.image(k) for k in rows]).to(model.device).float() / 127.5 - 1.0
        labels = {"label": [part.field(k, "label") for k in rows]} if model.conditions.fields else {}
        given = model.conditions(labels, len(rows), size=(pixels.shape[-2], pixels.shape[-1]))
        told = discrete(model.denoise(given), model.codec.encode(pixels), levels, grid, Stream(rows), probes=2)
        found += told.bits_per_value(pixels[0].numel()).tolist()
    return found


def named(part: Part) -> Part:
    """The pictures of a part that have a class, all where none has."""
    known = [k for k in range(len(part)) if part.field(k, "label") not in (None, [])]
    return Picked(part, known) if known else part


def known(desk: Desk, models: dict[str, Path]) -> Table:
    """What a token of held-out pictures and of training pictures costs transformers of any tokens."""
    lines = []
    for name, folder in models.items():
        model = opened(folder, desk.device)
        assert isinstance(model, Autoregressive)

        def make(model: Autoregressive = model) -> Found:
            return {"held": of(model, held(desk), model.told), "trained": of(model, desk.shown, model.told)}

        found = desk.once(f"known-{name.replace(' ', '-')}", key(desk, folder), make)
        told = (_mean(found[part]) for part in ("held", "trained"))
        lines.append(
            [name, f"{model.transformer.vocabulary:,}", f"{math.log2(model.transformer.vocabulary):.0f}", *told]
        )
    head = ["", "tokens there are", "bits of one at random", "held-out pictures", "pictures it was trained on"]
    return Table(
        "Bits a token, with the standard error: where they are far apart, pictures are known by heart", head, lines
    )


def _mean(values: list[float]) -> str:
    return Spread.of(values).mean() if values else "no picture has a class"


def of(model: Family, part: Part, measure: Measure) -> list[float]:
    """Bits of each of a part's pictures that have a class, where some have: one that knows classes tells no others, and all
    are to tell the same. None where no picture has one, though the model wants it."""
    found = over(model, named(part), measure)
    return [] if found is None else [float(one) for one in found]
