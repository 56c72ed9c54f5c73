"""All conditioners of a model as one: it reads examples' fields, drops conditions in training, joins the doors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioning.base import Conditioner, Conditions, Sizes, choose


class Bundle(nn.Module):
    """Named conditioners; token sources of several widths are projected to the widest.

    `forward(fields)` takes the values of B examples by field; a field that is absent, or a value that is None or an
    empty text, counts as «nothing was said» and gets the null.
    """

    def __init__(self, conditioners: Mapping[str, Conditioner]) -> None:
        super().__init__()
        self.conditioners = nn.ModuleDict(dict(conditioners))
        sizes = [c.sizes for c in conditioners.values()]
        width = max((s.tokens for s in sizes), default=0)
        self.sizes = Sizes(sum(s.vector for s in sizes), width, sum(s.image for s in sizes))
        self.project = nn.ModuleDict(
            {n: nn.Linear(c.sizes.tokens, width) for n, c in conditioners.items() if c.sizes.tokens not in (0, width)}
        )

    @property
    def fields(self) -> dict[str, str]:
        """The field that each conditioner reads, by its name."""
        return {name: self._get(name).field for name in self.conditioners}

    def _get(self, name: str) -> Conditioner:
        found = self.conditioners[name]
        assert isinstance(found, Conditioner)
        return found

    def dropped(self, draws: Tensor) -> Tensor:
        """Which conditions to drop, (B, number of conditioners), from uniform draws of the same shape."""
        rates = torch.tensor([self._get(n).dropout for n in self.conditioners])
        return draws < rates

    def forward(self, fields: Mapping[str, Sequence[Any]], count: int, drop: Tensor | None = None) -> Conditions:
        """Conditions of `count` examples; `drop` (count, number of conditioners) replaces conditions by their null."""
        known = set(self.fields.values())
        strange = sorted(set(fields) - known)
        if strange:
            raise ValueError(
                f"the model takes no {', '.join(strange)}; it takes {', '.join(sorted(known)) or 'no condition'}"
            )
        return self._joined([self._one(n, fields, count, drop, k) for k, n in enumerate(self.conditioners)])

    def _one(
        self, name: str, fields: Mapping[str, Sequence[Any]], count: int, drop: Tensor | None, column: int
    ) -> Conditions:
        conditioner = self._get(name)
        values = list(fields.get(conditioner.field, [None] * count))
        if len(values) != count:
            raise ValueError(f"{len(values)} values of {conditioner.field!r} for {count} images; give one each")
        gone = [v is None or (isinstance(v, str) and not v.strip()) for v in values]
        if drop is not None:
            gone = [g or bool(d) for g, d in zip(gone, drop[:, column].tolist(), strict=True)]
        null = conditioner.null(count)
        said = [k for k, g in enumerate(gone) if not g]
        if not said:
            return null
        given: Conditions = conditioner([values[k] for k in said])
        if len(said) == count:
            return given
        device = next(p.device for p in given.parts() if p is not None)
        place = torch.zeros(count, dtype=torch.long)
        place[said] = torch.arange(len(said))
        spread = place.to(device)
        rows = Conditions(*(None if p is None else p[spread] for p in given.parts()))
        return choose(torch.tensor([not g for g in gone], device=device), rows, null)

    def null(self, count: int) -> Conditions:
        """`count` rows in which nothing was said to any conditioner."""
        return self._joined([self._get(n).null(count) for n in self.conditioners])

    def _joined(self, several: Sequence[Conditions]) -> Conditions:
        names = list(self.conditioners)
        vectors = [c.vector for c in several if c.vector is not None]
        images = [c.image for c in several if c.image is not None]
        tokens, masks = [], []
        for name, c in zip(names, several, strict=True):
            if c.tokens is not None and c.mask is not None:
                tokens.append(self.project[name](c.tokens) if name in self.project else c.tokens)
                masks.append(c.mask)
        return Conditions(
            torch.cat(vectors, 1) if vectors else None,
            torch.cat(tokens, 1) if tokens else None,
            torch.cat(masks, 1) if masks else None,
            torch.cat(images, 1) if images else None,
        )
