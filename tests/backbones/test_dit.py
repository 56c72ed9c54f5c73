"""The diffusion transformer: its start, its doors, any size, the published sizes, and a toy that it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F

from sfumato.backbones.base import BackboneConfig
from sfumato.backbones.dit import DiT, DiTConfig, HeadNorm
from sfumato.conditioning.base import Conditions, Sizes
from sfumato.model import LatentDiffusion
from sfumato.nn.position import rotate, rotations, sines
from sfumato.training import run
from tests.conftest import diffusion_recipe

SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "side": 2}
POSITIONS = ["rotary", "sine", "learned"]


def conditions(count: int = 2, side: int = 4) -> Conditions:
    rng = torch.Generator().manual_seed(1)
    return Conditions(
        torch.randn(count, 6, generator=rng),
        torch.randn(count, 3, 5, generator=rng),
        torch.tensor([[True, True, False]] * count),
        torch.randn(count, 2, side, side, generator=rng),
    )


@pytest.mark.parametrize("positions", ["rotary", "sine"])
def test_positions_that_are_kept_serve_every_later_call(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = DiTConfig(**SMALL, positions=positions).build(4, Sizes())
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([10.0, 900.0])
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        net(x, t)
    assert not net._grids  # a captured graph's memory is written to again
    with torch.inference_mode():
        net(x, t)
    assert net._grids
    net(x, t).square().sum().backward()  # a training after a sampling


@pytest.mark.parametrize("positions", POSITIONS)
def test_it_predicts_zero_before_training_and_depends_on_everything_after(positions: str) -> None:
    torch.manual_seed(0)
    net, cond = DiTConfig(**SMALL, positions=positions).build(4, Sizes(6, 5, 2)), conditions()
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([10.0, 900.0])
    assert float(net(x, t, cond).detach().abs().max()) == 0
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    base = net(x, t, cond)
    assert cond.vector is not None
    assert cond.tokens is not None
    assert cond.image is not None
    other = cond.tokens + torch.tensor([1.0, -1, 2, 0, 1])
    padding = cond.tokens.clone()
    padding[:, 2] += 100
    changes = [
        (x, t + 50, cond),
        (x, t, Conditions(cond.vector + 1, cond.tokens, cond.mask, cond.image)),
        (x, t, Conditions(cond.vector, other, cond.mask, cond.image)),
        (x, t, Conditions(cond.vector, cond.tokens, cond.mask, cond.image + 1)),
    ]
    for change in changes:
        assert not torch.allclose(net(*change), base, atol=1e-4)
    hidden = net(x, t, Conditions(cond.vector, padding, cond.mask, cond.image))
    torch.testing.assert_close(hidden, base)  # what the mask hides is not seen
    swapped = torch.cat([x[..., 2:], x[..., :2]], -1)  # the same patches elsewhere: positions count
    plain = Conditions(cond.vector, cond.tokens, cond.mask, torch.zeros_like(cond.image))
    moved, there = net(swapped, t, plain), net(x, t, plain)
    assert not torch.allclose(torch.cat([moved[..., 2:], moved[..., :2]], -1), there, atol=1e-4)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(POSITIONS))
@settings(deadline=None, max_examples=12)
def test_any_size_goes_in_and_comes_out(height: int, width: int, positions: str) -> None:
    """What patches do not cover is continued at its lower and right edge, and cut off again."""
    net = DiTConfig(**SMALL, positions=positions).build(3, Sizes(image=1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x, t, beside = torch.randn(1, 3, height, width), torch.zeros(1), torch.randn(1, 1, height, width)
        sides = (0, -width % net.factor, 0, -height % net.factor)
        whole, more = (F.pad(one, sides, mode="replicate") for one in (x, beside))
        expected = net(whole, t, Conditions(image=more))[..., :height, :width]
        assert torch.equal(net(x, t, Conditions(image=beside)), expected)


@pytest.mark.parametrize(
    ("fields", "published"),
    [
        ({"width": 384, "depth": 12, "heads": 6}, 32_963_360),  # S/2, 33 M
        ({"width": 768, "depth": 12, "heads": 12}, 130_512_416),  # B/2, 130 M
        ({"width": 1024, "depth": 24, "heads": 16}, 458_102_816),  # L/2, 458 M
        ({"width": 1152, "depth": 28, "heads": 16}, 675_129_632),  # XL/2, 675 M
    ],
)
def test_published_networks_have_their_published_size(fields: dict[str, Any], published: int) -> None:
    with torch.device("meta"):
        options = {"patch": 2, "positions": "sine", "qk_norm": False, "direct_vector": True}
        net = DiTConfig(**options, **fields).build(4, Sizes(vector=fields["width"]))
    width = fields["width"]
    # theirs counts a frozen table of 16x16 positions, the 1000 classes and the null, which are the conditioner's here,
    # and a learned variance: as many outputs again
    theirs = 256 * width + 1001 * width + 4 * 2**2 * (width + 1)
    assert sum(p.numel() for p in net.parameters()) + theirs == published


def test_rotations_tell_distances_alone() -> None:
    cos, sin = rotations((3, 5), 8)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    turned = [rotate(v.expand(1, 1, 15, 8), cos, sin)[0, 0] for v in (q, k)]
    products = (turned[0] @ turned[1].T).reshape(3, 5, 3, 5)
    torch.testing.assert_close(products[0, 0, 1, 2], products[1, 2, 2, 4])
    torch.testing.assert_close(products[2, 3, 1, 1], products[1, 2, 0, 0])
    assert not torch.allclose(products[0, 0, 0, 1], products[0, 0, 1, 0])
    assert sines((3, 5), 8).unique(dim=0).shape == (15, 8)


def waked(**options: Any) -> DiT:
    """A network with conditions by all doors whose weights are nowhere zero."""
    torch.manual_seed(0)
    net = DiTConfig(**{**SMALL, **options}).build(4, Sizes(6, 5, 2))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for module in net.modules():
        if isinstance(module, HeadNorm):
            torch.nn.init.constant_(module.weight, 1.5)  # attention that looks at something
    return net


@torch.no_grad()
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("which", ["attention", "cross"])
@pytest.mark.parametrize("end", ["q", "k"])
def test_normed_queries_and_keys_have_no_length(qk_norm: bool, which: str, end: str) -> None:
    net, x, t = waked(qk_norm=qk_norm), torch.randn(2, 4, 4, 4), torch.tensor([10.0, 900.0])
    base = net(x, t, conditions())
    for block in net.blocks:
        attention = getattr(block, which)
        apart = end == "q" and which == "cross"
        linear = attention.to_q if apart else attention.to_qkv
        begin = 16 if (end, which) == ("k", "attention") else 0  # queries, keys and values lie in this order
        for tensor in (linear.weight, linear.bias):
            tensor[begin : begin + 16] *= 5
    made = net(x, t, conditions())
    if qk_norm:
        torch.testing.assert_close(made, base, rtol=1e-4, atol=1e-4)
    else:
        assert float((made - base).abs().max()) > 0.01 * float(base.abs().max())


def shuffled(x: torch.Tensor, order: list[int]) -> torch.Tensor:
    """(B, C, 4, 4) with its four patches in another order."""
    patches = F.pixel_unshuffle(x, 2).flatten(2)[..., order]
    return F.pixel_shuffle(patches.unflatten(2, (2, 2)), 2)


@torch.no_grad()
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("order", [[2, 3, 0, 1], [1, 0, 3, 2], [0, 2, 1, 3]], ids=["rows", "columns", "turned"])
def test_patches_elsewhere_are_others_unless_their_positions_go_with_them(positions: str, order: list[int]) -> None:
    net, x, t, cond = waked(positions=positions), torch.randn(2, 4, 4, 4), torch.tensor([10.0, 900.0]), conditions()
    assert cond.image is not None
    there = Conditions(cond.vector, cond.tokens, cond.mask, shuffled(cond.image, order))
    wanted = shuffled(net(x, t, cond), order)
    made = net(shuffled(x, order), t, there)
    assert float((made - wanted).abs().max()) > 0.01 * float(wanted.abs().max())
    if positions == "learned":
        net.table.copy_(net.table.flatten(1)[:, order].unflatten(1, (2, 2)))
    else:
        (key,) = net._grids
        found = net._grids[key]
        net._grids[key] = (found[0][order], found[1][order]) if isinstance(found, tuple) else found[order]
    torch.testing.assert_close(net(shuffled(x, order), t, there), wanted, rtol=1e-4, atol=1e-4)


def test_it_learns_a_toy() -> None:
    torch.manual_seed(0)
    net = DiTConfig(width=32, depth=2, heads=2).build(1, Sizes(vector=2))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    kind = torch.arange(16) % 2
    x = torch.randn(16, 1, 4, 4)
    rows = torch.where(kind[:, None, None, None] == 0, x.flip(-1), -x)  # what to do is told by the vector
    cond = Conditions(vector=torch.eye(2)[kind])
    losses = []
    for _ in range(120):
        loss = (net(x, torch.zeros(16), cond) - rows).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]


def test_half_precision_is_near_and_trains() -> None:
    torch.manual_seed(0)
    net, x = DiTConfig(**SMALL).build(4, Sizes(6, 5, 2)), torch.randn(2, 4, 4, 4)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    whole = net(x, torch.tensor([10.0, 900.0]), conditions())
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, torch.tensor([10.0, 900.0]), conditions())
    assert half.dtype == torch.float32
    assert float((half - whole).detach().abs().max() / whole.detach().abs().max()) < 0.05
    half.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.slow
def test_a_recipe_trains_it_with_words_and_labels(first_stage: Path, tmp_path: Path) -> None:
    read = diffusion_recipe(first_stage, images=32, batch=8)
    changed = read.model_copy(update={"backbone": DiTConfig(width=16, depth=1, heads=2)})
    model = LatentDiffusion.load(run.train(changed, tmp_path / "dit", device="cpu", quiet=True))
    assert isinstance(model.config.backbone, DiTConfig)
    said = model.conditions({"caption": ["a red heart", "a cat"]}, 2, size=(5, 7))
    made = model.denoise(said, scale=2.0)(torch.randn(2, 4, 5, 7), torch.full((2,), 0.5))
    assert made.isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    for fields, words in (
        ({"width": 10, "heads": 3}, "not divisible by 3 heads"),
        ({"width": 12, "heads": 2}, "heads of a width that 4 divides; it is 6"),
        ({"width": 6, "heads": 1, "positions": "sine"}, "a width that 4 divides; it is 6"),
    ):
        with pytest.raises(ValidationError, match=words):
            BackboneConfig.model_validate({"kind": "dit", **fields})
    with pytest.raises(ValueError, match="direct_vector wants a vector of 16"):
        DiTConfig(**SMALL, direct_vector=True).build(4, Sizes(vector=3))
    net, x = DiTConfig(**SMALL).build(4, Sizes(3, 5, 2)), torch.zeros(1, 4, 4, 4)
    with pytest.raises(ValueError, match="needs an image condition"):
        net(x, torch.zeros(1))
    with pytest.raises(ValueError, match="the image condition is 8x8 and the latent 4x4"):
        net(x, torch.zeros(1), Conditions(image=torch.zeros(1, 2, 8, 8)))
    with pytest.raises(ValueError, match="needs a vector"):
        net(x, torch.zeros(1), Conditions(image=torch.zeros(1, 2, 4, 4)))
    with pytest.raises(ValueError, match="needs tokens"):
        net(x, torch.zeros(1), Conditions(vector=torch.zeros(1, 3), image=torch.zeros(1, 2, 4, 4)))
