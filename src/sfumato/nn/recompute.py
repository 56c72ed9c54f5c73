"""Activations worked out again in the backward pass instead of kept (Chen et al., 2016), level by level.

A block at a fine level keeps most and costs the same as one at a coarse level, so the levels are chosen one by one.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sfumato.nn.conv import Downsample, Upsample


def levels(layers: Iterable[nn.Module], factor: int) -> Iterator[tuple[int, nn.Module]]:
    """Each layer that has weights with its downsampling factor; the first has `factor`."""
    for layer in layers:
        change = getattr(layer, "change", "none")
        if isinstance(layer, Downsample) or change == "down":
            factor *= 2
        elif isinstance(layer, Upsample) or change == "up":
            factor //= 2
        elif any(True for _ in layer.parameters()):
            yield factor, layer


def again(module: nn.Module) -> None:
    """Let the module keep its inputs only; its gradients are the same, its forward pass runs twice."""
    if isinstance(module.forward, partial):
        return
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in module.modules())
    module.forward = partial(_run, module.forward, drops)


def _run(forward: Any, drops: bool, *given: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given)
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=drops)


def recompute(modules: Iterable[nn.Module], factors: Iterable[int]) -> None:
    """Apply `again` to the blocks at these factors, in every network inside the modules that tells its levels (`levelled`).

    Raises `ValueError` for a factor at which there is no block.
    """
    wanted = set(factors)
    known: set[int] = set()
    for network in {id(m): m for module in modules for m in module.modules()}.values():
        told = getattr(network, "levelled", None)
        for factor, layer in told() if callable(told) else ():
            known.add(factor)
            if factor in wanted and not isinstance(layer, nn.Conv2d):
                again(layer)
    if wanted - known:
        raise ValueError(
            f"training.checkpointing names factors {sorted(wanted - known)}; the levels here have {sorted(known)}"
        )
