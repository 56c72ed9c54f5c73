"""The U-Net: its start, its doors, any size, and the published sizes by options alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from sfumato.backbones.base import BackboneConfig
from sfumato.backbones.unet import UNetConfig
from sfumato.conditioning.base import Conditions, Sizes

SMALL: dict[str, Any] = {
    "width": 16,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [1, 2],
    "head_width": 8,
    "groups": 8,
}


def test_it_predicts_zero_before_training_and_depends_on_everything_after() -> None:
    torch.manual_seed(0)
    net = UNetConfig(**SMALL).build(4, Sizes(6, 5, 2))
    cond = Conditions(
        torch.randn(2, 6), torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 2, 4, 4)
    )
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([10.0, 900.0])
    assert float(net(x, t, cond).detach().abs().max()) == 0
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    base = net(x, t, cond)
    assert cond.vector is not None
    assert cond.tokens is not None
    assert cond.image is not None
    changes = [
        (x, t + 50, cond),
        (x, t, Conditions(cond.vector + 1, cond.tokens, cond.mask, cond.image)),
        (x, t, Conditions(cond.vector, cond.tokens + torch.randn(5), cond.mask, cond.image)),
        (x, t, Conditions(cond.vector, cond.tokens, cond.mask, cond.image + 1)),
    ]
    for change in changes:
        assert not torch.allclose(net(*change), base, atol=1e-5)


@given(st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None, max_examples=12)
def test_any_size_goes_in_and_comes_out(height: int, width: int) -> None:
    """What its factor does not divide is continued at its lower and right edge, and cut off again."""
    net = UNetConfig(**SMALL).build(3, Sizes())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x, t = torch.randn(1, 3, height, width), torch.zeros(1)
        whole = nn.functional.pad(x, (0, -width % net.factor, 0, -height % net.factor), mode="replicate")
        assert torch.equal(net(x, t), net(whole, t)[..., :height, :width])


@pytest.mark.parametrize(
    ("fields", "channels", "sizes", "parameters"),
    [
        # SD v1
        ({"width": 320, "multipliers": [1, 2, 4, 4], "attention": [1, 2, 4], "heads": 8, "middle": 8}, 4, Sizes(tokens=768), 859_520_964),
        # CelebA-HQ, FFHQ, LSUN bedrooms
        ({"width": 224, "multipliers": [1, 2, 3, 4], "attention": [2, 4, 8], "head_width": 32, "attend": "self"}, 3, Sizes(), 274_056_163),
        # LSUN churches
        (
            {"width": 192, "multipliers": [1, 2, 2, 4, 4], "attention": [1, 2, 4, 8], "heads": 8, "attend": "self", "scale_shift": True, "resample": "block"},
            4, Sizes(), 294_966_916,
        ),
        # class-conditional ImageNet, f = 8
        ({"width": 256, "multipliers": [1, 2, 4], "attention": [1, 2, 4], "head_width": 32}, 4, Sizes(tokens=512), 394_984_196),
        # layout to image: three transformer blocks an attention
        ({"width": 128, "multipliers": [1, 2, 3, 4], "attention": [2, 4, 8], "head_width": 32, "depth": 3}, 3, Sizes(tokens=512), 246_277_379),
    ],
)  # fmt: skip
def test_published_networks_have_their_published_size(
    fields: dict[str, Any], channels: int, sizes: Sizes, parameters: int
) -> None:
    fields.pop("middle", None)
    published = {
        "blocks": 2,
        "linear": False,
        "scale_shift": False,
        "down": "strided",
        "up": "nearest",
        **fields,
    }
    with torch.device("meta"):
        net = UNetConfig(**published).build(channels, sizes)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"downsampling factors are \[1, 2\]"):
        BackboneConfig.model_validate({"kind": "unet", "multipliers": [1, 2], "attention": [4]})
    with pytest.raises(ValueError, match="direct_vector wants"):
        UNetConfig(**{**SMALL, "direct_vector": True}).build(4, Sizes(vector=3))
    net = UNetConfig(**SMALL).build(4, Sizes(vector=3))
    with pytest.raises(ValueError, match="needs a vector"):
        net(torch.zeros(1, 4, 4, 4), torch.zeros(1))


def test_a_network_that_wants_tokens_says_so() -> None:
    fields: dict[str, Any] = {"width": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2], "groups": 8}
    x, t = torch.zeros(1, 4, 4, 4), torch.zeros(1)
    assert UNetConfig(**fields, attend="self").build(4, Sizes(0, 5, 0))(x, t).shape == x.shape  # words by their vector
    net = UNetConfig(**fields).build(4, Sizes(0, 32, 0))  # as wide as the map that attends
    with pytest.raises(ValueError, match="this network needs tokens"):
        net(torch.zeros(1, 4, 4, 4), torch.zeros(1))
