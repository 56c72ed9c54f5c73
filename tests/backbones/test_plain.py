"""The switch that turns fast paths off."""

import torch

from sfumato import paths
from sfumato.backbones.unet import UNetConfig
from sfumato.conditioning.base import Conditions, Sizes


def test_the_plain_way_is_the_same_arithmetic() -> None:
    torch.manual_seed(0)
    net = UNetConfig(width=32, multipliers=(1, 2), blocks=1, attention=(1, 2)).build(4, Sizes(tokens=16)).eval()
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    given = torch.randn(4, 4, 8, 8), torch.rand(4), Conditions(tokens=torch.randn(4, 3, 16))
    with torch.no_grad():
        fast = net(*given)
        with paths.plain():
            assert not paths.fast()
            plain = net(*given)
    assert paths.fast()
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_the_plain_way_can_be_exported() -> None:
    net = UNetConfig(width=32, multipliers=(1, 2), blocks=1, attention=(2,)).build(4, Sizes()).eval()
    given = torch.randn(2, 4, 8, 8), torch.rand(2)
    with torch.no_grad(), paths.plain():
        program = torch.export.export(net, given)
        torch.testing.assert_close(program.module()(*given), net(*given))
