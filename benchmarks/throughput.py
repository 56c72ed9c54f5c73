"""Training and sampling speed beside diffusers, on the same weights, as ratios.

    pip install -e ".[bench]" && python benchmarks/throughput.py

Ours and diffusers' run alternately, because machines are noisy: first each network's output is compared in float32,
then medians of the rates and of the pairwise ratios are printed. A training step is forward, backward, optimiser and
average of weights: ours the loop's own step (lanes, AdamW, the averages), theirs AdamW and `EMAModel` as their scripts
have them. A sampling is 25 steps with guidance and the decoding of the pictures. `--device cuda` runs the
same on a GPU.
"""

import argparse
import copy
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
from sfumato.conditioning.base import Conditions
from sfumato.diffusion.grid import even
from sfumato.diffusion.samplers import ddim, last
from sfumato.diffusion.schedule import Linear
from sfumato.lanes import rows_side_by_side
from sfumato.training.loop import Loop
from sfumato.training.objective import Objective
from sfumato.training.recipe import TrainingConfig

STEPS, GUIDANCE = 25, 3.0
Step = Callable[[], Any]


class Size(NamedTuple):
    """A U-Net of the comparison, and how many pictures go through it."""

    width: int
    multipliers: tuple[int, ...]
    attention: tuple[int, ...]
    side: int
    batch: int
    images: int  # at once in sampling


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


def ours(turn: Turn, batch: Mapping[str, Tensor], dtype: torch.dtype, where: torch.device) -> Step:
    """The loop's own step."""
    count = len(next(iter(batch.values())))
    config = TrainingConfig(images=10**9, batch=count, optimizer="adamw", rate=1e-4, warmup=0.0, clip=1.0)
    loop = Loop(Plain(turn, batch), config, Path(), "", where, dtype, quiet=True)
    return lambda: loop.step(range(count))


def theirs(turn: Turn, batch: Mapping[str, Tensor], dtype: torch.dtype, where: torch.device) -> Step:
    """A step as diffusers' training scripts take it."""
    from diffusers.training_utils import EMAModel

    parameters = list(turn.parameters())
    adam = torch.optim.AdamW(parameters, lr=1e-4)
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
    network: nn.Module, decode: Callable[[Tensor], Tensor], size: Size, work: torch.dtype, end: torch.dtype, where: torch.device
) -> Step:  # fmt: skip
    """25 steps with guidance, both branches as one batch, and the decoding: the same calls for either network.

    `work` is what the network is cast to (ours has its weights in half precision already), `end` what the decoder is.
    """
    schedule, generator = Linear(), torch.Generator().manual_seed(0)
    noise = torch.randn(size.images, 4, size.side, size.side, generator=generator).to(where)
    tokens = torch.randn(2 * size.images, peers.TOKENS, peers.CONTEXT, generator=generator).to(where)
    grid = even(schedule, STEPS, start=0.999)

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


def seconds(step: Step, where: torch.device) -> float:
    """The time of one call."""
    begin = time.perf_counter()
    step()
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def compared(steps: Mapping[str, Step], rounds: int, count: int, where: torch.device) -> str:
    """Rates and the median of the pairwise ratios with its quartiles, as cells of a table."""
    for step in steps.values():
        step()
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(seconds(step, where))
    ratios = sorted(d / s for s, d in zip(*taken.values(), strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4) if rounds > 2 else (ratios[0], ratios[0], ratios[-1])
    rates = [f"{count / statistics.median(t):.1f}" for t in taken.values()]
    return f"{rates[0]} | {rates[1]} | **{middle:.2f}** ({low:.2f} to {high:.2f})"


def decibels(a: Tensor, b: Tensor) -> float:
    """PSNR of one output against the other's range."""
    return float(10 * torch.log10((b.max() - b.min()).square() / (a - b).square().mean().clamp(min=1e-30)))


def unets(names: Sequence[str], dtypes: Sequence[torch.dtype], rounds: int, where: torch.device) -> None:
    """Training and sampling of each size."""
    for name in names:
        size = SIZES[name]
        torch.manual_seed(0)
        mine, peer = (n.to(where) for n in peers.unet(size.width, size.multipliers, size.attention))
        codec, other = (n.to(where).eval() for n in peers.autoencoder(32, (1, 2, 4)))
        batch = {
            "x": torch.randn(size.batch, 4, size.side, size.side),
            "eps": torch.randn(size.batch, 4, size.side, size.side),
            "clock": 1000 * torch.rand(size.batch),
            "tokens": torch.randn(size.batch, peers.TOKENS, peers.CONTEXT),
        }
        batch = {key: value.to(where) for key, value in batch.items()}
        given = (batch["x"], batch["clock"], Conditions(tokens=batch["tokens"]))
        with torch.no_grad():
            told = f"{name} | {decibels(mine(*given), peer(*given)):.0f} dB"
        for dtype in dtypes:
            kind = str(dtype).removeprefix("torch.")
            ready = copy.deepcopy(mine).eval().to(dtype).to(memory_format=torch.channels_last)

            def decode(z: Tensor, codec: Any = codec) -> Tensor:
                return rows_side_by_side(lambda part: codec.decode(z[part]), len(z), where)

            def decoded(z: Tensor, other: Any = other) -> Tensor:
                result: Tensor = other.decode(z).sample
                return result

            steps = {
                "ours": sampling(ready, decode, size, torch.float32, dtype, where),
                "theirs": sampling(peer.eval(), decoded, size, dtype, dtype, where),
            }
            print(f"| {told} | sampling, {kind} | {compared(steps, max(rounds // 3, 3), size.images, where)} |", flush=True)  # fmt: skip
            turns = Turn(mine.train(), denoise), Turn(peer.train(), denoise)
            steps = {"ours": ours(turns[0], batch, dtype, where), "theirs": theirs(turns[1], batch, dtype, where)}
            print(f"| {told} | training, {kind} | {compared(steps, rounds, size.batch, where)} |", flush=True)


def coders(dtypes: Sequence[torch.dtype], rounds: int, where: torch.device) -> None:
    """The autoencoder at 64 pixels."""
    torch.manual_seed(0)
    mine, peer = (n.to(where) for n in peers.autoencoder(32, (1, 2, 4)))
    batch = {"x": torch.rand(16, 3, 64, 64, device=where) * 2 - 1}

    def first(network: Any, batch: Mapping[str, Tensor]) -> Tensor:
        result: Tensor = (network.decode(network.encode(batch["x"]).latent) - batch["x"]).abs().mean()
        return result

    def second(network: Any, batch: Mapping[str, Tensor]) -> Tensor:
        posterior = network.encode(batch["x"]).latent_dist
        result: Tensor = (network.decode(posterior.mode()).sample - batch["x"]).abs().mean()
        return result

    with torch.no_grad():
        told = f"autoencoder, 64 pixels | {decibels(mine.decode(mine.encode(batch['x']).latent), peer(batch['x']).sample):.0f} dB"
    for dtype in dtypes:
        steps = {
            "ours": ours(Turn(mine, first), batch, dtype, where),
            "theirs": theirs(Turn(peer, second), batch, dtype, where),
        }
        print(f"| {told} | training, {str(dtype).removeprefix('torch.')} | {compared(steps, rounds, 16, where)} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sizes whose name contains this; `autoencoder` for that alone")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32,bf16", help="separated by commas")
    a = parser.parse_args()
    where = devices.pick(a.device)
    dtypes = [devices.precision(name, where) for name in a.precision.split(",")]
    print("| network | equal to | | ours, images/s | diffusers | ratio (quartiles) |\n|---|---|---|---|---|---|")
    unets([name for name in SIZES if a.only in name], dtypes, a.rounds, where)
    if a.only in "autoencoder":
        coders(dtypes, a.rounds, where)


if __name__ == "__main__":
    main()
