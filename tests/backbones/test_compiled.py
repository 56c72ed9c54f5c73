"""A compiled backbone says what an eager one says, in training and in sampling, whatever the number of tokens."""

import copy

import pytest
import torch

from sfumato.backbones.base import TOKENS, Backbone, Rows
from sfumato.backbones.dit import DiTConfig
from sfumato.backbones.unet import UNetConfig
from sfumato.conditioning.base import Conditions, Sizes
from sfumato.nn.compiled import channels_last_, compile_, is_compiled

# torch warns of itself while it traces
pytestmark = pytest.mark.filterwarnings("default")


def network(kind: str) -> Backbone:
    torch.manual_seed(0)
    small = UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(2,), groups=8)
    net = (small if kind == "unet" else DiTConfig(width=32, depth=1, heads=2)).build(4, Sizes(vector=8, tokens=16))
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return net


def batch(tokens: int, masked: bool) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    mask = (torch.rand(3, tokens) < 0.5).index_fill(1, torch.tensor([0]), True) if masked else None
    cond = Conditions(torch.randn(3, 8), torch.randn(3, tokens, 16), mask)
    return torch.randn(3, 4, 8, 8), 1000 * torch.rand(3), cond


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_compiled_and_eager_agree(kind: str) -> None:
    eager = network(kind)
    net = copy.deepcopy(eager)
    channels_last_(net)
    compile_(net, captured=True, backend="aot_eager")
    for tokens, masked in ((5, True), (TOKENS, False)):
        given = batch(tokens, masked)
        torch.testing.assert_close(net(*given), eager(*given), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(net(*given), eager(*given), rtol=1e-4, atol=1e-5)
    given = batch(5, True)
    wanted = torch.autograd.grad(eager(*given).square().mean(), list(eager.parameters()))
    found = torch.autograd.grad(net(*given).square().mean(), list(net.parameters()))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_one_graph_holds_the_whole_network() -> None:
    """Nothing in it breaks off to Python: a graph of CUDA can hold it."""
    net = network("unet")
    told = torch._dynamo.explain(net._call_impl)(*batch(TOKENS, True))
    assert told.graph_break_count == 0, told.break_reasons


def test_tokens_are_padded_to_few_numbers() -> None:
    cond = Conditions(tokens=torch.ones(2, TOKENS + 1, 3))
    rounded = Rows.rounded(cond)
    assert rounded.tokens is not None
    assert rounded.mask is not None
    assert rounded.tokens.shape == (2, 2 * TOKENS, 3)
    assert rounded.mask.sum(1).tolist() == [TOKENS + 1] * 2
    same = Rows.rounded(Conditions(tokens=torch.ones(2, TOKENS, 3)))
    assert same.mask is None


def test_a_copy_is_eager_and_names_stay() -> None:
    net = network("unet")
    names = list(net.state_dict())
    compile_(net, backend="eager")
    assert is_compiled(net)
    assert list(net.state_dict()) == names
    assert not is_compiled(copy.deepcopy(net))


def test_maps_are_laid_channels_last_once() -> None:
    net = network("unet")
    for _ in range(2):
        channels_last_(net)
    assert len(net._forward_pre_hooks) == 1
