"""Networks compiled in place (`torch.compile`), captured into CUDA graphs where shapes are fixed, and channels-last maps.

The names of the weights and what is saved stay as they are, and a copy of a compiled network is an eager one. On the CPU
compiling costs minutes and gains a tenth at most (`docs/performance.md`), so `auto` leaves it to accelerators.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn


def _word(value: object) -> object:
    """YAML reads a bare `on` and `off` as truth values."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Compile = Annotated[Literal["auto", "on", "off"], BeforeValidator(_word)]
BACKEND = "inductor"
SHAPES = 64  # ways in which one network is compiled (last batches, previews, tokens) before it is run eagerly


def wanted(how: Compile, device: torch.device) -> bool:
    """Whether networks are compiled on this device: `auto` says yes for CUDA alone."""
    return how == "on" or (how == "auto" and device.type == "cuda")


def compile_(module: nn.Module, *, captured: bool = False, backend: str = BACKEND) -> None:
    """Compile the module's call, in place, anew for every shape that it meets.

    `captured` on CUDA: the whole of it is then one launch, so its inputs must be few shapes, and what it returns must be
    read before its next call.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    mode = "reduce-overhead" if captured and backend == BACKEND else None
    module.compile(backend=backend, mode=mode, dynamic=False)


def is_compiled(module: nn.Module) -> bool:
    """Whether `compile_` was called on this very module."""
    return module._compiled_call_impl is not None


def channels_last_(module: nn.Module) -> None:
    """Lay the maps that enter the module channels-last; convolutions and norms keep that. The weights stay as they are."""
    if _laid not in module._forward_pre_hooks.values():  # once: another hook would be another graph to compile
        module.register_forward_pre_hook(_laid)


def _laid(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    first, *rest = given
    if isinstance(first, Tensor) and first.ndim == 4:
        first = first.contiguous(memory_format=torch.channels_last)
    return first, *rest
