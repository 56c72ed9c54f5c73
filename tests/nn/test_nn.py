"""Building blocks: shapes, starting points, and the kernels that crash or crawl elsewhere."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.nn.attention import Attention, MapAttention, SpatialTransformer, attend
from sfumato.nn.conv import Downsample, ResBlock, Upsample
from sfumato.nn.embed import sinusoid
from sfumato.nn.norm import GroupNorm, groups_for, norm


def test_groups_divide_the_channels() -> None:
    assert [groups_for(c, 32) for c in (64, 48, 20, 7, 1)] == [32, 24, 20, 7, 1]


@pytest.mark.parametrize("size", [4, 16])
def test_group_norm_of_a_frozen_channels_last_input_has_a_gradient(size: int) -> None:
    """torch's own kernel crashes the process here."""
    layer = GroupNorm(128)
    x = torch.randn(2, 128, size, size).to(memory_format=torch.channels_last)
    layer(x).square().mean().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer(x), F.group_norm(x.contiguous(), 32, layer.weight, layer.bias, 1e-5))


def test_channel_norm_knows_no_neighbours_and_keeps_channels_last() -> None:
    layer = norm(12, None)
    x = torch.randn(2, 12, 5, 7).to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt())
    torch.testing.assert_close(layer(x[..., :3]), y[..., :3])


@pytest.mark.parametrize("how", ["unshuffle", "strided", "asymmetric"])
def test_down_halves(how: str) -> None:
    assert Downsample(8, 12, how)(torch.zeros(1, 8, 6, 10)).shape == (1, 12, 3, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["shuffle", "nearest"])
def test_up_doubles_and_starts_without_a_grid(how: str) -> None:
    torch.manual_seed(0)
    y = Upsample(8, 4, how)(torch.randn(1, 8, 1, 1).expand(1, 8, 5, 5))  # type: ignore[arg-type]
    assert y.shape == (1, 4, 10, 10)
    inner = y[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, inner[..., :1, :1].expand_as(inner))


@pytest.mark.parametrize("change", ["none", "down", "up"])
def test_a_residual_block_starts_as_its_skip(change: str) -> None:
    x = torch.randn(2, 8, 4, 4)
    y = ResBlock(8, 8, 16, change=change)(x, torch.randn(2, 16))  # type: ignore[arg-type]
    expected = {"none": x, "down": F.avg_pool2d(x, 2), "up": F.interpolate(x, scale_factor=2.0)}[change]
    torch.testing.assert_close(y, expected)


def test_masked_keys_do_not_count() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 80, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    whole = attend(q, k, v, mask)
    torch.testing.assert_close(attend(q[:1], k[:1, :, :4], v[:1, :, :4]), whole[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_attention_never_looks_ahead(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(3))
    for n in range(1, 9):  # the last query of n sees n keys
        alone = attend(q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n])
        torch.testing.assert_close(attend(q, k, v, causal=True)[:, :, n - 1 : n], alone, rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="takes no mask"):
        attend(q, k, v, torch.ones(2, 8, dtype=torch.bool), causal=True)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="not divisible by 3 heads"):
        Attention(16, 3)


@pytest.mark.parametrize("linear", [True, False])
def test_spatial_attention_starts_as_the_identity_and_reads_its_context(linear: bool) -> None:
    torch.manual_seed(0)
    x, context = torch.randn(2, 16, 3, 5), torch.randn(2, 4, 6)
    layer = SpatialTransformer(16, 2, 6, linear=linear)
    torch.testing.assert_close(layer(x, context), x)
    nn.init.normal_(layer.out.weight)
    assert not torch.allclose(layer(x, context), layer(x, context + 1))
    assert torch.equal(MapAttention(16, 2)(x), x)


def test_the_sinusoid_is_cosines_then_sines() -> None:
    wave = sinusoid(torch.tensor([0.0, 1.0]), 6)
    assert wave[0].tolist() == [1, 1, 1, 0, 0, 0]
    torch.testing.assert_close(wave[1, :3], torch.cos(10_000.0 ** -(torch.arange(3) / 3)))
    assert sinusoid(torch.tensor([1.0]), 7).shape == (1, 7)


def test_group_norms_of_half_weights_work_in_single_precision_on_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[torch.dtype]] = []
    plain = F.group_norm

    def spied(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        seen.append({x.dtype, weight.dtype, bias.dtype})
        return plain(x, groups, weight, bias, eps)

    monkeypatch.setattr(F, "group_norm", spied)
    with torch.device("meta"), torch.no_grad():
        made = GroupNorm(32, 8).bfloat16()(torch.zeros(2, 32, 4, 4, dtype=torch.bfloat16))
    assert set().union(*seen) == {torch.float32}  # CUDA refuses others
    assert made.dtype == torch.bfloat16
