"""Each fast path beside the plain way, by shape and type, as ratios.

    python benchmarks/kernels.py [--only attention] [--seconds 1] [--tried]

A ratio above 1 says that the fast path takes less time. Both ways take turns; what is printed is the median of the
pairwise ratios with their quartiles. Measured is processor time, of all threads over their number: what the clock would
say on idle cores, disturbed little by other processes. `--wall` measures by the clock. `--tried` prints what was tried and not kept, which another
machine may like better.
"""

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import device, paths
from sfumato.backbones.unet import UNetConfig
from sfumato.conditioning.base import Conditions, Sizes
from sfumato.nn.attention import attend
from sfumato.nn.conv import Conv2d, ResBlock
from sfumato.nn.norm import GroupNorm

Call = Callable[[], Any]
LAST = torch.channels_last
BOTH = (torch.float32, torch.bfloat16)


class Case(NamedTuple):
    """Two ways of one thing."""

    path: str
    shape: str
    dtype: torch.dtype
    fast: Call
    plain: Call
    threads: int = 1


def plainly(call: Call) -> Call:
    """The same call on the plain way."""

    def plain() -> Any:
        with paths.plain():
            return call()

    return plain


def frozen(call: Call) -> Call:
    """The call without gradients."""
    return torch.no_grad()(call)


def attention() -> Iterator[Case]:
    """(batch, heads, queries, keys, width of a head)."""
    shapes = (
        (32, 4, 16, 16, 32), (32, 4, 64, 64, 32), (32, 4, 64, 12, 32), (8, 4, 256, 256, 32), (8, 4, 256, 12, 32),
        (2, 8, 1024, 1024, 40), (1, 8, 4096, 77, 40), (8, 1, 256, 256, 128), (1, 1, 1024, 1024, 512),
    )  # fmt: skip
    for batch, heads, rows, keys, width in shapes:
        for dtype in (torch.bfloat16,):
            q = torch.randn(batch, heads, rows, width, dtype=dtype)
            k, v = (torch.randn(batch, heads, keys, width, dtype=dtype) for _ in range(2))
            gradient, leaves = torch.randn_like(q), [t.clone().requires_grad_() for t in (q, k, v)]
            shape = f"{batch} x {heads} heads of {width}, {rows} to {keys}"

            def there(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
                return attend(q, k, v)

            def back(leaves: list[Tensor] = leaves, gradient: Tensor = gradient) -> Any:
                return torch.autograd.grad(attend(*leaves), leaves, gradient)

            yield Case("attention", shape, dtype, frozen(there), plainly(frozen(there)))
            yield Case("attention, and back", shape, dtype, back, plainly(back))


def gradients() -> Iterator[Case]:
    """A convolution there and back on all threads at once: (in, out, side, batch)."""
    shapes = ((64, 64, 8, 64), (64, 4, 8, 64), (64, 12, 16, 128), (128, 128, 8, 64), (192, 192, 4, 32), (384, 192, 8, 32),
              (256, 256, 16, 8), (512, 512, 8, 32), (32, 32, 64, 16))  # fmt: skip
    for channels, out, side, batch in shapes:
        conv = Conv2d(channels, out, 3, padding=1).bfloat16()
        x = torch.randn(batch, channels, side, side).bfloat16().requires_grad_()
        gradient = torch.randn(batch, out, side, side).bfloat16()

        def back(conv: Conv2d = conv, x: Tensor = x, gradient: Tensor = gradient) -> Any:
            return torch.autograd.grad(conv(x), [x, *conv.parameters()], gradient)

        shape = f"{channels} to {out}, {side} x {side}, batch {batch}"
        yield Case("weight gradients", shape, torch.bfloat16, back, plainly(back), device.processors())


def norms() -> Iterator[Case]:
    """Group norm of channels-last maps in sampling: (channels, side, batch)."""
    for channels, side, batch in ((64, 8, 16), (128, 16, 8), (256, 16, 4), (128, 32, 4)):
        layer = GroupNorm(channels).bfloat16()
        x = torch.randn(batch, channels, side, side).bfloat16().contiguous(memory_format=LAST)

        def there(layer: GroupNorm = layer, x: Tensor = x) -> Tensor:
            result: Tensor = layer(x)
            return result

        shape = f"{channels}, {side} x {side}, batch {batch}"
        yield Case("group norm", shape, torch.bfloat16, frozen(there), plainly(frozen(there)))


def networks() -> Iterator[Case]:
    """A U-Net's forward pass: (width, multipliers, side, batch)."""
    for width, multipliers, side, batch in ((64, (1, 2), 8, 16), (96, (1, 2, 2), 16, 8), (128, (1, 2, 3), 32, 2)):
        config = UNetConfig(
            width=width, multipliers=multipliers, attention=tuple(2**k for k in range(len(multipliers)))
        )
        net = config.build(4, Sizes(tokens=64)).eval()
        given = torch.randn(batch, 4, side, side), torch.rand(batch), Conditions(tokens=torch.randn(batch, 12, 64))
        shape = f"width {width}, {side} x {side}, batch {batch}"
        for dtype in BOTH:
            cast = copy.deepcopy(net).to(dtype)
            laid: Any = copy.deepcopy(cast).to(memory_format=LAST)  # type: ignore[call-overload]

            def mine(laid: Any = laid, given: Any = given) -> Any:
                return laid(*given)

            def contiguous(cast: Any = cast, given: Any = given) -> Any:
                return cast(*given)

            def autocast(net: Any = net, given: Any = given) -> Any:
                with torch.autocast("cpu", torch.bfloat16):
                    return net(*given)

            yield Case("channels-last sampling", shape, dtype, frozen(mine), frozen(contiguous))
            yield Case("lanes in sampling", shape, dtype, frozen(mine), plainly(frozen(mine)) if dtype == torch.float32 else _whole(laid, given), 2)  # fmt: skip
            if dtype == torch.bfloat16:
                yield Case("weights in half precision", shape, dtype, frozen(contiguous), frozen(autocast))


def _whole(net: Any, given: tuple[Tensor, Tensor, Conditions]) -> Call:
    """All rows at once through a network in half precision: as inside of a lane, with every other fast path."""
    x, clock, cond = given
    assert cond.tokens is not None
    ready = x.bfloat16().contiguous(memory_format=LAST), clock, Conditions(tokens=cond.tokens.bfloat16())
    return frozen(lambda: net._call_impl(*ready))


def optimisers() -> Iterator[Case]:
    """On the tensors of a U-Net of 6 M parameters."""
    net = UNetConfig(width=64, multipliers=(1, 2), attention=(1, 2)).build(4, Sizes(tokens=64))
    several = [[nn.Parameter(p.detach().clone()) for p in net.parameters()] for _ in range(2)]
    for parameters in several:
        for p in parameters:
            p.grad = torch.randn_like(p)
    shape = f"{sum(p.numel() for p in several[0]) / 1e6:.0f} M in {len(several[0])} tensors"
    fused, default = torch.optim.AdamW(several[0], fused=True), torch.optim.AdamW(several[1])
    yield Case("fused AdamW", shape, torch.float32, fused.step, default.step)
    now, kept = [p.detach() for p in several[0]], [p.detach().clone() for p in several[0]]

    def loop() -> None:
        for k, p in zip(kept, now, strict=True):
            k.sub_(0.01 * (k - p))

    yield Case("averages at once", shape, torch.float32, lambda: torch._foreach_lerp_(kept, now, 0.01), loop)


def packed(channels: int, side: int, batch: int) -> Case:
    """A convolution whose weights are in the library's own layout already, instead of being brought there at every call."""
    x = torch.randn(batch, channels, side, side, dtype=torch.bfloat16).contiguous(memory_format=LAST)
    w, b = (
        torch.randn(channels, channels, 3, 3, dtype=x.dtype).contiguous(memory_format=LAST),
        torch.zeros(channels, dtype=x.dtype),
    )
    ones, ops = [1, 1], torch.ops.mkldnn
    own = ops._reorder_convolution_weight(w, ones, ones, ones, 1, list(x.shape))
    return Case(
        "weights laid out once", f"{channels}, {side} x {side}, batch {batch}", x.dtype,
        frozen(lambda: ops._convolution_pointwise(x, own, b, ones, ones, ones, 1, "none", [], "")),
        frozen(lambda: F.conv2d(x, w, b, padding=1)),
    )  # fmt: skip


def tried() -> Iterator[Case]:
    """What pays elsewhere: the alternative as the fast way."""
    for dtype in BOTH:
        for rows, width, out in ((1024, 64, 512), (2048, 128, 1024), (4096, 256, 256), (4096, 1024, 256)):
            leaves = [torch.randn(*s, dtype=dtype).requires_grad_() for s in ((rows, width), (out, width), (out,))]
            gradient = torch.randn(rows, out, dtype=dtype)

            def conv(leaves: list[Tensor] = leaves, gradient: Tensor = gradient) -> Any:
                x, w, b = leaves
                y = F.conv2d(x.view(1, len(x), 1, -1).permute(0, 3, 1, 2), w[..., None, None], b)
                return torch.autograd.grad(y.permute(0, 2, 3, 1).reshape(len(x), -1), leaves, gradient)

            def linear(leaves: list[Tensor] = leaves, gradient: Tensor = gradient) -> Any:
                return torch.autograd.grad(F.linear(*leaves), leaves, gradient)

            yield Case("linear as a 1 x 1 convolution, and back", f"{rows} x {width} to {out}", dtype, conv, linear)
        for channels, side, batch in ((64, 8, 32), (128, 32, 4), (256, 16, 4)):
            block = ResBlock(channels, channels)
            laid: Any = copy.deepcopy(block).to(memory_format=LAST)  # type: ignore[call-overload]
            x = torch.randn(batch, channels, side, side, requires_grad=True)

            def back(block: Any, x: Tensor, dtype: torch.dtype = dtype) -> Any:
                with device.cast(dtype, torch.device("cpu")):
                    y = block(x)
                return torch.autograd.grad(y.float().square().mean(), [x, *block.parameters()])

            # torch's own group norm: ours lays its input out contiguously in training
            turned = x.detach().contiguous(memory_format=LAST).requires_grad_()
            yield Case(
                "channels-last training of a block", f"{channels}, {side} x {side}, batch {batch}", dtype,
                plainly(lambda laid=laid, x=turned, back=back: back(laid, x)),
                lambda block=block, x=x, back=back: back(block, x),
            )  # fmt: skip
    for channels, side, batch in ((128, 8, 4), (256, 4, 4), (192, 16, 8), (384, 8, 8), (512, 16, 4)):
        yield packed(channels, side, batch)
    tensors = [torch.randn(n) for n in [64 * 64 * 9] * 100 + [64] * 300]
    kept, flat = [t.clone() for t in tensors], torch.cat(tensors)
    other = flat.clone()
    shape = f"{len(flat) / 1e6:.1f} M in {len(tensors)} tensors"
    yield Case("averages in one flat buffer", shape, torch.float32, lambda: other.lerp_(flat, 0.01), lambda: torch._foreach_lerp_(kept, tensors, 0.01))  # fmt: skip


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "attention": attention, "gradients": gradients, "norms": norms, "networks": networks, "optimisers": optimisers,
}  # fmt: skip


def measured(case: Case, seconds: float, wall: bool) -> str:
    """Milliseconds of both and the pairwise ratio, as cells of a table."""
    clock = time.perf_counter if wall else lambda: time.process_time() / case.threads
    torch.set_num_threads(case.threads)
    taken: tuple[list[float], list[float]] = ([], [])
    for call in (case.fast, case.plain):
        call()
        call()
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(taken[0]) < 7:
        turn = (0, 1) if len(taken[0]) % 2 else (1, 0)
        for k in turn:
            start = clock()
            (case.fast, case.plain)[k]()
            taken[k].append(clock() - start)
    low, middle, high = statistics.quantiles([p / f for f, p in zip(*taken, strict=True)], n=4)
    fast, plain = (1e3 * statistics.median(t) for t in taken)
    return f"{plain:.2f} | {fast:.2f} | **{middle:.2f}** ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", choices=["", *GROUPS], help="one group of paths")
    parser.add_argument("--seconds", type=float, default=1.0, help="a case")
    parser.add_argument("--wall", action="store_true", help="by the clock, for idle cores")
    parser.add_argument("--tried", action="store_true", help="what was tried and not kept")
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.ones(31 << 20, dtype=torch.uint8)  # freed at once, so that memory is taken and given back as in a long run
    has = torch.backends.cpu.get_cpu_capability()
    print(
        f"{platform.processor() or platform.machine()}, {has}, {device.processors()} processors, torch {torch.__version__}\n"
    )
    print(
        "| path | shape | type | threads | plain, ms | fast, ms | plain / fast (quartiles) |\n|---|---|---|---|---|---|---|"
    )
    groups = [tried] if asked.tried else [make for name, make in GROUPS.items() if asked.only in ("", name)]
    for make in groups:
        for case in make():
            kind = str(case.dtype).removeprefix("torch.")
            row = measured(case, asked.seconds, asked.wall)
            print(f"| {case.path} | {case.shape} | {kind} | {case.threads} | {row} |", flush=True)


if __name__ == "__main__":
    main()
