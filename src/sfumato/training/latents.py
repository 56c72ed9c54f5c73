"""The latent cache: every training picture goes through the encoder once, not once an epoch.

It is a Hugging Face `datasets` Arrow data set of posterior moments in half precision, memory-mapped, keyed by the data
set's and the autoencoder's fingerprints: a cache of another autoencoder, of other pictures or of another size is
refused rather than trained on. Mirrored pictures are encoded too where a recipe mirrors, since the encoder of a mirrored
picture is not the mirrored latent.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import files
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Part
from sfumato.training.autoencoder import stack

KEY = "latents.json"


class Latents:
    """Moments of the pictures of one part: `rows([index, ...], [flipped, ...])` -> (B, M, h, w) float32."""

    def __init__(self, folder: Path) -> None:
        from datasets import load_from_disk

        self.facts: dict[str, Any] = json.loads((folder / KEY).read_text(encoding="utf-8"))
        self.shape: tuple[int, ...] = tuple(self.facts["shape"])
        self.flipped: bool = self.facts["flip"]
        table = load_from_disk(str(folder)).data
        self.chunks = [c.flatten().to_numpy().reshape(-1, *self.shape) for c in table.column("moments").chunks]
        self.starts = np.cumsum([0, *(len(c) for c in self.chunks)])

    def __len__(self) -> int:
        return int(self.starts[-1]) // (2 if self.flipped else 1)

    def _row(self, number: int) -> "np.ndarray[Any, np.dtype[np.float16]]":
        chunk = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.chunks[chunk][number - int(self.starts[chunk])]  # type: ignore[no-any-return]

    def rows(self, indices: Sequence[int], flips: Sequence[bool] | None = None) -> Tensor:
        """Moments of the pictures at these indices, mirrored where `flips` says."""
        mirrored = [False] * len(indices) if flips is None else flips
        if any(mirrored) and not self.flipped:
            raise ValueError("these latents were encoded without mirrored pictures; encode again with flip on")
        numbers = [(2 * i + f) if self.flipped else i for i, f in zip(indices, mirrored, strict=True)]
        return torch.from_numpy(np.stack([self._row(n) for n in numbers]).astype(np.float32))


def key(codec: Codec, part: Part, flip: bool) -> dict[str, Any]:
    """What a cache must agree on to be used."""
    return {"data": part.fingerprint, "autoencoder": codec.fingerprint(), "flip": flip, "count": len(part)}


def encode(
    codec: Codec,
    part: Part,
    folder: Path,
    *,
    flip: bool = False,
    at_once: int = 128,
    tell: Callable[[int], None] | None = None,
) -> Latents:
    """Encode a part into `folder` (nothing is done where it already holds just that) and open it.

    Raises `ValueError` where the folder holds other latents; `tell` is called with the number of pictures done.
    """
    wanted = key(codec, part, flip)
    if (folder / KEY).is_file():
        check(folder, wanted)
        return Latents(folder)
    from datasets import Dataset, Features, Value, disable_progress_bars
    from datasets import Sequence as Row

    device = codec.shift.device
    codec.autoencoder.check(torch.empty(1, part.channels, part.size, part.size))
    with torch.no_grad():
        shape = tuple(codec.moments(stack(part, [0]).to(device)).shape[1:])

    def generate() -> Iterator[dict[str, Any]]:
        for begin in range(0, len(part), at_once):
            pictures = stack(part, range(begin, min(begin + at_once, len(part)))).to(device)
            with torch.no_grad():
                views = [codec.moments(p).cpu() for p in ([pictures, pictures.flip(-1)] if flip else [pictures])]
            for rows in zip(*views, strict=True):
                for row in rows:
                    yield {"moments": row.clamp(-65504, 65504).to(torch.float16).numpy().ravel()}
            if tell is not None:
                tell(begin + len(pictures))

    values = int(np.prod(shape))
    part_folder = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part_folder, ignore_errors=True)
    features = Features({"moments": Row(Value("float16"), length=values)})
    try:
        table = Dataset.from_list(list(generate()), features=features)
        disable_progress_bars()
        table.save_to_disk(str(part_folder))
        files.write(part_folder / KEY, json.dumps({**wanted, "shape": shape}, indent=1))
        part_folder.replace(folder)
    except OSError as error:
        shutil.rmtree(part_folder, ignore_errors=True)
        raise files.full(error, folder) from error
    return Latents(folder)


def check(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise `ValueError` where the cache in `folder` was made from something else."""
    facts = json.loads((folder / KEY).read_text(encoding="utf-8"))
    other = [
        f"{name} {facts.get(name)} instead of {value}" for name, value in wanted.items() if facts.get(name) != value
    ]
    if other:
        raise ValueError(f"{folder} holds latents of {', '.join(other)}; delete the folder, or encode into another")
