"""Any size: tiles that are the whole, as far as convolutions go."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.autoencoder import tiling
from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.nn.norm import GroupNorm
from sfumato.windows import Window

CODER: dict[str, Any] = {"factor": 4, "channels": 3, "width": 8, "blocks": 1, "middle_blocks": 1, "groups": 4}


def tiny(**fields: Any) -> Codec:
    torch.manual_seed(0)
    return Codec(FirstStage.model_validate({"kind": "tiny", "width": 8, "blocks": 1, "factor": 4, **fields})).eval()


def kl(**coder: Any) -> Codec:
    torch.manual_seed(0)
    made = Codec(FirstStage.model_validate({"kind": "kl", "coder": {**CODER, **coder}})).eval()
    for p in made.parameters():
        p.data += 0.02 * torch.randn_like(p)  # zeroed branches would look at nothing
    return made


def pictures(height: int, width: int, count: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(count, 3, height, width) * 2 - 1


@pytest.mark.parametrize("tile", [4, 32, 64])
@torch.no_grad()
def test_tiles_of_convolutions_are_the_whole(tile: int) -> None:
    codec, images = tiny(), pictures(84, 132, 2)
    whole = codec.moments(images)
    torch.testing.assert_close(codec.moments(images, tile=tile), whole, atol=1e-5, rtol=1e-4)
    latents = codec.whiten(whole)
    torch.testing.assert_close(codec.decode(latents, tile=tile), codec.decode(latents), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_margin_is_as_wide_as_the_network_looks_and_hardly_wider() -> None:
    codec = tiny()
    latent = torch.randn(1, 4, 40, 40)
    far = tiling.reach(codec.autoencoder.decode, latent.new_zeros(1, 4, 8, 8), codec.autoencoder)
    changed = latent.clone()
    changed[..., 20, 20] += 100
    moved = (codec.autoencoder.decode(changed) - codec.autoencoder.decode(latent)).abs().amax((0, 1)) > 0
    rows = torch.where(moved.any(1))[0]
    seen = max(20 - int(rows.min()) / 4, int(rows.max()) / 4 - 20)
    assert seen <= far <= seen + 4


@torch.no_grad()
def test_group_norms_differ_between_tiles_and_shared_statistics_help() -> None:
    codec = kl(middle_attention=False)
    latents = torch.randn(1, 3, 48, 48) * torch.linspace(0.2, 2, 48)  # a picture that is not alike everywhere
    whole = codec.decode(latents)
    apart, together = (codec.decode(latents, tile=48, share=share) for share in (False, True))
    errors = [float((part - whole).square().mean()) for part in (apart, together)]
    assert 0 < errors[1] < 0.5 * errors[0]
    assert all(m.state == "free" and m.seen is None for m in codec.modules() if isinstance(m, GroupNorm))
    torch.testing.assert_close(codec.decode(latents), whole)


@torch.no_grad()
def test_held_statistics_of_the_same_input_are_group_norm() -> None:
    layer = GroupNorm(8, 4)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x, other = torch.randn(2, 8, 5, 6), torch.randn(2, 8, 3, 3)
    layer.keep()
    plain = layer(x)
    layer.hold()
    torch.testing.assert_close(layer(x), plain)
    held = layer(torch.cat([x, x * 3], 3))[..., :6]
    torch.testing.assert_close(held, plain)
    assert not torch.allclose(layer(other), nn.functional.group_norm(other, 4, layer.weight, layer.bias))
    layer.release()
    torch.testing.assert_close(layer(other), nn.functional.group_norm(other, 4, layer.weight, layer.bias))


@torch.no_grad()
def test_large_pictures_are_done_in_tiles_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, sizes = tiny(), list[int]()
    inner = codec.autoencoder.decode

    def decode(latent: Tensor) -> Tensor:
        sizes.append(latent.shape[-1])
        return inner(latent)

    monkeypatch.setattr(codec.autoencoder, "decode", decode)
    monkeypatch.setattr(tiling, "LARGE", 128 * 128)
    monkeypatch.setattr(tiling, "SIDE", 64)
    latents = torch.randn(1, 4, 64, 64)
    codec.decode(latents)
    assert max(sizes) < 64
    sizes.clear()
    codec.decode(latents, tile=0)
    assert sizes == [64]
    with pytest.raises(ValueError, match="a tile has at least the autoencoder's factor, 4"):
        codec.decode(latents, tile=3)


def test_a_margin_ends_where_the_canvas_does() -> None:
    assert tiling.grown(Window(0, 4, 4, 4), 2, 6, 20) == Window(0, 2, 6, 8)


@torch.no_grad()
def test_a_tiled_decode_that_overflows_half_precision_is_repeated() -> None:
    codec = tiny().to(torch.float16)
    codec.autoencoder.decoder[1].weight.mul_(3e4)  # finite in half precision; what it gives is not
    latents = torch.randn(1, 4, 32, 32, dtype=torch.float16) * 3
    assert not codec.autoencoder.decode(latents).isfinite().all()
    for tile in (0, 64):
        made = codec.decode(latents, tile=tile)
        assert made.isfinite().all()
        assert float(made.std()) > 0
    assert next(codec.autoencoder.parameters()).dtype == torch.float16
