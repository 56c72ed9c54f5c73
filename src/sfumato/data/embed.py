"""Embeddings of a data set's pictures by a feature network: what models of variations and of retrieval are trained with.

Every picture is looked at once, as the model sees it: its square, at the data's size. The rows are kept under the part's
fingerprint and the network's record, so that a picture, a size or another network make other ones.
"""

import hashlib
import json
import logging
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor

from sfumato import distributed, files
from sfumato.config import Config
from sfumato.features import network as networks
from sfumato.features.network import Description, FeatureNetwork
from sfumato.features.retrieval import embedded, neighbours

log = logging.getLogger(__name__)
CACHE = Path("runs/embeddings")
AT_ONCE = 32  # pictures that the network is shown
SMALL = 64  # pixels a side of what it is shown for one that cannot be read
QUERIES = 256  # rows that the bank is searched for at once
_lock = threading.RLock()  # the threads that make batches ask for the first row together


class Pictures(Protocol):
    """As much of a part as is looked at."""

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def image(self, index: int) -> Tensor: ...


class Shown(Pictures, Protocol):
    """A part."""

    @property
    def families(self) -> Sequence[Sequence[int]]: ...


class EmbedConfig(Config):
    """Makes `reference`, each picture's embedding (D,), and with `neighbours` also `near`, those of others (k, D)."""

    network: Path = Field(description="feature network: a TorchScript file, or a folder of transformers")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="that it must have")
    neighbours: int = Field(0, ge=0, description="nearest pictures of the training part whose embeddings are `near`")
    cache: Path = Field(CACHE, description="folder of embeddings that were made before")


class Embeddings:
    """What the network says of a part's pictures; it is asked when the first one is wanted."""

    def __init__(self, config: EmbedConfig, part: Shown, train: Callable[[], Shown] | None) -> None:
        """`train` opens the part that is searched for neighbours; None: it is this one, and a family does not find itself."""
        self.config, self.part, self.train = config, part, train
        self._looks: Description | None = None
        self._rows: Tensor | None = None
        self._bank: Tensor | None = None
        self._near: Tensor | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of an example that it makes."""
        return ("reference", "near") if self.config.neighbours else ("reference",)

    def looks(self) -> Description:
        """How the network looks at pictures. Raises `ValueError` where it is missing or not the expected one."""
        if self._looks is None:
            self._looks = self._opened().description
        return self._looks

    def __call__(self, index: int) -> dict[str, Tensor]:
        """The fields of an example."""
        with _lock:
            if self._rows is None:
                self._rows = rows(self.part, self._opened(), self.config.cache)
            if self.config.neighbours and self._near is None:
                self._bank = self._rows
                if self.train is not None:
                    self._bank = rows(self.train(), self._opened(), self.config.cache)
                self._near = self._searched(self._rows, self._bank)
        found = {"reference": self._rows[index]}
        if self._near is not None and self._bank is not None:
            found["near"] = self._bank[self._near[index]]
        return found

    def _opened(self) -> FeatureNetwork:
        where = f"cuda:{distributed.local()}" if torch.cuda.is_available() else "cpu"
        return networks.opened(self.config.network, self.config.sha256).to(where)

    def _searched(self, queries: Tensor, bank: Tensor) -> Tensor:
        """Rows of the bank that are nearest to each query, (Q, neighbours), without those of its own family."""
        count = self.config.neighbours
        family = torch.empty(len(queries), dtype=torch.long)
        for number, members in enumerate(self.part.families):
            family[list(members)] = number
        largest = max(map(len, self.part.families)) if self.train is None else 0
        found = []
        for begin in range(0, len(queries), QUERIES):
            _, where = neighbours(queries[begin : begin + QUERIES], bank, min(count + largest, len(bank)))
            if self.train is None:
                own = family[where] == family[begin : begin + QUERIES, None]
                first = own.sort(dim=1, stable=True).indices[:, :count]  # others before its own
                where, own = where.gather(1, first), own.gather(1, first)
            if where.shape[1] < count or (self.train is None and bool(own.any())):
                raise ValueError(f"embed.neighbours is {count}, and there are too few other pictures; ask for fewer")
            found.append(where)
        return torch.cat(found)


def rows(part: Pictures, network: FeatureNetwork, cache: Path, sparing: bool = False) -> Tensor:
    """The embeddings (N, D) float32 of all pictures, read from the cache or made and kept there; where `sparing`, rows of NaN
    of pictures that cannot be read."""
    record = [part.fingerprint, network.told(), "float32"]  # before 2026-11-30 a held-out loss could leave halves
    path = cache / f"{hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        return files.load_tensors(path)["rows"]
    log.info("%s looks at %d pictures", network.description.name, len(part))
    found, lost = [], list[int]()

    def shown(index: int) -> Tensor:
        try:
            return part.image(index)
        except ValueError:
            if not sparing:
                raise
            lost.append(index)
            return torch.zeros(3, SMALL, SMALL)

    for begin in range(0, len(part), AT_ONCE):
        several = [shown(k) for k in range(begin, min(begin + AT_ONCE, len(part)))]
        found.append(embedded(network, [picture.float() / 127.5 - 1.0 for picture in several]))
    whole = torch.cat(found)
    whole[lost] = math.nan
    files.keep(path, {"rows": whole})
    return whole
