"""A part whose classes have the numbers that another data set gives them."""

import hashlib
import logging
from collections.abc import Collection, Sequence
from typing import Any

from sfumato.data.base import Part
from sfumato.data.picked import Picked

log = logging.getLogger(__name__)


class Renumbered(Picked):
    """The examples of a part with their classes, those of the field `label`, numbered as in `labels`, name by name.

    A class that is not among them is not said; which these are is logged once.
    """

    def __init__(self, part: Part, labels: Sequence[str]) -> None:
        super().__init__(part, range(len(part)), part.families)
        self.labels = tuple(labels)
        self.fingerprint = hashlib.sha256(f"{part.fingerprint} {self.labels}".encode()).hexdigest()
        self.to = [self.labels.index(name) if name in self.labels else None for name in part.labels]
        if gone := [name for name, number in zip(part.labels, self.to, strict=True) if number is None]:
            log.warning(
                "classes that the model does not know are not told it: %s%s; it knows %s%s",
                ", ".join(gone[:5]), ", ..." * (len(gone) > 5), ", ".join(labels[:5]), ", ..." * (len(labels) > 5),
            )  # fmt: skip

    def fields(self, index: int) -> dict[str, Any]:
        return self._numbered(super().fields(index))

    def few(self, index: int, read: Collection[str]) -> dict[str, Any]:
        return self._numbered(super().few(index, read))

    def _numbered(self, found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "label": self._number(found["label"])} if "label" in found else found

    def field(self, index: int, name: str) -> Any:
        found = super().field(index, name)
        return self._number(found) if name == "label" and found is not None else found

    def told(
        self, index: int, seed: int = 0, position: int | None = None, read: Collection[str] | None = None
    ) -> dict[str, Any]:
        return Part.told(self, index, seed, position, read)

    def _number(self, label: Any) -> Any:
        if isinstance(label, list | tuple):
            return [self.to[k] for k in label if self.to[k] is not None] or None
        return None if label is None else self.to[label]


def renumbered(part: Part, labels: Sequence[str]) -> Part:
    """The part with its classes numbered as in `labels`; itself where they are so, or where no name is in both: then
    `labels` call them otherwise, number by number."""
    if tuple(part.labels) == tuple(labels) or not set(part.labels) & set(labels):
        return part
    return Renumbered(part, labels)
