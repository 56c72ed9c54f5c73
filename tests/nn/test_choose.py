"""Fast paths: the same arithmetic as the plain way, for every shape at which the way changes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import paths
from sfumato.autoencoder.base import FirstStage
from sfumato.nn import choose
from sfumato.nn.attention import attend
from sfumato.nn.conv import Conv2d
from sfumato.nn.norm import GroupNorm
from sfumato.training.discriminator import PatchDiscriminator
from tests.conftest import CODER


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def near(found: Tensor, exact: Tensor, plain: Tensor) -> None:
    """About as near to the exact value as the plain way is."""
    mine, theirs = ((x.double() - exact.double()).norm() / exact.double().norm() for x in (found, plain))
    assert mine < 3 * theirs + 1e-6, (float(mine), float(theirs))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rows", "keys", "width"), [(16, 16, 8), (64, 12, 32), (70, 70, 128), (3, 1, 4)])
def test_attention_in_half_precision_is_as_exact_as_the_fused_kernel(
    rows: int, keys: int, width: int, masked: bool
) -> None:
    q, k, v = (torch.randn(2, 3, n, width) for n in (rows, keys, keys))
    mask = torch.rand(2, keys) < 0.6 if masked else None
    if mask is not None:
        mask[:, 0] = True
    exact = attend(q.double(), k.double(), v.double(), mask)
    half = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    assert choose.products(*half)
    found = attend(*half, mask)
    with paths.plain():
        plain = attend(*half, mask)
    near(found, exact, plain)
    gradient = torch.randn_like(found)
    for mine, theirs in zip(*(torch.autograd.grad(y, half, gradient) for y in (found, plain)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("bytes_at_a_time", [1, 500, 9000, 1 << 20])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_parts_is_that_of_the_whole(
    bytes_at_a_time: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = (torch.randn(2, 3, n, 8).bfloat16() for n in (37, 11, 11))
    mask = (torch.rand(2, 11) < 0.6).index_fill(1, torch.tensor([0]), True) if masked else None
    whole = attend(q, k, v, mask)
    monkeypatch.setattr(choose, "SCORES", bytes_at_a_time)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, mask), whole, rtol=0.02, atol=0.02)


def test_scores_that_would_be_kept_have_a_bound() -> None:
    q, wide = torch.empty(1, 1, 4096, 64).bfloat16(), torch.empty(1, 1, 4096, 512).bfloat16()
    assert not choose.products(q, q, q)
    assert choose.products(wide, wide, wide)
    with torch.no_grad():
        assert choose.products(q, q, q)
    assert not choose.products(q.float(), q.float(), q.float())


@pytest.mark.parametrize(
    "kernel", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "stride": 2}, {"kernel_size": 1}]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_weight_gradients_by_parts_are_those_of_the_whole(kernel: dict[str, int], bias: bool, autocast: bool) -> None:
    conv = Conv2d(5, 7, bias=bias, **kernel)  # type: ignore[arg-type]
    x = torch.randn(5, 5, 9, 9, requires_grad=True)
    exact = torch.autograd.grad(conv(x).square().sum(), [x, *conv.parameters()])
    if not autocast:
        conv = conv.bfloat16()
    wanted = [x, *conv.parameters()]

    def gradients() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(conv(x if autocast else x.bfloat16()).float().square().sum(), wanted)

    assert choose.apart(x, conv.weight) == (not autocast)
    found = gradients()
    with paths.plain():
        plain = gradients()
    for mine, theirs, true in zip(found, plain, exact, strict=True):
        assert mine.dtype == theirs.dtype
        near(mine, true, theirs)


@pytest.mark.parametrize("kind", ["kl", "vq", "tiny", "critic"])
def test_first_stages_and_their_critic_have_these_convolutions(kind: str) -> None:
    """All of them: one of torch's own would take most of a step in half precision."""
    sizes = {"width": 8} if kind == "tiny" else {"coder": {**CODER, "attention": [8]}}
    made = FirstStage.model_validate({"kind": kind, **sizes}).build() if kind != "critic" else PatchDiscriminator(3, 8)
    found = [m for m in made.modules() if isinstance(m, nn.Conv2d)]
    assert len(found) > 4
    assert [m for m in found if not isinstance(m, Conv2d)] == []


def test_a_convolution_by_parts_has_a_second_gradient() -> None:
    """A gradient penalty goes back through the way back."""
    conv, x = Conv2d(3, 4, 3, padding=1).bfloat16(), torch.randn(4, 3, 6, 6).bfloat16().requires_grad_()

    def penalty() -> Tensor:
        (slope,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.float().square().sum(), conv.weight)[0]

    found = penalty()
    with paths.plain():
        torch.testing.assert_close(found, penalty(), rtol=0.05, atol=1.0)


def test_a_frozen_convolution_has_no_weight_gradient() -> None:
    conv = Conv2d(3, 4, 3, padding=1).bfloat16().requires_grad_(False)
    x = torch.randn(2, 3, 6, 6).bfloat16().requires_grad_()
    conv(x).sum().backward()
    assert conv.weight.grad is None
    assert x.grad is not None


def test_one_thread_and_the_plain_way_have_no_choice() -> None:
    conv, x = nn.Conv2d(3, 4, 1).bfloat16(), torch.zeros(2, 3, 4, 4).bfloat16()
    assert choose.apart(x, conv.weight)
    torch.set_num_threads(1)
    try:
        assert not choose.apart(x, conv.weight)
    finally:
        torch.set_num_threads(2)
    with paths.plain():
        assert not choose.apart(x, conv.weight)
        assert not choose.turned(x)
    with torch.no_grad():
        assert not choose.apart(x, conv.weight)


def test_group_norm_survives_that_nobody_asks_for_its_input_s_gradient() -> None:
    """The input needs one, so no norm can know; torch's kernel would crash the process here."""
    layer = GroupNorm(128)
    x = torch.randn(2, 128, 8, 8).to(memory_format=torch.channels_last).requires_grad_()  # type: ignore[call-overload]
    found = torch.autograd.grad(layer(x).square().mean(), list(layer.parameters()))
    whole = F.group_norm(x.detach().contiguous(), 32, layer.weight, layer.bias)
    wanted = torch.autograd.grad(whole.square().mean(), list(layer.parameters()))
    torch.testing.assert_close(found, wanted)
