"""What a backbone does where no gradient is wanted: lanes, layouts and half precision change rounding only."""

import copy

import pytest
import torch

from sfumato.backbones.base import Backbone
from sfumato.backbones.unet import UNetConfig
from sfumato.conditioning.base import Conditions, Sizes


def network(**options: object) -> Backbone:
    torch.manual_seed(0)
    config = UNetConfig.model_validate({"width": 32, "multipliers": [1, 2], "blocks": 1, "attention": [2], **options})
    net = config.build(4, Sizes(vector=8, tokens=16, image=2)).eval()
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return net


def batch(rows: int, side: int = 8) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    g = torch.Generator().manual_seed(1)
    mask = torch.rand(rows, 5, generator=g) < 0.7
    mask[:, 0] = True
    vector, tokens, image = (torch.randn(rows, *s, generator=g) for s in ((8,), (5, 16), (2, side, side)))
    x, clock = torch.randn(rows, 4, side, side, generator=g), 1000 * torch.rand(rows, generator=g)
    return x, clock, Conditions(vector, tokens, mask, image)


def decibels(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10((b.max() - b.min()).square() / (a - b).square().mean().clamp(min=1e-30)))


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("groups", [8, None])
def test_without_gradients_the_output_is_the_same_to_rounding(rows: int, groups: int | None) -> None:
    net, given = network(groups=groups), batch(rows)
    with_gradients = net(*given).detach()
    with torch.no_grad():
        assert decibels(net(*given), with_gradients) > 120
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        assert decibels(net(*given), with_gradients) > 120


@pytest.mark.parametrize("side", [8, 32])
def test_weights_in_half_precision_are_as_near_as_autocast(side: int) -> None:
    net, given = network(), batch(4, side)
    half = copy.deepcopy(net).to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        whole, mine = net(*given), half(*given)
        with torch.autocast("cpu", torch.bfloat16):
            cast = net(*given)
    assert mine.dtype == torch.float32
    assert decibels(mine, whole) > decibels(cast, whole) - 3


def test_lanes_keep_the_caller_s_modes() -> None:
    seen: list[tuple[bool, bool, torch.dtype]] = []
    net = network()
    net.register_forward_hook(
        lambda *_: seen.append(
            (torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
        )
    )
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        net(*batch(4))
    assert len(seen) == torch.get_num_threads() == 2
    assert set(seen) == {(True, True, torch.bfloat16)}
