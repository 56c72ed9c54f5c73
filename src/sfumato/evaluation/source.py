"""Where images come from: a data set, a folder, a first stage's reconstructions, or straight from a model.

A source is a list of pictures that are made when they are asked for, with a record of what they are: `told()` goes into
protocols and keys the cache of features. Picture k does not depend on which others are asked for with it (but for the
rounding of batches), so a source can be split over processes.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import files, image, streams
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Part
from sfumato.data.layout import listed, unwrapped
from sfumato.families.base import Family, chosen, single
from sfumato.model import LatentDiffusion
from sfumato.shape import squared
from sfumato.streams import Stream
from sfumato.tasks.requests import Generate
from sfumato.tasks.said import planned
from sfumato.tasks.walk import walk

AT_ONCE = 32


class Source(ABC):
    """Pictures by index."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """What a protocol keeps: JSON that changes with any picture."""

    @abstractmethod
    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        """Pictures (C, H, W) in [-1, 1], on the CPU."""

    def sides(self) -> set[tuple[int, int]]:
        """(height, width) of its pictures, all that there are; one where a source has one."""
        height, width = self.pictures([0])[0].shape[1:]
        return {(height, width)}

    def name(self, index: int) -> str:
        """What a report calls a picture."""
        return str(index)

    def caption(self, index: int) -> str | None:
        """What the picture should show, None where nothing was said."""
        return None


class PartPictures(Source):
    """The pictures of a data set's part."""

    def __init__(self, part: Part, name: str) -> None:
        self.part, self.title = part, name

    def __len__(self) -> int:
        return len(self.part)

    def told(self) -> dict[str, Any]:
        return {
            "kind": "data set",
            "name": self.title,
            "size": self.part.size,
            "count": len(self),
            "fingerprint": self.part.fingerprint,
        }

    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        return [self.part.image(k).float() / 127.5 - 1.0 for k in indices]

    def name(self, index: int) -> str:
        return str(self.part.field(index, "name") or index)

    def caption(self, index: int) -> str | None:
        return next(iter(self.part.field(index, "caption") or ()), None)


class FolderPictures(Source):
    """All pictures under a folder, whatever parts it has: as they are, or their largest centred square at `size`.

    Pictures as they are lose what is left over beside a `multiple` of their sides, at both ends alike. Channels are read
    as by `data/folder.py`: 1 gray, 3 colour over white, 4 with transparency, others from arrays.
    """

    def __init__(self, folder: Path, size: int | None = None, multiple: int = 1, channels: int = 3) -> None:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}; give a folder of pictures")
        self.title, self.size, self.multiple, self.channels = folder.resolve().name, size, multiple, channels
        self.entries = listed(unwrapped(folder))
        digest = hashlib.sha256()
        for entry in self.entries:
            digest.update(files.sha256(entry.file).encode())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.entries)

    def told(self) -> dict[str, Any]:
        return {
            "kind": "folder",
            "name": self.title,
            "size": self.size or "as they are",
            **({"multiple": self.multiple} if self.multiple > 1 else {}),
            **({"channels": self.channels} if self.channels != 3 else {}),
            "count": len(self),
            "fingerprint": self.digest,
        }

    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        return [self._picture(self.entries[k].file) for k in indices]

    def sides(self) -> set[tuple[int, int]]:
        if self.size is not None:
            return {(self.size, self.size)}
        several = (image.sides(entry.file) for entry in self.entries)
        return {
            (high // self.multiple * self.multiple, wide // self.multiple * self.multiple) for wide, high in several
        }

    def _picture(self, path: Path) -> Tensor:
        if self.size is not None:
            read = image.pixels(path, self.channels, least=2 * self.size)
            return squared(read, self.size).float() / 127.5 - 1.0
        whole = image.to_tensor(image.pixels(path, self.channels))
        sides = [n // self.multiple * self.multiple for n in whole.shape[1:]]
        if not all(sides):
            raise ValueError(f"{path} is smaller than {self.multiple} pixels a side; leave it out, or give --size")
        top, left = ((n - kept) // 2 for n, kept in zip(whole.shape[1:], sides, strict=True))
        return whole[:, top : top + sides[0], left : left + sides[1]]

    def name(self, index: int) -> str:
        return self.entries[index].name

    def caption(self, index: int) -> str | None:
        return next(iter(self.entries[index].captions), None)


class Rebuilt(Source):
    """What a first stage makes of the pictures of a source: the posterior's mode, decoded."""

    def __init__(self, codec: Codec, source: Source) -> None:
        self.codec, self.source = codec.eval(), source

    def __len__(self) -> int:
        return len(self.source)

    def told(self) -> dict[str, Any]:
        return {"kind": "reconstructions", "autoencoder": self.codec.fingerprint(), "of": self.source.told()}

    @torch.no_grad()
    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        return self.rebuilt(self.source.pictures(indices))

    @torch.no_grad()
    def rebuilt(self, originals: Sequence[Tensor]) -> list[Tensor]:
        """Pictures of any sizes, encoded and decoded with their equals."""
        found: list[Tensor] = []
        for rows in equal(originals):
            found.extend(self.codec.decode(self.codec.encode(rows.to(self.codec.shift.device))).cpu())
        return found

    def name(self, index: int) -> str:
        return self.source.name(index)

    def caption(self, index: int) -> str | None:
        return self.source.caption(index)


class Sampled(Source):
    """Pictures from a model. Picture k has seed `request.seed + k` and the words or the class of an example of a part.

    Examples are taken in a shuffled order, each once before any comes twice: classes come in the part's own balance.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        request: Generate,
        count: int,
        part: Part | None = None,
    ) -> None:
        if request.seed < 0:
            raise ValueError("images that are measured need a fixed seed; set one")
        self.model, self.request, self.count, self.part = model.eval(), request, count, part
        self.dtype = next(model.denoiser.network.parameters()).dtype
        # what a planner draws is left to it, as for a prompt, and pictures are asked for whole, as by `generate`
        wanted = model.conditions.unframed - model.conditions.tellable
        if wanted and part is None:
            raise ValueError(f"this model wants {' and '.join(sorted(wanted))}; give a data set that has them")
        self.wanted = sorted(wanted)
        self.order = list(range(len(part))) if part is not None else []
        if part is not None:
            self.order = streams.generator(request.seed, "conditions of samples").permutation(len(part)).tolist()
        self.digest = files.fingerprint(model.state_dict(), repr(model.config))

    def __len__(self) -> int:
        return self.count

    def told(self) -> dict[str, Any]:
        r = self.request
        return {
            "kind": "samples",
            "model": self.digest,
            "autoencoder": self.model.codec.fingerprint(),
            "count": self.count,
            "sampler": r.sampler,
            "grid": r.grid,
            "steps": r.steps,
            "guidance": r.guidance,
            **({"interval": list(r.interval)} if r.interval else {}),
            "seed": r.seed,
            "precision": str(self.dtype).removeprefix("torch."),
            "size": self.model.size,
            "conditions": dict.fromkeys(self.wanted, self.part.fingerprint) if self.part is not None else {},
            **derived(self.part),
        }

    def fields(self, index: int) -> dict[str, Any]:
        """What is said of a picture: that of the example that it takes its conditions from."""
        assert self.part is not None
        return self.part.told(self.order[index % len(self.order)], read=self.wanted)

    def caption(self, index: int) -> str | None:
        return next(iter(self.fields(index).get("caption") or ()), None) if "caption" in self.wanted else None

    def name(self, index: int) -> str:
        return self.caption(index) or f"seed {self.request.seed + index}"

    @torch.no_grad()
    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        stream = Stream([self.request.seed + k for k in indices])
        x = stream.normal(self.model.latent_shape(), 0).to(self.model.device)
        said: dict[str, list[Any]] = {}
        if "caption" in self.wanted:
            said["caption"] = [self.caption(k) for k in indices]
        for name in self.wanted:
            if name != "caption":
                said[name] = [self.fields(k).get(name) for k in indices]
        told = planned(self.model, said, [self.request.seed + k for k in indices])
        latents = walk(self.model, x, self.request, told, stream)
        return list(self.model.pictures(latents).cpu())


def derived(part: Part | None) -> dict[str, Any]:
    """How a part's pictures are made worse, given holes or shown to a network, of which its fingerprint says nothing."""
    found = [one.model_dump(mode="json") for one in part.derivations] if part is not None else []
    if part is not None and part.embeddings is not None:
        config, looks = part.embeddings.config, part.embeddings.looks()
        found.append({"neighbours": config.neighbours, "sha256": looks.sha256, "size": looks.size})
    return {"derived": found} if found else {}


class Modelled(Source):
    """Pictures from a model of another family. Picture k has seed `seed + k`; classes come in the part's own balance."""

    def __init__(
        self, family: Family, count: int, seed: int = 0, guidance: float = 1.0, part: Part | None = None
    ) -> None:
        self.family, self.count, self.seed, self.guidance = family.eval(), count, seed, guidance
        none = len(family.labels)
        # a family that knows pictures by their class alone draws one for those without
        self.classes = [none] * count if family.unnamed else chosen([seed + k for k in range(count)], none)
        if none and part is not None:
            order = streams.generator(seed, "conditions of samples").permutation(len(part)).tolist()
            asked = [single(part.field(order[k % len(order)], "label"), none) for k in range(count)]
            self.classes = [other if one == none else one for one, other in zip(asked, self.classes, strict=True)]
        first = [codec.fingerprint() for codec in family.parts().values()]
        self.digest = files.fingerprint(family.state_dict(), repr((getattr(family, "config", None), first)))

    def __len__(self) -> int:
        return self.count

    def told(self) -> dict[str, Any]:
        facts = {"kind": "samples", "model": self.digest, "count": self.count, "seed": self.seed}
        return {**facts, "guidance": self.guidance, "classes": hashlib.sha256(repr(self.classes).encode()).hexdigest()}

    @torch.no_grad()
    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        device = next(self.family.parameters()).device
        labels = torch.tensor([self.classes[k] for k in indices], device=device)
        return list(self.family.sample(Stream([self.seed + k for k in indices]), labels, self.guidance).cpu())


class Chosen(Source):
    """Some pictures of a source: a subset that is the same every time."""

    def __init__(self, source: Source, count: int) -> None:
        order = streams.generator(0, "images of an evaluation").permutation(len(source))
        self.source, self.indices = source, sorted(order[:count].tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def told(self) -> dict[str, Any]:
        return {**self.source.told(), "chosen": len(self)} if len(self) < len(self.source) else self.source.told()

    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        return self.source.pictures([self.indices[k] for k in indices])

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def caption(self, index: int) -> str | None:
        return self.source.caption(self.indices[index])


def batches(count: int, at_once: int = AT_ONCE) -> list[range]:
    """Indices in batches whose cut depends on the count alone."""
    return [range(begin, min(begin + at_once, count)) for begin in range(0, count, at_once)]


def equal(pictures: Sequence[Tensor]) -> Iterator[Tensor]:
    """(B, C, H, W) of neighbours that are equally large."""
    begin = 0
    for k in range(1, len(pictures) + 1):
        if k == len(pictures) or pictures[k].shape != pictures[begin].shape:
            yield torch.stack(list(pictures[begin:k]))
            begin = k
