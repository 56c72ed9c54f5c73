"""Bits per dimension of held-out pictures, for the families that have a likelihood or a bound on it."""

import torch

from sfumato.data.base import Part
from sfumato.families.base import Family, single

LIMIT = 512


@torch.no_grad()
def likelihood(family: Family, part: Part, limit: int = LIMIT) -> dict[str, float] | None:
    """`bits` per dimension over at most `limit` pictures, its standard error and their `count`; None where undefined."""
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
    whole = torch.cat(rows)
    return {"bits": float(whole.mean()), "±": float(whole.std() / len(whole) ** 0.5), "count": len(whole)}
