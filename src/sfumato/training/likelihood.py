"""What held-out pictures cost a family: bits per dimension, where it has a likelihood or a bound on one."""

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.data.base import Part
from sfumato.families.base import Family, single

LIMIT = 512
Measure = Callable[[Tensor, Tensor], Tensor | None]  # of pictures (B, C, H, W) and their classes (B,), a value each


def likelihood(family: Family, part: Part, limit: int = LIMIT) -> dict[str, float] | None:
    """`bits` per dimension over at most `limit` pictures, its standard error and their `count`; None where undefined."""
    found = each(family, part, limit)
    if found is None:
        return None
    error = float(found.std() / len(found) ** 0.5) if len(found) > 1 else 0.0
    return {"bits": float(found.mean()), "±": error, "count": len(found)}


def each(family: Family, part: Part, limit: int = LIMIT) -> Tensor | None:
    """Bits per dimension of each of at most `limit` pictures, double (N,); None where undefined."""
    return over(family, part, family.bits, limit)


@torch.no_grad()
def over(family: Family, part: Part, measure: Measure, limit: int = LIMIT) -> Tensor | None:
    """A measure of each of at most `limit` pictures from all of a part, double (N,), of those with a class where the family
    learned no others; None where the measure is, or no picture is left."""
    rows, known = [], list(range(len(part)))
    if family.labels and not family.unnamed:  # which knows pictures by their class alone
        known = [k for k in known if single(part.field(k, "label"), len(family.labels)) < len(family.labels)]
    count = min(len(known), limit)
    chosen = [known[k * len(known) // count] for k in range(count)]  # folders are sorted by class
    for begin in range(0, count, 32):
        indices = chosen[begin : begin + 32]
        images = torch.stack([part.image(k) for k in indices]).float() / 127.5 - 1.0
        weight = next(family.parameters())
        labels = torch.tensor([single(part.field(k, "label"), len(family.labels)) for k in indices])
        found = measure(images.to(weight), labels.to(weight.device))
        if found is None:
            return None
        rows.append(found.cpu().double())
    return torch.cat(rows) if rows else None
