"""The switch that turns fast paths off."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from sfumato import paths
from sfumato.autoencoder.kl import KLConfig
from sfumato.backbones.dit import DiTConfig
from sfumato.backbones.unet import UNetConfig
from sfumato.conditioning.base import Conditions, Sizes
from tests.conftest import CODER


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_plain_way_takes_networks_in_half_precision_too(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = UNetConfig(width=32, multipliers=(1, 2), blocks=1, attention=(1, 2)).build(4, Sizes(tokens=16)).eval()
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    net.to(dtype)
    given = torch.randn(4, 4, 8, 8), torch.rand(4), Conditions(tokens=torch.randn(4, 3, 16))
    with torch.no_grad():
        fast = net(*given)
        with paths.plain():
            plain = net(*given)
    graded = net(*given)  # as likelihoods want it
    assert fast.dtype == plain.dtype == graded.dtype == torch.float32
    for other in (plain, graded.detach()):
        torch.testing.assert_close(fast, other, rtol=0.05, atol=0.05)


def network(name: str) -> tuple[nn.Module, tuple[int, int], tuple[Tensor, ...]]:
    """With weights that are nowhere zero, the channels and the multiple of the sides of what it is given, and the rest."""
    torch.manual_seed(0)
    stage = KLConfig.model_validate({"coder": {**CODER, "middle_attention": True}}).build()
    made: dict[str, tuple[nn.Module, tuple[int, int], tuple[Tensor, ...]]] = {
        "unet": (
            UNetConfig(width=32, multipliers=(1, 2), blocks=1, attention=(2,)).build(4, Sizes()),
            (4, 2),
            (torch.rand(5),),
        ),
        "dit": (DiTConfig(width=32, depth=2, heads=2).build(4, Sizes()), (4, 2), (torch.rand(5),)),
        "encoder": (stage.encoder, (3, 8), ()),
        "decoder": (stage.decoder, (4, 1), ()),
    }
    found = made[name]
    for p in found[0].parameters():
        p.data += 0.02 * torch.randn_like(p)
    return found[0].eval(), *found[1:]


@pytest.mark.parametrize("name", ["unet", "dit", "encoder", "decoder"])
def test_the_plain_way_can_be_exported_for_any_batch_and_size(name: str) -> None:
    net, (channels, multiple), rest = network(name)
    few = torch.randn(2, channels, 4 * multiple, 4 * multiple), *(x[:2] for x in rest)
    more = torch.randn(5, channels, 6 * multiple, 3 * multiple), *rest
    batch, high, wide = Dim("batch"), multiple * Dim("high"), multiple * Dim("wide")
    with torch.no_grad(), paths.plain():
        sizes = {0: batch, 2: high, 3: wide}, *({0: batch} for _ in rest)
        program = torch.export.export(net, few, dynamic_shapes=sizes)
        for given in (few, more):
            torch.testing.assert_close(program.module()(*given), net(*given))
