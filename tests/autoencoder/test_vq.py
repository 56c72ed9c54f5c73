"""The VQ first stage: the published arithmetic, a codebook that stays in use, weights of the published sizes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codebook import Codebook, CodebookConfig, nearest
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.vq import VQAutoencoder
from tests.outside import GOLDEN

CODER = {"factor": 4, "channels": 3, "width": 8, "blocks": 1, "middle_blocks": 1, "groups": 4}


def vq(**codebook: object) -> VQAutoencoder:
    torch.manual_seed(0)
    fields = {"kind": "vq", "coder": CODER, "codebook": {"size": 16, **codebook}}
    model = FirstStage.model_validate(fields).build()
    assert isinstance(model, VQAutoencoder)
    model.codebook.embedding.weight.data.normal_()
    return model


def book(size: int = 8, channels: int = 2, **fields: object) -> Codebook:
    torch.manual_seed(0)
    made = Codebook(CodebookConfig.model_validate({"size": size, **fields}), channels)
    made.embedding.weight.data.normal_()
    return made


def test_the_nearest_vector_is_found_and_kept_by_the_decoder() -> None:
    model, images = vq(), torch.rand(2, 3, 16, 24) * 2 - 1
    encoded = model.encode(images)
    assert encoded.codes is not None
    assert encoded.moments is not None
    assert encoded.codes.shape == (2, 4, 6)
    vectors = model.codebook.embedding.weight
    rows = encoded.moments.movedim(1, -1).reshape(-1, 3)
    assert torch.equal(torch.cdist(rows, vectors).argmin(1).reshape(2, 4, 6), encoded.codes)
    torch.testing.assert_close(encoded.latent, F.embedding(encoded.codes, vectors).movedim(-1, 1))
    assert torch.equal(model.codebook(encoded.latent).codes, encoded.codes)
    same = [model.decode(encoded.latent), model.decode(encoded.moments), model.pictures(encoded.codes)]
    for picture in same:
        torch.testing.assert_close(picture, model.rebuild(images)[1])
    assert torch.equal(model.codes(images), encoded.codes)
    with pytest.raises(ValueError, match="0 to 15; got 0 to 16"):
        model.pictures(torch.arange(17).reshape(1, 1, 17))


def test_a_large_search_is_split_without_changing_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vectors = torch.randn(50, 3), torch.randn(20, 3)
    whole = nearest(rows, vectors)
    monkeypatch.setattr("sfumato.autoencoder.codebook.AT_ONCE", 100)
    assert torch.equal(nearest(rows, vectors), whole)


@pytest.mark.parametrize(
    ("fields", "codes", "commitment"),
    [
        ({"decay": None}, 1.0, 0.25),
        ({"decay": None, "legacy": True}, 0.25, 1.0),
        ({}, 0.0, 0.25),
        ({"beta": 0.5}, 0.0, 0.5),
    ],
)
def test_beta_weighs_the_commitment_and_the_published_mistake_is_a_switch(
    fields: dict[str, object], codes: float, commitment: float
) -> None:
    made = book(**fields)
    latent = torch.randn(2, 2, 3, 3, requires_grad=True)
    found = made(latent)
    chosen = F.embedding(found.codes, made.embedding.weight).movedim(-1, 1)
    error = (latent - chosen).square().flatten(1).mean(1)
    torch.testing.assert_close(found.penalty, (codes + commitment) * error)
    (into,) = torch.autograd.grad(found.penalty.sum(), latent, retain_graph=True)
    torch.testing.assert_close(into, commitment * 2 * (latent - chosen) / 18)
    if codes:
        (into,) = torch.autograd.grad(found.penalty.sum(), made.embedding.weight)
        pulled = 2 * (chosen - latent).movedim(1, -1).reshape(-1, 2) / 18 * codes
        torch.testing.assert_close(into, torch.zeros_like(into).index_add_(0, found.codes.flatten(), pulled.detach()))


def test_gradients_pass_straight_through() -> None:
    latent, made = torch.randn(1, 2, 3, 3, requires_grad=True), book()
    weights = torch.randn(1, 2, 3, 3)
    (got,) = torch.autograd.grad((made(latent).latent * weights).sum(), latent)
    torch.testing.assert_close(got, weights)


def test_running_averages_are_the_means_of_what_chose_a_code() -> None:
    made, latent = book(decay=0.5), torch.randn(4, 2, 5, 5)
    codes = made(latent).codes
    halves = [made.tally(latent[k::2], codes[k::2]) for k in range(2)]
    both = {name: (halves[0][name] + halves[1][name]) / 2 for name in ("hits", "sums")}
    whole = made.tally(latent, codes)
    for name, value in whole.items():
        torch.testing.assert_close(both[name], value)
    before = made.embedding.weight.detach().clone()
    told = made.settle(**whole)
    rows, flat = latent.movedim(1, -1).reshape(-1, 2), codes.flatten()
    for code in range(8):
        of_code = rows[flat == code]
        expected = of_code.mean(0) if len(of_code) else before[code]
        torch.testing.assert_close(made.embedding.weight[code].detach(), expected)
    p = torch.bincount(flat, minlength=8) / len(flat)
    torch.testing.assert_close(told["perplexity"], torch.distributions.Categorical(p).entropy().exp())
    torch.testing.assert_close(told["usage"], (p > 0).float().mean())


def test_codes_that_nobody_chooses_move_to_where_latents_are() -> None:
    made = book(size=64, patience=3)
    made.embedding.weight.data[1:] = 1e3  # a collapsed codebook
    torch.manual_seed(1)
    for step in range(12):
        latent = torch.randn(8, 2, 8, 8)
        told = made.settle(**made.tally(latent, made(latent).codes))
        if step == 0:
            assert float(told["usage"]) <= 2 / 64
        rows = latent.movedim(1, -1).reshape(-1, 2)
        made.revive(rows, torch.randperm(len(rows)))
    assert float(told["usage"]) > 0.9
    assert made.embedding.weight.abs().max() < 10
    still = book(size=4, patience=None)
    still.idle += 1e6
    assert not still.unused().any()


def test_k_means_finds_clusters_and_copes_with_few_latents() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    rows = (centres[:, None] + 0.1 * torch.randn(4, 50, 2)).reshape(-1, 2)
    made = book(size=4)
    made.begin(rows, torch.tensor([0, 50, 100, 150, *range(1, 50)]), images=10)
    torch.testing.assert_close(made.embedding.weight.detach(), centres, atol=0.1, rtol=0)
    torch.testing.assert_close(made.hits, torch.full((4,), 5.0))
    few = book(size=8)
    few.begin(rows[:3], torch.randperm(3), images=1)
    assert few.embedding.weight.isfinite().all()


def test_a_denoiser_sees_latents_before_they_are_quantised(tmp_path: Path) -> None:
    codec = Codec(FirstStage.model_validate({"kind": "vq", "coder": CODER, "codebook": {"size": 16}}))
    codec.autoencoder.load_state_dict(vq().state_dict())
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    moments = codec.moments(images)
    codec.measure([codec.tally(moments)])
    latents = codec.whiten(moments, torch.randn_like(moments))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.decode(latents), codec.autoencoder.rebuild(images)[1].clamp(-1, 1))
    codec.save(tmp_path)
    assert torch.equal(Codec.load(tmp_path).decode(latents), codec.decode(latents))


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the tensors of the published implementation are not here")
def test_the_published_quantiser_is_met() -> None:
    with safe_open(GOLDEN / "ae_vq.safetensors", "pt") as opened:
        config = json.loads(opened.metadata()["case"])["config"]
        held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    made = Codebook(
        CodebookConfig(size=config["n_embed"], decay=None, legacy=True),
        held["state_dict.quantize.embedding.weight"].shape[1],
    )
    made.embedding.weight.data.copy_(held["state_dict.quantize.embedding.weight"])
    found = made(held["outputs.z"])
    assert torch.equal(found.codes.flatten(), held["outputs.idx"])
    torch.testing.assert_close(found.latent, held["outputs.zq"], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.penalty.mean(), held["outputs.quant_loss"], atol=1e-6, rtol=1e-5)
