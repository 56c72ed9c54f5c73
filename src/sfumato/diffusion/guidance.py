"""Combinators on `denoise`: each takes one and gives one back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.samplers.base import Denoise


@dataclass(frozen=True)
class Branches:
    """Conditions that share a network, run as one batched forward; `join` makes one batch of several conditions."""

    network: Callable[[Tensor, Tensor, Any], Tensor]
    conditions: Sequence[Any]
    join: Callable[[Sequence[Any]], Any]

    def bound(self) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
        """(x_t, t) -> an estimate of x_0 a condition."""
        count, joined = len(self.conditions), self.join(self.conditions)

        def run(x_t: Tensor, t: Tensor) -> tuple[Tensor, ...]:
            return self.network(x_t.repeat(count, 1, 1, 1), t.repeat(count), joined).chunk(count)

        return run


def guided(branches: Branches, scale: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans, 2022): unconditional + scale (conditional - unconditional), on x_0."""
    run = branches.bound()

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = run(x_t, t)
        return torch.lerp(unconditional, conditional, scale)

    return denoise
