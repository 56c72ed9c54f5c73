"""Bits per dimension of held-out pictures, for the families that have a likelihood or a bound on it."""

import torch

from sfumato.data.base import Part
from sfumato.families.base import Family, single

LIMIT = 512


def likelihood(family: Family, part: Part, limit: int = LIMIT) -> dict[str, float] | None:
    """`bits` per dimension over at most `limit` pictures, its standard error and their `count`; None where undefined."""
    found = each(family, part, limit)
    if found is None:
        return None
    return {"bits": float(found.mean()), "±": float(found.std() / len(found) ** 0.5), "count": len(found)}


@torch.no_grad()
def each(family: Family, part: Part, limit: int = LIMIT) -> torch.Tensor | None:
    """Bits per dimension of each of a part's first `limit` pictures, double (N,); None where undefined."""
    rows = []
    for begin in range(0, min(len(part), limit), 32):
        indices = range(begin, min(begin + 32, len(part), limit))
        images = torch.stack([part.image(k) for k in indices]).float() / 127.5 - 1.0
        device = next(family.parameters()).device
        labels = torch.tensor([single(part.fields(k).get("label")) for k in indices], device=device)
        found = family.bits(images.to(device), labels)
        if found is None:
            return None
        rows.append(found.double().cpu())
    return torch.cat(rows)
