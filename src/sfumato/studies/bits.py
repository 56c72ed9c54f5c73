"""Likelihoods in `families`: a transformer over bytes beside a VAE, where both tell the same pictures.

All values of 32 pixels a side are a chain of 3,072, too slow for two cores; at 8 pixels they are 192, and an exact
likelihood and a bound are of the same 8-bit numbers. Of transformers over palettes and codes the bits a token tell
whether they learned the pictures or learned them by heart.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato import files
from sfumato.data.base import Part
from sfumato.data.picked import Picked
from sfumato.families.autoregressive import Autoregressive
from sfumato.families.base import Family
from sfumato.studies.desk import Desk
from sfumato.studies.measure import drawing
from sfumato.studies.recipes import family
from sfumato.studies.result import Table
from sfumato.studies.verdict import Claim, Spread, paired
from sfumato.tasks.pipeline import opened
from sfumato.training.likelihood import Measure, over

SIDE = 8  # pixels
BYTES, VAE = "transformer over bytes", "VAE"
Found = dict[str, list[float]]  # bits per dimension of each picture, `held` and `trained`


def recipes() -> dict[str, dict[str, Any]]:
    """Both, at 8 pixels."""
    return {
        BYTES: family("autoregressive", tokens="bytes", side=SIDE, width=256, depth=6, heads=4, batch=8),
        VAE: family("vae", width=128, channels=16),
    }


def compared(desk: Desk, hours: float, whole: Path) -> tuple[Table, list[Claim]]:
    """Train both for so many hours each and measure them, and `whole`, the VAE of the study's own size, beside them."""
    small, found, lines = replace(desk, data={**desk.data, "size": SIDE}), dict[str, Found](), list[list[str]]()
    for name, fields in recipes().items():
        run = f"bits-{name.replace(' ', '-')}"
        images = small.budget(run, fields, hours)
        folder = small.trained(run, fields, images)
        found[name] = bits(small, run, folder)
        lines.append(line(small, name, folder, found[name]))
    lines.append(line(desk, VAE, whole, bits(desk, "bits-whole", whole)))
    head = ["", "pixels a side", "parameters that draw", "minutes", "held-out pictures", "pictures it was trained on"]
    table = Table(
        "Bits a dimension: exact of the transformer, a bound of the VAE; with the standard error", head, lines
    )
    text = "An autoregressive model's likelihood is better than a VAE's bound"
    worse, well = found[VAE]["held"], found[BYTES]["held"]
    return table, [paired(text, worse, well)] if worse else []


def line(desk: Desk, name: str, folder: Path, found: Found) -> list[str]:
    """A row of the table."""
    minutes = desk.seconds(folder.parent.name) / 60
    told = (_mean(found[part]) for part in ("held", "trained"))
    return [name, str(desk.train.size), f"{drawing(folder) / 1e6:.1f} M", f"{minutes:.1f}", *told]


def bits(desk: Desk, name: str, folder: Path) -> Found:
    """Of held-out pictures and of some of training, each."""

    def make() -> Found:
        model = opened(folder, desk.device)
        assert isinstance(model, Family)
        return {"held": of(model, desk.held_out, model.bits), "trained": of(model, desk.shown, model.bits)}

    kept: Found = desk.once(name, [files.sha256(folder / "model.yaml"), desk.shown.fingerprint], make)
    return kept


def known(desk: Desk, models: dict[str, Path]) -> Table:
    """What a token of held-out pictures and of training pictures costs transformers of any tokens."""
    lines = []
    for name, folder in models.items():
        model = opened(folder, desk.device)
        assert isinstance(model, Autoregressive)

        def make(model: Autoregressive = model) -> Found:
            return {"held": of(model, desk.held_out, model.told), "trained": of(model, desk.shown, model.told)}

        found = desk.once(
            f"known-{name.replace(' ', '-')}", [files.sha256(folder / "model.yaml"), desk.shown.fingerprint], make
        )
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
    known = [k for k in range(len(part)) if part.field(k, "label") not in (None, [])]
    found = over(model, Picked(part, known) if known else part, measure)
    return [] if found is None else [float(one) for one in found]
