"""Training and sampling throughput of our U-Net beside diffusers' UNet2DConditionModel, as ratios.

Same widths, same latents, same conditions, same precision, alternating in one run, because machines are noisy:

    pip install -e ".[bench]" && python benchmarks/throughput.py
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sfumato import device as devices
from sfumato.backbones.unet import UNetConfig
from sfumato.conditioning.base import Conditions, Sizes

TOKENS, CONTEXT = 12, 128


class Peer(nn.Module):
    """diffusers' network under our call."""

    def __init__(self, width: int, channels: int, side: int) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.net = UNet2DConditionModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=2,
            block_out_channels=(width, 2 * width),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=CONTEXT,
            norm_num_groups=32,
        )

    def forward(self, x: Tensor, clock: Tensor, cond: Conditions) -> Tensor:
        result: Tensor = self.net(x, clock, cond.tokens, encoder_attention_mask=cond.mask).sample
        return result


def ours(width: int, channels: int) -> nn.Module:
    """Our network with the same levels, blocks, attention and context."""
    config = UNetConfig(width=width, multipliers=(1, 2), blocks=2, attention=(1, 2), heads=4)
    return config.build(channels, Sizes(tokens=CONTEXT))


def seconds(step: Callable[[], None]) -> float:
    """The time of one call."""
    begin = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    """Alternate, and print medians and the median of the pairwise ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    a = parser.parse_args()
    where = devices.pick(a.device)
    dtype = devices.precision(a.precision, where)
    nets = {"sfumato": ours(a.width, a.channels).to(where), "diffusers": Peer(a.width, a.channels, a.side).to(where)}
    x = torch.randn(a.batch, a.channels, a.side, a.side, device=where)
    clock = torch.rand(a.batch, device=where) * 1000
    mask = torch.ones(a.batch, TOKENS, dtype=torch.bool, device=where)
    cond = Conditions(tokens=torch.randn(a.batch, TOKENS, CONTEXT, device=where), mask=mask)

    def train(net: nn.Module, adam: torch.optim.Optimizer) -> Callable[[], None]:
        def step() -> None:
            with devices.cast(dtype, where):
                loss = net(x, clock, cond).float().square().mean()
            loss.backward()
            adam.step()
            adam.zero_grad()

        return step

    def sample(net: nn.Module) -> Callable[[], None]:
        def step() -> None:
            with torch.no_grad(), devices.cast(dtype, where):
                net(x, clock, cond)

        return step

    for name, net in nets.items():
        print(f"{name}: {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters")
    makers: tuple[tuple[str, Callable[[nn.Module], Callable[[], None]]], ...] = (
        ("training", lambda n: train(n, torch.optim.AdamW(n.parameters(), lr=1e-4, fused=True))),
        ("sampling", sample),
    )
    for what, make in makers:
        steps = {name: make(net) for name, net in nets.items()}
        for step in steps.values():
            step()
            step()
        taken: dict[str, list[float]] = {name: [] for name in nets}
        for _ in range(a.rounds):
            for name, step in steps.items():
                taken[name].append(seconds(step))
        ratio = statistics.median(d / s for s, d in zip(taken["sfumato"], taken["diffusers"], strict=True))
        rates = ", ".join(f"{name} {a.batch / statistics.median(t):.0f}/s" for name, t in taken.items())
        print(
            f"{what} ({str(dtype).removeprefix('torch.')}, batch {a.batch}): {rates}; ours is {ratio:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
