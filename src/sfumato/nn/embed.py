"""Numbers as vectors: the sinusoid that tells a network the time."""

import math

import torch
from torch import Tensor, nn


def sinusoid(values: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """values (B,) -> (B, width): cosines then sines over a geometric range of periods (Vaswani et al., 2017).

    The order and the range are those of the published latent diffusion models, so that their weights apply.
    """
    half = width // 2
    rates = torch.exp(-math.log(longest) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values.float()[:, None] * rates
    waves = torch.cat([angles.cos(), angles.sin()], -1)
    return nn.functional.pad(waves, (0, width % 2))


class TimeEmbedding(nn.Module):
    """clock values (B,) -> (B, out): sinusoid, linear, SiLU, linear."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, clock: Tensor) -> Tensor:
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        result: Tensor = self.layers(sinusoid(clock, self.width).to(first.weight.dtype))
        return result
