"""TAESD and TAESD3 (Bohan, 2023): the tiny first stages of Stable Diffusion's latents, from their two published files.

The published files number the layers of a sequence from its start; ours are the same sequences, so every key keeps its
number and gets the name of its side before it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sfumato import files
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.tiny import TinyConfig

SIDES = {"encoder": "encoder.", "decoder": "decoder."}  # theirs -> ours, before each key


def codec(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> Codec:
    """The first stage of both files' tensors, in float32. Raises `ValueError` where they are not TAESD's."""
    held = {**_named(encoder, SIDES["encoder"]), **_named(decoder, SIDES["decoder"])}
    first = held.get("decoder.1.weight", torch.empty(0))
    if first.ndim != 4:
        raise ValueError("these are not the weights of a TAESD encoder and decoder; give its two published files")
    made = Codec(TinyConfig(channels=first.shape[1]))
    try:
        made.autoencoder.load_state_dict(held)
    except RuntimeError as error:
        raise ValueError(f"these weights do not fit TAESD: {str(error).splitlines()[-1].strip()}") from None
    return made.eval()


def _named(tensors: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    return {side + name: value.float() for name, value in tensors.items()}


def convert(encoder: Path, decoder: Path, out: Path) -> Path:
    """Write the model folder of two safetensors files. Raises `ValueError` where one is missing or something else."""
    files.vacant(out)
    for path in (encoder, decoder):
        if not path.is_file():
            raise ValueError(f"there is no file {path}; give TAESD's encoder and decoder as safetensors")
        if path.suffix != ".safetensors":
            raise ValueError(
                f"{path} is no safetensors file, and nothing is unpickled; TAESD is published as such, too"
            )
    codec(files.load_tensors(encoder), files.load_tensors(decoder)).save(out)
    return out
