"""What studies train: first stages of any factor and the denoisers on them, small enough for two cores."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Fields = dict[str, Any]
# of latents: the published first stages' (Rombach et al., 2022, table 8 and the released configurations)
CHANNELS = {
    "kl": {2: 2, 4: 3, 8: 4, 16: 16, 32: 64},
    "vq": {2: 2, 4: 3, 8: 4, 16: 8, 32: 16},
}
BATCH = 128
PLACES = 16  # of `latents`, a side
WIDE = 32  # maps of this many pixels a side and more get a narrow network of more levels


def first(kind: str, factor: int, channels: int | None = None, *, equivariance: float = 0.0) -> Fields:
    """A first stage of a factor: `kind` kl or vq, latents of the published number of channels where none is given."""
    stem = 2 if factor == 2 else min(factor // 2, 4)
    levels = (factor // stem).bit_length()
    coder = {
        "factor": factor, "channels": channels or CHANNELS[kind][factor], "stem": stem, "width": 64,
        "multipliers": [1, *[2] * (levels - 1)], "blocks": 1, "decoder_blocks": 2, "middle_blocks": 1,
        "middle_attention": False, "refine": 16, "down": "unshuffle", "up": "shuffle", "groups": 16,
    }  # fmt: skip
    stage: Fields = {"kind": kind, "bottleneck": False, "coder": coder}
    if kind == "vq":
        stage["codebook"] = {"size": 1024}
    objective = {"l1": 1.0, "l2": 0.5, "kl": 1.0e-3, "equivariance": equivariance}
    training = {"batch": 64, "rate": 1.0e-2, "flip": 0.5}
    return {"stage": "autoencoder", "autoencoder": stage, "objective": objective, "training": training}


def latents(size: int, places: int = PLACES, channels: int | None = None) -> Fields:
    """The first stage that studies share: of the largest published factor that leaves so many places a side of pictures of
    `size` pixels and divides them, 2 at the least.

    At 32 pixels 16 places a side made the best pictures in equal time, as the paper's f = 16 leaves of 256; 8 were behind by
    a tenth to a fifth (`compression`, `families`), and 4 x 4 x 16 by more (`docs/experiments.md`).
    """
    factor = 2
    while 2 * factor * places <= size and 2 * factor in CHANNELS["kl"] and size % (2 * factor) == 0:
        factor *= 2
    return first("kl", factor, channels)


def denoiser(
    autoencoder: Path, conditioners: Fields | None = None, *, width: int = 64, multipliers: tuple[int, ...] = (1, 2),
    attention: tuple[int, ...] = (2,), mean: float = 0.0, cache: bool = True, **training: Any,
) -> Fields:  # fmt: skip
    """A U-Net on a first stage, flow prediction.

    Times are centred where signal and noise are equal, near what EDM uses for pictures of 32 pixels (Karras et al., 2022):
    best of what was tried for classes, on pixels and on latents alike (`docs/experiments.md`). Words want more noise.
    """
    backbone = {
        "kind": "unet", "width": width, "multipliers": list(multipliers), "blocks": 1,
        "attention": list(attention), "expansion": 2, "groups": None,
    }  # fmt: skip
    return {
        "stage": "diffusion", "autoencoder": str(autoencoder), "backbone": backbone, "schedule": {"kind": "linear"},
        "prediction": "flow", "times": {"density": "logit_normal", "mean": mean}, "cache": cache,
        "conditioners": conditioners or {},
        "training": {"batch": BATCH, "rate": 1.0e-2, "warmup": 0.05, "flip": 0.5, **training},
    }  # fmt: skip


def fitting(side: int) -> Fields:
    """The settings of `denoiser` for latents of so many places a side: about 3.5 million weights on each.

    Where maps are large the network is narrow at their full size and has more levels, as the paper's is for LDM-1.
    """
    if side < WIDE:
        return {}
    return {"width": 32, "multipliers": (1, 2, 2, 4), "attention": (4, 8)}


STEPS = {"gan": 8, "vae": 16, "unet": 16, "kl": 16, "vq": 16}  # what widths are multiples of, else of 32


def wider(fields: Mapping[str, Any], scale: float) -> Fields:
    """A recipe whose networks are wider: first stage, denoiser, conditioners or family, a GAN's critic as its generator.

    Widths stay multiples of 32, as heads are, of 16 in a U-Net, whose heads come where it is twice as wide, and in first
    stages and a VAE, of 8 in a GAN, which have none: with `scale` a multiple of a half all U-Nets grow alike.
    """
    found = copy.deepcopy(dict(fields))
    if scale == 1:
        return found
    parts = [
        found.get("autoencoder"),
        found.get("backbone"),
        found.get("family"),
        *found.get("conditioners", {}).values(),
    ]
    for part in (p for p in parts if isinstance(p, dict)):
        inner, step = part.get("coder", part), STEPS.get(str(part.get("kind")), 32)
        for name in {"width", "critic"} & {*inner}:
            inner[name] = max(round(scale * inner[name] / step), 1) * step
    return found


def by_class() -> Fields:
    """The conditioner of classes."""
    return {"class": {"kind": "label", "width": 256, "dropout": 0.15}}


def by_words(length: int | None = None, pooled: bool = True) -> Fields:
    """The conditioner of captions, of at most `length` tokens where its own are too few, trained with the denoiser; heard by
    cross-attention alone where not `pooled`."""
    text = {"kind": "text", "width": 192, "layers": 1, "dropout": 0.1, "pooled": pooled}
    return {"caption": text if length is None else {**text, "length": length}}


def family(kind: str, *, batch: int = 32, **settings: Any) -> Fields:
    """The recipe of a family."""
    training = {"batch": batch, "rate": 5.0e-3, "flip": 0.5}
    return {"stage": "family", "family": {"kind": kind, **settings}, "training": training}


def gan() -> Fields:
    """The recipe of the GAN, here and in `limits`.

    It is not told classes: without them it is a little better after as many images (`docs/experiments.md`), as GANs of few
    pictures are (Shahbazi et al., 2022).
    """
    return {**family("gan", width=16, critic=32), "labelled": False}
