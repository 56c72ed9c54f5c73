"""The first draws of weights, left out where a module is built only to be loaded.

Fresh weights are drawn, a few nanoseconds each, and a model that is opened throws them away at once: seconds for hundreds
of millions. Only draws into parameters are left out, since a strict `load_state_dict` gives every one of them a value;
constants, buffers and tensors that become parameters by arithmetic stay as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# the others of `nn.init` come to the tensor's own methods
DRAWS: frozenset[Callable[..., Any]] = frozenset(
    {nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, Tensor.uniform_, Tensor.normal_}
)
_wanted: ContextVar[bool] = ContextVar("wanted", default=False)


class _Skipping(TorchFunctionMode):
    """A mode is its thread's own: what another builds meanwhile is drawn."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        into = args[0] if args else given.get("tensor")
        if func in DRAWS and isinstance(into, nn.Parameter):
            return into
        return func(*args, **given)


@contextmanager
def skipped() -> Iterator[None]:
    """Within this context the parameters of a new module are whatever lay in memory; load all of them, strictly."""
    if _wanted.get():
        yield
        return
    mode: Any = _Skipping()
    with mode:
        yield


@contextmanager
def wanted() -> Iterator[None]:
    """Within this context, or a function that it decorates, `skipped` does nothing.

    For trainings: their fresh weights are drawn after those of what they load, by one seed, and are to stay the same.
    """
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)
