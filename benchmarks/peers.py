"""diffusers' networks with our weights in them: the same arithmetic on both sides of a comparison."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.autoencoder.kl import KLAutoencoder, KLConfig
from sfumato.backbones.unet import UNet, UNetConfig
from sfumato.conditioning.base import Conditions, Sizes

CONTEXT, TOKENS = 128, 12
PARTS = (
    (r"\btransformer_blocks\b", "blocks"), (r"\bto_out\.0\b", "to_out"), (r"\bff\.net\.0\.proj\b", "feed.into"),
    (r"\bff\.net\.2\b", "feed.out"), (r"\btime_emb_proj\b", "embed"), (r"\bconv_shortcut\b", "skip"),
    (r"\bproj_in\b", "into"), (r"\bproj_out\b", "out"), (r"\bgroup_norm\b", "norm"),
)  # fmt: skip


def unet(
    width: int,
    multipliers: tuple[int, ...],
    attention: tuple[int, ...],
    channels: int = 4,
    heads: int = 4,
    context: int = CONTEXT,
    linear: bool = True,
) -> tuple[UNet, Any]:
    """Ours in the form of diffusers' `UNet2DConditionModel`, and that network with the same weights."""
    from diffusers import UNet2DConditionModel

    config = UNetConfig(
        width=width, multipliers=multipliers, attention=attention, blocks=2, heads=heads, scale_shift=False,
        down="strided", up="nearest", linear=linear,
    )  # fmt: skip
    mine = config.build(channels, Sizes(tokens=context))
    scrambled(mine)
    crossed = [2**level in attention for level in range(len(multipliers))]
    theirs = UNet2DConditionModel(
        in_channels=channels, out_channels=channels, layers_per_block=2, use_linear_projection=linear,
        block_out_channels=tuple(width * m for m in multipliers), attention_head_dim=heads, cross_attention_dim=context,
        down_block_types=tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed),
        up_block_types=tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)),
    )  # fmt: skip
    have = mine.state_dict()
    theirs.load_state_dict({key: have[_unet_name(key, 2)] for key in theirs.state_dict()})
    return mine, Peer(theirs)


def scrambled(network: nn.Module) -> None:
    """Weights in which nothing is zero: fresh networks have branches that add nothing."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.02 * torch.randn_like(p))


def _unet_name(key: str, blocks: int) -> str:
    first = {"conv_in": "into", "conv_out": "out", "conv_norm_out": "norm"}
    head, _, rest = key.partition(".")
    if head in first:
        return f"{first[head]}.{rest}"
    if head == "time_embedding":
        return rest.replace("linear_1", "time.layers.0").replace("linear_2", "time.layers.2")
    if head == "mid_block":
        kind, number, inner = rest.split(".", 2)
        return f"middle.{number}.{'block' if kind == 'resnets' else 'attention'}.{_inner(inner)}"
    level, kind, number, inner = rest.split(".", 3)
    each = blocks + (1 if head == "down_blocks" else 2)
    if kind in ("downsamplers", "upsamplers"):
        return f"{head.split('_')[0]}.{int(level) * each + each - 1}.{inner}"
    place = int(level) * each + int(number)
    return f"{head.split('_')[0]}.{place}.{'block' if kind == 'resnets' else 'attention'}.{_inner(inner)}"


def _inner(name: str) -> str:
    for pattern, other in PARTS:
        name = re.sub(pattern, other, name)
    return name


class Peer(nn.Module):
    """diffusers' U-Net under our call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, clock: Tensor, cond: Conditions) -> Tensor:
        result: Tensor = self.net(x, clock, cond.tokens).sample
        return result


def autoencoder(width: int, multipliers: tuple[int, ...]) -> tuple[KLAutoencoder, Any]:
    """Ours in the form of diffusers' `AutoencoderKL` with one block a level, and that network with the same weights."""
    from diffusers import AutoencoderKL

    factor = 2 ** (len(multipliers) - 1)
    coder = {"factor": factor, "channels": 4, "width": width, "multipliers": list(multipliers), "blocks": 1}
    mine = KLConfig.model_validate({"coder": coder, "bottleneck": True}).build()
    assert isinstance(mine, KLAutoencoder)
    scrambled(mine)
    count = len(multipliers)
    theirs = AutoencoderKL(
        block_out_channels=tuple(width * m for m in multipliers), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * count, up_block_types=("UpDecoderBlock2D",) * count,
    )  # fmt: skip
    have = mine.state_dict()
    theirs.load_state_dict({key: have[_coder_name(key, count, 1)] for key in theirs.state_dict()})
    return mine, theirs


def _coder_name(key: str, levels: int, blocks: int) -> str:
    side, head, *last = key.split(".", 2)
    if side in ("quant_conv", "post_quant_conv"):
        return f"{'into' if side == 'quant_conv' else 'out'}.{head}"
    rest = last[0]
    encodes = side == "encoder"
    each = blocks + (1 if encodes else 2)
    middle, end = (levels * each, levels * each + 1) if encodes else (1, levels * each + 1)
    if head in ("conv_in", "conv_norm_out", "conv_out"):
        return f"{side}.{ {'conv_in': 0, 'conv_norm_out': end, 'conv_out': end + 2}[head] }.{rest}"
    if head == "mid_block":
        kind, number, inner = rest.split(".", 2)
        if kind == "attentions":
            inner = inner.replace("group_norm", "norm") if "norm" in inner else f"attention.{_inner(inner)}"
            return f"{side}.{middle}.1.{inner}"
        return f"{side}.{middle}.{2 * int(number)}.{_inner(inner)}"
    level, kind, number, inner = rest.split(".", 3)
    first = (1 if encodes else 2) + int(level) * each
    return f"{side}.{first + (int(number) if kind == 'resnets' else each - 1)}.{_inner(inner)}"
