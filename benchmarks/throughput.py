"""Training and sampling speed beside diffusers, on the same weights, as ratios.

    pip install -e ".[bench]" && python benchmarks/throughput.py
    python benchmarks/throughput.py --device cuda
    python benchmarks/throughput.py --profile

Each network's output is compared in float32 first. Then ours and diffusers' run in turns, because machines are noisy,
and who goes first alternates. A training step is forward, backward, clipping, optimiser and average of weights: ours the
loop's own step (lanes, AdamW, the averages), theirs AdamW and `EMAModel` as their scripts have them. A sampling is 25
steps with guidance and the decoding of the pictures.

diffusers is given every form in which its users run it, and the fastest of a first look goes into the comparison:
channels-last or not; in half precision autocast or, in sampling, weights that are cast (`torch_dtype`; its training
scripts refuse such weights); on CUDA both eager and compiled, each with its own row, and their bfloat16 fused AdamW too.
Beside the ratios stand the FLOP/s that ours reaches, and their share of the chip's peak: on a CPU of a convolution and a
product measured here, elsewhere of the maker's table.
"""

import argparse
import copy
import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peers
import torch
from PIL import Image
from torch import Tensor, nn

from sfumato import device as devices
from sfumato import paths
from sfumato.conditioning.base import Conditions
from sfumato.diffusion.grid import even
from sfumato.diffusion.samplers import ddim, last
from sfumato.diffusion.schedule import Linear
from sfumato.lanes import rows_side_by_side
from sfumato.nn.compiled import Compile, compile_
from sfumato.training.compiled import ready
from sfumato.training.loop import Loop
from sfumato.training.objective import Objective
from sfumato.training.settings import TrainingConfig

GUIDANCE = 3.0
Step = Callable[[], Any]


class Size(NamedTuple):
    """A U-Net of the comparison, and how many pictures go through it."""

    width: int
    multipliers: tuple[int, ...]
    attention: tuple[int, ...]
    side: int
    batch: int
    images: int  # at once in sampling
    heads: int = 4
    context: int = peers.CONTEXT
    tokens: int = peers.TOKENS
    linear: bool = True
    steps: int = 25

    def pair(self) -> tuple[nn.Module, nn.Module]:
        """Ours and theirs."""
        return peers.unet(self.width, self.multipliers, self.attention, 4, self.heads, self.context, self.linear)


CUDA = {
    "63M, 32x32": Size(128, (1, 2, 3), (2, 4), 32, 128, 64),
    "860M (SD v1), 64x64": Size(320, (1, 2, 4, 4), (1, 2, 4), 64, 8, 8, 8, 768, 77, False),
}
# dense bfloat16 TFLOP/s of the makers' data sheets, by whole words of the device's name; the first that fits
PEAKS = {
    "B200": 2250, "H200": 989, "GH200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
SIZES = {
    "6M, 8x8": Size(64, (1, 2), (1, 2), 8, 64, 16),
    "23M, 16x16": Size(96, (1, 2, 2), (1, 2, 4), 16, 32, 8),
    "63M, 32x32": Size(128, (1, 2, 3), (2, 4), 32, 8, 4),
}


class Plain(Objective):
    """The simplest objective: predict noise from one batch, which is always the same."""

    def __init__(self, turn: nn.Module, batch: Mapping[str, Any]) -> None:
        self.turn, self.turns, self.data = turn, {"denoiser": turn}, batch

    def learned(self, turn: str) -> Sequence[nn.Module]:
        return [self.turn]

    def batch(self, positions: Sequence[int]) -> Any:
        return {name: value[list(positions)] for name, value in self.data.items()}

    def preview(self) -> Image.Image:
        raise NotImplementedError

    def publish(self, folder: Path) -> None:
        raise NotImplementedError


class Turn(nn.Module):
    """Noise prediction; of an autoencoder the reconstruction."""

    def __init__(self, network: nn.Module, run: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self.network, self.run = network, run

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.run(self.network, batch)}


def denoise(network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """A network's loss."""
    output = network(batch["x"], batch["clock"], Conditions(tokens=batch["tokens"]))
    return (output.float() - batch["eps"]).square().mean()


def ours(
    turn: Turn, batch: Mapping[str, Tensor], dtype: torch.dtype, where: torch.device, compiling: Compile = "off"
) -> Step:
    """The loop's own step."""
    turn = copy.deepcopy(turn)
    ready([turn], TrainingConfig(images=1, compile=compiling), where)
    count = len(next(iter(batch.values())))
    config = TrainingConfig(images=10**9, batch=count, optimizer="adamw", rate=1e-4, warmup=0.0, clip=1.0)
    loop = Loop(Plain(turn, batch), config, Path(), "", where, dtype, quiet=True)
    return lambda: loop.step(range(count))


def theirs(
    turn: Turn,
    batch: Mapping[str, Tensor],
    dtype: torch.dtype,
    where: torch.device,
    layout: Any,
    compiled: bool = False,
) -> Step:
    """A step as diffusers' training scripts take it."""
    from diffusers.training_utils import EMAModel

    turn = copy.deepcopy(turn).to(memory_format=layout)
    batch = {k: v.contiguous(memory_format=layout) if v.ndim == 4 else v for k, v in batch.items()}
    if compiled:
        compile_(turn.network)
    parameters = list(turn.parameters())
    adam = torch.optim.AdamW(parameters, lr=1e-4, fused=where.type == "cuda" or None)
    average = EMAModel(parameters, decay=0.9999)

    def step() -> None:
        with devices.cast(dtype, where):
            loss = turn(batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad()
        average.step(parameters)

    return step


def sampling(
    network: Callable[..., Tensor], decode: Callable[[Tensor], Tensor], size: Size, work: torch.dtype, end: torch.dtype,
    where: torch.device,
) -> Step:  # fmt: skip
    """25 steps with guidance, both branches as one batch, and the decoding: the same calls for either network.

    `work` is what the network is cast to (ours has its weights in half precision already), `end` what the decoder is.
    """
    schedule, generator = Linear(), torch.Generator().manual_seed(0)
    noise = torch.randn(size.images, 4, size.side, size.side, generator=generator).to(where)
    tokens = torch.randn(2 * size.images, size.tokens, size.context, generator=generator).to(where)
    grid = even(schedule, size.steps, start=0.999)

    def x_0(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t).like(x)
        clock = (1000 * t).repeat(2).to(x)
        given, other = network(torch.cat([x, x]), clock, Conditions(tokens=tokens)).float().chunk(2)
        return (x - sigma.float() * (other + GUIDANCE * (given - other))) / alpha.float()

    def step() -> Tensor:
        with torch.inference_mode():
            with devices.cast(work, where):
                latents = last(ddim(x_0, noise, grid))
            with devices.cast(end, where):
                return decode(latents)

    return step


def decibels(a: Tensor, b: Tensor) -> float:
    """PSNR of one output against the other's range."""
    return float(10 * torch.log10((b.max() - b.min()).square() / (a - b).square().mean().clamp(min=1e-30)))


Build = Callable[[], Step]  # a side in one of its forms, with memory of its own


class Clock:
    """Seconds of a call: by the clock, or of all threads' processor time over their number, for cores that are shared."""

    def __init__(self, where: torch.device, processor: bool) -> None:
        self.where, self.processor = where, processor

    def now(self) -> float:
        devices.wait(self.where)
        return time.process_time() / torch.get_num_threads() if self.processor else time.perf_counter()

    def __call__(self, step: Step) -> float:
        begin = self.now()
        step()
        return self.now() - begin


def fastest(forms: Mapping[str, Build], clock: Clock) -> tuple[str, Step]:
    """The form that a first look finds the fastest, ready."""
    taken: dict[str, float] = {}
    for name, build in forms.items():
        if len(forms) == 1:
            break
        step = build()
        step()
        step()
        taken[name] = min(clock(step) for _ in range(3))
        del step
        gc.collect()
    best = min(taken, key=lambda name: taken[name]) if taken else next(iter(forms))
    return best, forms[best]()


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """The median of the pairwise ratios, with quartiles."""
    found = sorted(t / o for t, o in zip(theirs, ours, strict=True))
    low, middle, high = statistics.quantiles(found, n=4) if len(found) > 2 else (found[0], found[0], found[-1])
    return f"**{middle:.2f}** ({low:.2f} to {high:.2f})"


def compared(
    told: str, mine: Mapping[str, Build], peer: Mapping[str, Mapping[str, Build]], rounds: int, count: int, flops: float,
    clock: Clock, peaks: Mapping[str, float],
) -> None:  # fmt: skip
    """Rows of the table: each kind of ours (a type) beside the fastest form of each kind of theirs, and the best of each."""
    steps: dict[tuple[str, str], Step] = {("ours", kind): build() for kind, build in mine.items()}
    forms: dict[str, str] = {}
    for kind, several in peer.items():
        forms[kind], steps["theirs", kind] = fastest(several, clock)
    for step in steps.values():
        step()
        step()
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for k in range(rounds):
        for key in list(steps) if k % 2 else list(reversed(steps)):
            taken[key].append(clock(steps[key]))
    median = {key: statistics.median(times) for key, times in taken.items()}

    def row(kind: str, own: tuple[str, str], other: tuple[str, str]) -> None:
        reached = flops / median[own]
        dtype = own[1].split(",")[0]
        share = f"{reached / 1e9:,.0f} ({reached / peaks[dtype]:.0%})" if dtype in peaks else f"{reached / 1e9:,.0f}"
        print(
            f"| {told}, {kind} | {count / median[own]:.1f} | {count / median[other]:.1f} ({forms[other[1]]}) "
            f"| {ratio(taken[other], taken[own])} | {share} |",
            flush=True,
        )

    for kind in peer:
        own = kind if kind in mine else next(iter(mine))
        row(kind, ("ours", own), ("theirs", kind))
    if len(peer) > 1:
        best = [min((k for k in steps if k[0] == side), key=lambda k: median[k]) for side in ("ours", "theirs")]
        row(f"best of each ({best[0][1]}; {best[1][1]})", best[0], best[1])


def flops(network: nn.Module, *given: Any) -> float:
    """Of a forward pass, counted without running it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counted = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), paths.plain(), sdpa_kernel(SDPBackend.MATH):
        counted(*given)
    return float(counter.get_total_flops())


def ceilings(dtypes: Mapping[str, torch.dtype], where: torch.device, clock: Clock) -> dict[str, float]:
    """FLOP/s that this device can reach, by type: measured on a CPU, elsewhere the maker's bfloat16."""
    if where.type != "cpu":
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else ""
        peak = next((t for words, t in PEAKS.items() if re.search(rf"\b{words}\b", name)), None)
        return {} if peak is None else {"bfloat16": 1e12 * peak}
    found = {}
    for kind, dtype in dtypes.items():
        x = torch.randn(16, 256, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
        w = torch.randn(256, 256, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
        a = torch.randn(1024, 1024, dtype=dtype)
        work = ((lambda x=x, w=w: nn.functional.conv2d(x, w, padding=1), 2 * 16 * 256 * 256 * 9 * 256), (lambda a=a: a @ a, 2 * 1024**3))  # fmt: skip
        with torch.no_grad():
            found[kind] = max(count / statistics.median(clock(call) for _ in range(15)) for call, count in work)
    return found


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def unets(
    sizes: Mapping[str, Size], dtypes: Sequence[torch.dtype], rounds: int, where: torch.device, clock: Clock, part: str
) -> None:
    """Training and sampling of each size."""
    peaks = ceilings({named(d): d for d in dtypes}, where, clock)
    for name, size in sizes.items():
        torch.manual_seed(0)
        mine, peer = (n.to(where) for n in size.pair())
        codec, other = (n.to(where).eval() for n in peers.autoencoder(32, (1, 2, 4)))
        batch = examples(size, where)
        some = {key: value[:2] for key, value in batch.items()}
        given = (some["x"], some["clock"], Conditions(tokens=some["tokens"]))
        with torch.no_grad():
            told = f"{name} ({decibels(mine(*given), peer(*given)):.0f} dB)"
        empty = [t[:1].to("meta") for t in (batch["x"], batch["clock"], batch["tokens"])]
        forward = flops(mine, empty[0], empty[1], Conditions(tokens=empty[2]))
        rest = flops(Decoding(codec), empty[0])

        def decode(z: Tensor, codec: Any = codec) -> Tensor:
            return rows_side_by_side(lambda part: codec.decode(z[part]), len(z), where)

        def my_sampling(dtype: torch.dtype, mine: Any = mine, size: Size = size) -> Step:
            net = copy.deepcopy(mine).eval().to(dtype).to(memory_format=torch.channels_last)
            if where.type == "cuda":
                compile_(net, captured=True)
            return sampling(net, decode, size, torch.float32, dtype, where)

        def their_sampling(
            dtype: torch.dtype, cast: bool, layout: Any, compiled: bool = False, peer: Any = peer, size: Size = size, other: Any = other
        ) -> Step:  # fmt: skip
            kind = dtype if cast else torch.float32
            net, decoder = (copy.deepcopy(n).eval().to(kind).to(memory_format=layout) for n in (peer, other))
            if compiled:
                compile_(net, captured=True)

            def network(x: Tensor, clock: Tensor, cond: Conditions) -> Tensor:
                assert cond.tokens is not None
                result: Tensor = net(x.to(kind).contiguous(memory_format=layout), clock, Conditions(tokens=cond.tokens.to(kind)))  # fmt: skip
                return result

            def decoded(z: Tensor) -> Tensor:
                result: Tensor = decoder.decode(z.to(kind).contiguous(memory_format=layout)).sample
                return result

            work = torch.float32 if cast else dtype
            return sampling(network, decoded, size, work, work, where)

        own: dict[str, Build] = {named(d): lambda d=d: my_sampling(d) for d in dtypes}
        forms: dict[str, dict[str, Build]] = {}
        for dtype in dtypes:
            casts = {"": True} if dtype == torch.float32 else {"autocast, ": False, "cast weights, ": True}
            for compiled in (False, True) if where.type == "cuda" else (False,):
                forms[named(dtype) + (", compiled" if compiled else ", eager" if where.type == "cuda" else "")] = {
                    how + word: lambda d=dtype, c=cast, o=layout, m=compiled: their_sampling(d, c, o, m)
                    for how, cast in casts.items() for word, layout in LAYOUTS.items()
                }  # fmt: skip
        work = size.images * (2 * size.steps * forward + rest)
        if part != "training":
            compared(f"{told}: sampling", own, forms, max(rounds // 2, 3), size.images, work, clock, peaks)
        turns = Turn(mine.train(), denoise), Turn(peer.train(), denoise)
        if part != "sampling":
            trained(told, turns, batch, size.batch, 3 * size.batch * forward, dtypes, rounds, where, clock, peaks)
        del mine, peer, turns
        gc.collect()


class Decoding(nn.Module):
    """The decoder alone, as a forward pass."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, z: Tensor) -> Tensor:
        result: Tensor = self.codec.decode(z)
        return result


def examples(size: Size, where: torch.device) -> dict[str, Tensor]:
    """A batch of a U-Net's training."""
    batch = {
        "x": torch.randn(size.batch, 4, size.side, size.side),
        "eps": torch.randn(size.batch, 4, size.side, size.side),
        "clock": 1000 * torch.rand(size.batch),
        "tokens": torch.randn(size.batch, size.tokens, size.context),
    }
    return {key: value.to(where) for key, value in batch.items()}


def trained(
    told: str, turns: tuple[Turn, Turn], batch: Mapping[str, Tensor], count: int, work: float, dtypes: Sequence[torch.dtype],
    rounds: int, where: torch.device, clock: Clock, peaks: Mapping[str, float],
) -> None:  # fmt: skip
    """The rows of a training."""
    cuda = where.type == "cuda"
    how: Compile = "auto"
    own: dict[str, Build] = {named(d): lambda d=d: ours(turns[0], batch, d, where, how) for d in dtypes}
    forms: dict[str, dict[str, Build]] = {}
    for dtype in dtypes:
        for compiled in (False, True) if cuda else (False,):
            forms[named(dtype) + (", compiled" if compiled else ", eager" if cuda else "")] = {
                word: lambda d=dtype, o=layout, c=compiled: theirs(turns[1], batch, d, where, o, c)
                for word, layout in LAYOUTS.items()
            }
    compared(f"{told}: training", own, forms, rounds, count, work, clock, peaks)


def coders(dtypes: Sequence[torch.dtype], rounds: int, where: torch.device, clock: Clock) -> None:
    """The autoencoder at 64 pixels."""
    torch.manual_seed(0)
    mine, peer = (n.to(where) for n in peers.autoencoder(32, (1, 2, 4)))
    batch = {"x": torch.rand(16, 3, 64, 64, device=where) * 2 - 1}
    peaks = ceilings({named(d): d for d in dtypes}, where, clock)

    def second(network: Any, batch: Mapping[str, Tensor]) -> Tensor:
        posterior = network.encode(batch["x"]).latent_dist
        result: Tensor = (network.decode(posterior.mode()).sample - batch["x"]).abs().mean()
        return result

    with torch.no_grad():
        told = decibels(mine.decode(mine.encode(batch["x"]).latent), peer(batch["x"]).sample)
    work = 3 * 16 * flops(peer, batch["x"][:1].to("meta"))
    turns = Turn(mine, rebuild), Turn(peer, second)
    trained(f"autoencoder, 64 pixels ({told:.0f} dB)", turns, batch, 16, work, dtypes, rounds, where, clock, peaks)


def rebuild(network: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Our autoencoder's loss."""
    result: Tensor = (network.decode(network.encode(batch["x"]).latent) - batch["x"]).abs().mean()
    return result


KINDS = {
    "convolutions": ("conv",), "attention": ("scaled_dot", "flash", "aten::bmm", "softmax", "baddbmm"),
    "linears": ("addmm", "aten::mm", "linear", "matmul"), "norms": ("group_norm", "layer_norm"),
    "optimiser, clipping, averages": ("adam", "_foreach", "lerp", "linalg"),
}  # fmt: skip


def profiled(sizes: Mapping[str, Size], dtypes: Sequence[torch.dtype], where: torch.device) -> None:
    """Where a training step's time goes, on one thread (a lane), and its share of what the same arithmetic could reach."""
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(1)
    clock = Clock(where, where.type == "cpu")
    peaks = ceilings({named(d): d for d in dtypes}, where, clock)
    print(
        f"| step, on one thread | {' | '.join(KINDS)} | the rest | GFLOP/s | of the ceiling |\n|{'---|' * (len(KINDS) + 4)}"
    )

    def row(told: str, turn: Turn, batch: Mapping[str, Tensor], work: float, dtype: torch.dtype) -> None:
        step = ours(turn, batch, dtype, where)
        step()
        taken = min(clock(step) for _ in range(3))
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (where.type == "cuda")
        with profile(activities=activities) as told_by:
            step()
        each = dict.fromkeys([*KINDS, "the rest"], 0.0)
        for event in told_by.key_averages():
            kind = next((k for k, parts in KINDS.items() if any(p in event.key.lower() for p in parts)), "the rest")
            each[kind] += event.self_device_time_total if where.type == "cuda" else event.self_cpu_time_total
        whole = sum(each.values())
        reached = work / taken
        share = (
            f"{reached / peaks[named(dtype)]:.0%} of {peaks[named(dtype)] / 1e9:,.0f}" if named(dtype) in peaks else ""
        )
        cells = " | ".join(f"{100 * value / whole:.0f} %" for value in each.values())
        print(f"| {told}, {named(dtype)} | {cells} | {reached / 1e9:,.0f} | {share} |", flush=True)

    for dtype in dtypes:
        for name, size in sizes.items():
            turn, batch = Turn(size.pair()[0].to(where).train(), denoise), examples(size, where)
            empty = [t[:1].to("meta") for t in (batch["x"], batch["clock"], batch["tokens"])]
            work = 3 * size.batch * flops(turn.network, empty[0], empty[1], Conditions(tokens=empty[2]))
            row(name, turn, batch, work, dtype)
        mine, peer = peers.autoencoder(32, (1, 2, 4))
        pictures = {"x": torch.rand(16, 3, 64, 64, device=where) * 2 - 1}
        work = 3 * 16 * flops(peer, pictures["x"][:1].to("meta"))
        row("autoencoder", Turn(mine.to(where), rebuild), pictures, work, dtype)


def main() -> None:
    from diffusers.utils import logging

    logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sizes whose name contains this; `autoencoder` for that alone")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="", help="separated by commas; fp32,bf16 on a CPU, bf16 elsewhere")
    parser.add_argument("--part", default="", choices=["", "sampling", "training"])
    parser.add_argument("--steps", type=int, default=25, help="of a sampling; fewer for a first impression")
    parser.add_argument("--shared", action="store_true", help="processor time, for cores that others use too")
    parser.add_argument("--profile", action="store_true", help="where the time of our training step goes instead")
    a = parser.parse_args()
    where = devices.pick(a.device)
    names = a.precision or ("fp32,bf16" if where.type == "cpu" else "bf16")
    dtypes = [devices.precision(name, where) for name in names.split(",")]
    sizes = {n: s._replace(steps=a.steps) for n, s in (CUDA if where.type == "cuda" else SIZES).items() if a.only in n}
    if a.profile:
        profiled(sizes, dtypes, where)
        return
    clock = Clock(where, a.shared)
    print(
        "| network (equal to) | ours, images/s | diffusers | ratio (quartiles) | ours, GFLOP/s (of the peak) |\n|---|---|---|---|---|"
    )
    unets(sizes, dtypes, a.rounds, where, clock, a.part)
    if a.part != "sampling" and a.only in "autoencoder":
        coders(dtypes, a.rounds, where, clock)


if __name__ == "__main__":
    main()
