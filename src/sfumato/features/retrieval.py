"""Embeddings: what a feature network tells of a picture in one row, and the rows of a bank that are nearest to one."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.features.network import FeatureNetwork

OUTPUT = "pooled"  # of the network


def embedded(network: FeatureNetwork, pictures: Sequence[Tensor]) -> Tensor:
    """Pictures (C, H, W) in [-1, 1] -> rows (N, D) float32, on the CPU. Raises `ValueError` where the network gives none."""
    found: dict[str, Tensor] = network(pictures)
    if OUTPUT not in found:
        raise ValueError(f"{network.description.name} gives {', '.join(found)}; embeddings are its output {OUTPUT!r}")
    return found[OUTPUT]


def neighbours(
    queries: Tensor, bank: Tensor, count: int, *, chunk: int = 65_536, apart: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The `count` nearest rows of bank (N, D) to each query (Q, D) by cosine: similarities and indices, both (Q, count).

    By matrix products over `chunk` rows at a time, so the bank may be a memory map much larger than memory. `apart` (Q,)
    names for each query a row that is not looked at: itself, where the bank holds it. Best first; equal ones in the
    bank's order. Raises `ValueError` where the widths differ or the bank has too few rows.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} must be rows of one width")
    if not 1 <= count <= len(bank) - (apart is not None):
        raise ValueError(f"{count} neighbours of a bank of {len(bank)} rows; ask for fewer, at least 1")
    wanted = F.normalize(queries.float(), dim=-1)
    best = wanted.new_full((len(queries), 0), 0.0)
    where = torch.empty(len(queries), 0, dtype=torch.long, device=wanted.device)
    for begin in range(0, len(bank), chunk):
        rows = F.normalize(bank[begin : begin + chunk].to(wanted), dim=-1)
        with torch.autocast(wanted.device.type, enabled=False):
            scores, places = wanted @ rows.T, torch.arange(begin, begin + len(rows), device=wanted.device)
        if apart is not None:
            scores = scores.masked_fill(places == apart.to(places)[:, None], -torch.inf)
        best = torch.cat([best, scores], 1)
        where = torch.cat([where, places.expand(len(queries), -1)], 1)
        order = best.sort(dim=1, descending=True, stable=True).indices[:, :count]
        best, where = best.gather(1, order), where.gather(1, order)
    return best, where
