"""The first stage: any factor, any channels, a penalty with a meaning, a codec that refuses what is not its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.device import finest
from sfumato.training import recipe
from tests.outside import GOLDEN

CODER = {"stem": 1, "width": 8, "blocks": 1, "middle_blocks": 1, "groups": 4}


@given(
    st.sampled_from(["kl", "vq"]),
    st.sampled_from([1, 2, 4, 8, 16, 32]),
    st.integers(0, 3),
    st.integers(1, 9),
    st.sampled_from([1, 3, 4, 6]),
    st.booleans(),
)
@settings(deadline=None, max_examples=40)
@example("kl", 1, 0, 3, 3, False)
@example("vq", 1, 0, 3, 3, False)
@example("kl", 32, 0, 9, 1, True)
@example("vq", 32, 0, 9, 1, True)
def test_any_factor_stem_and_channels(
    kind: str, factor: int, halvings: int, channels: int, image_channels: int, refine: bool
) -> None:
    stem = max(factor >> halvings, 1)
    coder = {
        **CODER,
        "factor": factor,
        "stem": stem,
        "channels": channels,
        "image_channels": image_channels,
        "refine": 4 * refine,
    }
    book = {"codebook": {"size": 8}} if kind == "vq" else {}
    model = FirstStage.model_validate({"kind": kind, "coder": coder, **book}).build()
    images = torch.zeros(1, image_channels, 2 * factor, factor)
    encoded = model.encode(images)
    assert (encoded.codes is None) == (kind == "kl")
    assert encoded.latent.shape == (1, channels, 2, 1)
    assert model.decode(encoded.latent).shape == images.shape


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("kl-f4", 55_312_063),
        ("kl-f8", 83_653_863),
        ("kl-f16", 69_610_963),
        ("kl-f32", 103_880_131),
        ("vq-f4", 55_322_782),
        ("vq-f4-noattn", 53_219_486),
        ("vq-f8", 67_717_295),
        ("vq-f8-n256", 67_652_783),
        ("vq-f16", 69_593_371),
    ],
)
def test_published_first_stages_have_their_published_size(name: str, parameters: int) -> None:
    read = recipe.read(name)
    assert isinstance(read, recipe.AutoencoderRecipe)
    with torch.device("meta"):
        model = read.autoencoder.build()
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "batch", "steps"),
    [
        ("kl-f4", 10, 50_001),
        ("kl-f8", 4, 50_001),
        ("kl-f16", 6, 50_001),
        ("kl-f32", 6, 50_001),
        ("vq-f4", 8, 0),
        ("vq-f4-noattn", 8, 11),
        ("vq-f8", 10, 1),
        ("vq-f8-n256", 10, 250_001),
        ("vq-f16", 14, 250_001),
    ],
)
def test_published_first_stages_learn_as_they_did(name: str, batch: int, steps: int) -> None:
    """Two batches a step, 4.5e-6 a picture of them, without warm-up or clipping, the critic from the published step on and
    with the published bound, no care for a codebook."""
    read = recipe.read(name)
    assert isinstance(read, recipe.AutoencoderRecipe)
    t, critic = read.training, read.objective.critic
    assert critic is not None
    assert (t.batch, t.accumulate) == (2 * batch, 2)
    assert t.rate == pytest.approx(4.5e-6 * t.batch)
    assert critic.rate == t.rate
    assert (t.warmup, t.clip) == (0.0, None)
    assert critic.start == steps * t.batch < t.images
    book = getattr(read.autoencoder, "codebook", None)
    assert book is None or (book.decay, book.kmeans, book.patience) == (None, False, None)
    summed = (
        3 * read.data.size**2 if book is None else 1
    )  # values of which the published loss is a sum, where ours is a mean
    assert critic.largest == pytest.approx(1e4 / summed, rel=1e-3)


@pytest.mark.parametrize("channels", [16, 32])
def test_a_published_first_stage_with_more_channels_differs_in_nothing_else(channels: int) -> None:
    assert recipe.read(f"kl-f8-c{channels}") == recipe.read("kl-f8", [f"autoencoder.coder.channels={channels}"])


def test_the_penalty_is_the_kl_divergence_over_image_values(codec: Codec) -> None:
    images = torch.zeros(2, 3, 16, 16)
    encoded = codec.autoencoder.encode(images)
    assert encoded.moments is not None
    mean, log_variance = (m.double() for m in encoded.moments.chunk(2, 1))
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    exact = torch.distributions.kl_divergence(
        normal, torch.distributions.Normal(torch.zeros(1).double(), torch.ones(1).double())
    )
    torch.testing.assert_close(encoded.penalty.double(), exact.flatten(1).sum(1) / (3 * 16 * 16), rtol=1e-5, atol=0)


def test_the_posterior_is_drawn_with_the_given_noise(codec: Codec) -> None:
    torch.manual_seed(0)
    images, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 4, 2, 2)
    coder = codec.autoencoder
    mode, drawn, again = (coder.encode(images, n).latent for n in (None, noise, noise))
    assert torch.equal(drawn, again)
    moments = codec.moments(images)
    torch.testing.assert_close(drawn, mode + (0.5 * moments.chunk(2, 1)[1]).exp() * noise)


def test_whitened_latents_have_mean_0_and_deviation_1(codec: Codec) -> None:
    torch.manual_seed(0)
    moments = torch.cat([5 * torch.randn(400, 4, 2, 2) + 3, torch.full((400, 4, 2, 2), 1.0)], 1)
    codec.measure(codec.tally(rows) for rows in moments.split(100))
    latents = codec.whiten(moments, torch.randn(400, 4, 2, 2))
    assert latents.mean((0, 2, 3)).abs().max() < 0.1
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.06, rtol=0)
    raw = latents * codec.scale[:, None, None] + codec.shift[:, None, None]
    torch.testing.assert_close(codec.decode(latents[:2]), codec.autoencoder.decode(raw[:2]).clamp(-1, 1))


def test_a_saved_codec_is_the_same_bit_for_bit(codec: Codec, tmp_path: Path) -> None:
    codec.shift.fill_(0.3)
    codec.save(tmp_path)
    again = Codec.load(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(codec.encode(images), again.encode(images))
    assert again.fingerprint() == codec.fingerprint()
    before = codec.fingerprint()
    codec.scale[0] = 2
    assert codec.fingerprint() != before


def test_a_changed_folder_is_noticed(codec: Codec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    fields = yaml.safe_load((tmp_path / "model.yaml").read_text())
    fields["autoencoder"]["coder"]["width"] = 32
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(ValueError, match=r"do(es)? not fit"):
        Codec.load(tmp_path)


@pytest.mark.parametrize(("shape", "words"), [((1, 3, 20, 16), "try 16x16"), ((1, 1, 16, 16), "takes 3-channel")])
def test_pictures_that_do_not_fit_say_what_would(codec: Codec, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        codec.encode(torch.zeros(shape))


def test_a_decode_that_overflows_is_repeated_in_float32(codec: Codec) -> None:
    half = codec.to(torch.bfloat16)
    calls = []
    inner = half.autoencoder.decode

    def decode(latent: torch.Tensor) -> torch.Tensor:
        calls.append(latent.dtype)
        out = inner(latent)
        return out * float("nan") if latent.dtype == torch.bfloat16 else out

    half.autoencoder.decode = decode  # type: ignore[method-assign]
    assert half.decode(torch.zeros(1, 4, 2, 2)).isfinite().all()
    assert calls == [torch.bfloat16, torch.float32]


def test_a_decode_that_overflows_under_autocast_is_repeated_without_it(codec: Codec) -> None:
    calls: list[bool] = []
    inner = codec.autoencoder.decode

    def decode(latent: torch.Tensor) -> torch.Tensor:
        calls.append(torch.is_autocast_enabled("cpu"))
        return inner(latent) * (float("nan") if calls[-1] else 1.0)

    codec.autoencoder.decode = decode  # type: ignore[method-assign]
    latents = torch.ones(1, 4, 2, 2)
    expected = codec.decode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.decode(latents), expected)
    assert calls == [False, True, False]


def test_large_pictures_go_few_at_a_time_where_nothing_is_learned(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    for side in ("encoder", "decoder"):
        codec.autoencoder.get_submodule(side).register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    torch.manual_seed(0)
    for parameter in codec.parameters():  # fresh residual branches add nothing
        parameter.data += 0.05 * torch.randn_like(parameter)
    images = torch.rand(5, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        moments = codec.moments(images)
        pictures = codec.decode(codec.whiten(moments))
    seen.clear()
    monkeypatch.setattr("sfumato.autoencoder.codec.AT_ONCE", 2 * 64 * 64 + 100)
    with torch.no_grad():
        torch.testing.assert_close(codec.moments(images), moments, atol=1e-4, rtol=1e-4)
        assert seen == [2, 2, 1]
        torch.testing.assert_close(codec.decode(codec.whiten(moments)), pictures, atol=1e-4, rtol=0)
    assert max(seen[3:]) <= 2  # lanes split them further
    assert sum(seen[3:]) == 5
    seen.clear()
    codec.moments(images)  # its weights learn from them
    assert seen == [5]
    codec.requires_grad_(False).moments(images)
    assert seen == [5, 2, 2, 1]


def test_a_device_without_doubles_is_asked_for_none(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finest(torch.device("mps")) == torch.float32
    assert finest(torch.device("cpu")) == torch.float64
    moments = torch.randn(3, 8, 4, 4)
    exact = codec.tally(moments)
    monkeypatch.setattr("sfumato.device.finest", lambda device: torch.float32)
    found = codec.tally(moments)
    assert found.dtype == torch.float64  # sums over a data set are told on the host
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found, exact)


def test_pixels_are_their_own_latents_at_factor_1() -> None:
    codec = Codec(FirstStage.model_validate({"kind": "identity"}))
    images = torch.rand(1, 3, 5, 7)
    assert torch.equal(codec.decode(codec.encode(images)), images)


def test_the_decoder_starts_without_a_grid_of_its_stem(codec: Codec) -> None:
    """Equal latents decode to equal pixels away from the border; a plain shuffle would draw its blocks."""
    picture = codec.autoencoder.decode(torch.ones(1, 4, 12, 12)).detach()[..., 40:56, 40:56]
    assert float(picture.std((-1, -2)).max()) < 1e-4


def published(config: dict[str, Any], side: str) -> Iterator[str]:
    """Where the published names of a side's layers begin, in the order of ours."""
    levels, blocks = list(range(len(config["ch_mult"]))), config["num_res_blocks"]
    middle = [f"{side}.mid.{name}" for name in ("block_1", "attn_1", "block_2")]
    yield f"{side}.conv_in"
    if side == "decoder":
        yield from middle
        levels, blocks = levels[::-1], blocks + 1
    for level in levels:
        at = f"{side}.{'down' if side == 'encoder' else 'up'}.{level}"
        for block in range(blocks):
            yield f"{at}.block.{block}"
            if config["resolution"] // 2**level in config["attn_resolutions"]:
                yield f"{at}.attn.{block}"
        if level != levels[-1]:
            yield f"{at}.{'downsample' if side == 'encoder' else 'upsample'}"
    if side == "encoder":
        yield from middle
    yield from (f"{side}.norm_out", f"{side}.conv_out")


NAMES = {"skip": "nin_shortcut", "attention.to_q": "q", "attention.to_k": "k", "attention.to_v": "v",
         "attention.to_out": "proj_out"}  # fmt: skip


def taken(model: nn.Module, held: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Give a first stage the published weights, every one of them."""
    left = {n.removeprefix("state_dict."): t for n, t in held.items() if n.startswith("state_dict.")}
    for side in ("encoder", "decoder"):
        layers = [m for layer in getattr(model, side) for m in (layer if isinstance(layer, nn.Sequential) else [layer])]
        layers = [layer for layer in layers if list(layer.parameters())]
        for layer, prefix in zip(layers, published(config, side), strict=True):
            for name, weight in layer.named_parameters():
                place, _, kind = name.rpartition(".")
                found = left.pop(".".join(part for part in (prefix, NAMES.get(place, place), kind) if part))
                weight.data.copy_(found.reshape(weight.shape))
    for name, layer in (("quant_conv", model.into), ("post_quant_conv", model.out)):
        for kind in ("weight", "bias"):
            getattr(layer, kind).data.copy_(left.pop(f"{name}.{kind}"))
    if "quantize.embedding.weight" in left:
        model.codebook.embedding.weight.data.copy_(left.pop("quantize.embedding.weight"))
    assert not left


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the tensors of the published implementation are not here")
@pytest.mark.parametrize("kind", ["kl", "vq"])
@torch.no_grad()
def test_published_weights_give_the_published_latents_and_pictures(kind: str) -> None:
    with safe_open(GOLDEN / f"ae_{kind}.safetensors", "pt") as opened:
        whole = json.loads(opened.metadata()["case"])["config"]
        held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    config = whole["ddconfig"]
    coder = {
        "factor": 2 ** (len(config["ch_mult"]) - 1),
        "channels": config["z_channels"],
        "width": config["ch"],
        "multipliers": config["ch_mult"],
        "attention": [config["resolution"] // side for side in config["attn_resolutions"]],
    }
    book = {"codebook": {"size": whole["n_embed"], "decay": None, "legacy": True}} if kind == "vq" else {}
    model = FirstStage.model_validate({"kind": kind, "coder": coder, **book}).build().eval()
    taken(model, held, config)
    images = held["inputs.x"]
    encoded = model.encode(images)
    near = {"atol": 1e-5, "rtol": 0}
    if kind == "kl":
        assert encoded.moments is not None
        mean, log_variance = encoded.moments.chunk(2, 1)
        torch.testing.assert_close(mean, held["outputs.mean"], **near)
        torch.testing.assert_close(log_variance, held["outputs.logvar"], **near)
        torch.testing.assert_close(encoded.penalty * images[0].numel(), held["outputs.kl"], rtol=1e-5, atol=0)
        torch.testing.assert_close(model.decode(mean), held["outputs.dec_mode"], **near)
    else:
        torch.testing.assert_close(encoded.moments, held["outputs.z"], **near)
        torch.testing.assert_close(model.decode(encoded.moments), held["outputs.dec"], **near)


def test_latents_are_the_same_under_a_training_s_autocast(codec: Codec) -> None:
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        alone = codec.encode(pictures)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(codec.encode(pictures), alone)
