"""Which way an operation takes, by device, type and shape: the one place where this is decided.

Every rule was measured (`benchmarks/kernels.py` shows each, `docs/performance.md` has the numbers). Within
`paths.plain()`, and wherever a compiler reads the network, all of them say no.
"""

import torch
from torch import Tensor

from sfumato import paths

LARGE = 1024  # places of a map from which the CPU's half-precision group norm is as fast in channels-last
SCORES = 4 << 20  # bytes of attention scores at a time that stay near the core
KEPT = 16 << 20  # bytes of scores that the way back may keep; four times as many where heads are wide
WIDE = 128  # width of a head from which products win at every length


def cpu(x: Tensor) -> bool:
    """Whether there is a choice at all: on the CPU, outside of `plain()` and of compilers."""
    return paths.fast() and x.device.type == "cpu" and not torch.compiler.is_compiling()


def products(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether attention of (B, H, N, d) to (B, H, M, d) runs as two products and a softmax instead of the fused kernel.

    In bfloat16 the fused kernel converts where products multiply natively. In float32 it wins. With gradients the
    products keep their scores, so there is a bound.
    """
    if not cpu(q) or {q.dtype, k.dtype, v.dtype} != {torch.bfloat16}:
        return False
    kept = (KEPT if q.shape[-1] < WIDE else 4 * KEPT) if torch.is_grad_enabled() else None
    return kept is None or scores(q, k) <= kept


def scores(q: Tensor, k: Tensor) -> int:
    """Bytes of the scores of (..., N, d) queries and (..., M, d) keys."""
    return q[..., 0].numel() * k.shape[-2] * q.element_size()


def apart(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution's weight gradient is worked out by parts of the batch, each on one thread.

    The CPU's bfloat16 kernel splits it over threads that wait for one another, from twice to a hundred times as long as
    one thread alone takes. Lanes have one thread each and need nothing.
    """
    half = weight.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return cpu(x) and half and torch.is_grad_enabled() and weight.requires_grad and torch.get_num_threads() > 1


def turned(x: Tensor) -> bool:
    """Whether a group norm's input is first laid out contiguously.

    In half precision the CPU's kernel crawls in channels-last, and where the input's gradient is not asked for its way
    back crashes the process; nothing in a forward pass tells what will be asked.
    """
    if not cpu(x):
        return False
    if torch.is_grad_enabled():
        return True
    return x.dtype != torch.float32 and x[0, 0].numel() < LARGE
