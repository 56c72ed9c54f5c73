"""Numbers against cases whose answer is known."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato import image
from sfumato.autoencoder import tiling
from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.vq import VQAutoencoder
from sfumato.data.emoji import EmojiData
from sfumato.evaluation import captions, doors, latents, reconstruction, run
from sfumato.evaluation.run import Looking
from sfumato.evaluation.source import Chosen, PartPictures, Rebuilt, Source
from sfumato.features.network import Description, FeatureNetwork
from sfumato.model import LatentDiffusion
from sfumato.training import validation


def test_psnr_of_a_known_error() -> None:
    a = torch.zeros(2, 3, 12, 12)
    b = a + torch.tensor([2.0, 10.0]).reshape(2, 1, 1, 1) / 127.5
    torch.testing.assert_close(
        reconstruction.psnr(a, b), torch.tensor([10 * math.log10(255**2 / e**2) for e in (2, 10)])
    )
    assert float(reconstruction.psnr(a, a).min()) == 100
    assert reconstruction.ssim(a + 0.5, a + 0.5).tolist() == pytest.approx([1.0, 1.0])


def test_the_identity_reconstructs_without_loss() -> None:
    codec = Codec(FirstStage.model_validate({"kind": "identity"}))
    found = reconstruction.reconstruction(codec, EmojiData(size=16).open("held_out"))
    assert found["psnr"] == 100
    assert found["ssim"] == pytest.approx(1.0)
    assert found["count"] == 186


def test_ms_ssim_has_the_scales_that_fit() -> None:
    assert [reconstruction.scales(n, n + 5) for n in (10, 11, 22, 44, 98, 99, 175, 176, 512)] == [
        0,
        1,
        2,
        3,
        3,
        4,
        4,
        5,
        5,
    ]
    x = torch.rand(2, 3, 48, 48) * 2 - 1
    for side in (11, 22, 44, 48):
        assert reconstruction.ms_ssim(x[..., :side, :side], x[..., :side, :side]).tolist() == pytest.approx([1.0, 1.0])
    noisy = reconstruction.ms_ssim(x, (x + torch.tensor([0.05, 0.5]).reshape(2, 1, 1, 1)).clamp(-1, 1))
    assert 0 < noisy[1] < noisy[0] < 1
    assert reconstruction.ms_ssim(x[..., :8, :8], x[..., :8, :8]).isnan().all()


class Dims(Rebuilt):
    """Darkens picture k by k values."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def rebuilt(self, originals: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [x - 2 * k / 255 for k, x in enumerate(originals)]


def test_the_worst_picture_is_named_and_a_perceptual_distance_has_its_name() -> None:
    part = EmojiData(size=16).open("held_out")
    source = PartPictures(part, "emoji, held out")
    seen = reconstruction.Perceptual("blue (my own)", lambda a, b: (a - b)[:, 2].square().mean((1, 2)), {"name": "x"})
    rows = reconstruction.measured(Dims(Chosen(source, 20)), seen)
    assert [row["psnr"] for row in rows] == sorted((row["psnr"] for row in rows), reverse=True)
    assert reconstruction.worst(rows)[0]["index"] == 19
    assert reconstruction.worst(rows, "blue (my own)")[0]["index"] == 19
    assert rows[3]["name"] == source.name(Chosen(source, 20).indices[3])
    found = reconstruction.summary(rows)
    assert found["psnr"] == pytest.approx(sum(row["psnr"] for row in rows) / 20)
    assert {"psnr", "psnr_error", "ssim", "ms_ssim", "blue (my own)", "count"} == set(found)


def test_latents_are_told_channel_by_channel(codec: Codec) -> None:
    source = Chosen(PartPictures(EmojiData(size=16).open("held_out"), "emoji"), 40)
    found = latents.statistics(codec, source)
    assert "codes" not in found
    encoded = codec.autoencoder.encode(torch.stack(source.pictures(range(40))))
    raw = encoded.latent.detach()
    assert encoded.moments is not None
    widths = (0.5 * encoded.moments.detach()[:, 4:].clamp(-30, 20)).exp()  # the logarithms of variances
    for k, row in enumerate(found["channels"]):
        assert row["mean"] == pytest.approx(float(raw[:, k].mean()), abs=1e-5)
        assert row["std"] == pytest.approx(float(raw[:, k].std(unbiased=False)), rel=1e-4)
        assert (row["min"], row["max"]) == (
            pytest.approx(float(raw[:, k].min())),
            pytest.approx(float(raw[:, k].max())),
        )
        assert row["posterior_std"] == pytest.approx(float(widths[:, k].mean()), rel=1e-3)


def test_large_pictures_are_encoded_in_tiles_and_their_codes_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    coder = {"factor": 4, "width": 8, "blocks": 1, "middle_blocks": 1, "middle_attention": False, "groups": 4}
    codec = Codec(FirstStage.model_validate({"kind": "vq", "coder": coder, "codebook": {"size": 16}})).eval()
    assert isinstance(codec.autoencoder, VQAutoencoder)
    codec.autoencoder.codebook.embedding.weight.data.normal_()
    source = Chosen(PartPictures(EmojiData(size=64).open("held_out"), "emoji"), 3)
    with torch.no_grad():
        codes = codec.autoencoder.codes(torch.stack(source.pictures(range(3))))
    assert latents.statistics(codec, source)["codes"] == latents.used(torch.bincount(codes.flatten()), 16)
    sides: list[int] = []
    codec.autoencoder.encoder[0].register_forward_pre_hook(lambda _, given: sides.append(given[0].shape[-1]))
    monkeypatch.setattr(tiling, "LARGE", 48 * 48)
    monkeypatch.setattr(tiling, "SIDE", 16)
    found = latents.statistics(codec, source)
    assert max(sides) < 64
    assert found["codes"]["drawn"] == codes.numel()
    assert {"mean", "std", "min", "max", "posterior_std"} == set(found["channels"][0])


def test_codebook_use_of_known_codes() -> None:
    counts = latents._counted(latents._counted(None, torch.tensor([0, 0, 3])), torch.tensor([[1, 1], [3, 3]]))
    assert counts.tolist() == [2, 2, 0, 3]
    even = latents.used(torch.tensor([5, 5, 0, 5, 5]), 8)
    assert (even["used"], even["size"], even["share"]) == (4, 8, 0.5)
    assert even["perplexity"] == pytest.approx(4.0)


def test_shuffled_words_come_from_half_the_part_away(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = EmojiData(size=32).open("held_out")
    seen: list[list[str]] = []

    def loss(_: object, latents: torch.Tensor, fields: dict[str, list[str]], rows: list[int]) -> list[float]:
        seen.append(fields["caption"])
        return [0.0] * len(rows)

    monkeypatch.setattr(validation, "_loss", loss)
    validation.denoising(LatentDiffusion.load(model_folder), part)
    own, turned = [c for told in seen[::2] for c in told], [c for told in seen[1::2] for c in told]
    assert own == [part.fields(k)["caption"][0] for k in range(len(part))]
    assert turned == own[len(part) // 2 :] + own[: len(part) // 2]
    bases = [row.base for row in part.rows]
    assert all(bases[k] != bases[(k + len(part) // 2) % len(part)] for k in range(len(part)))


def test_an_own_picture_is_nearest_and_a_strangers_is_not() -> None:
    matcher = captions.Matcher(EmojiData(size=16))
    part = EmojiData(size=16).open("combinations")
    codec = Codec(FirstStage.model_validate({"kind": "identity"}))
    table = {part.fields(k)["caption"][0]: part.image(k) for k in range(len(part))}

    def right(texts: list[str]) -> torch.Tensor:
        return torch.stack([table[t] for t in texts]).float() / 127.5 - 1

    found = matcher.match(part, right, codec, 50)
    assert found["count"] == 50
    assert found["top1"] == found["ceiling"]["top1"] == 1.0
    assert found["top1_error"] == 0.0
    assert found["chance"]["top10"] == pytest.approx(10 / 3641)
    assert found["baseline"]["top1"] == 0.0
    assert found["baseline"]["top10"] > 0.2  # the same role in another tone looks alike
    wrong = matcher.match(part, lambda texts: right(texts).roll(7, 0), codec, 50)
    assert wrong["top1"] == 0.0
    gray = matcher.match(part, lambda texts: torch.zeros(len(texts), 3, 16, 16), codec, 50)
    assert gray["top10"] < 0.1


def test_the_same_captions_are_chosen_every_time() -> None:
    part = EmojiData(size=8).open("train")
    assert captions.chosen(part, 512) == captions.chosen(part, 512)
    assert len(set(captions.chosen(part, 512))) == 512
    assert len(captions.chosen(part, 10**6)) == len(part)


def test_standard_errors_are_those_of_a_share() -> None:
    row = captions.shares(torch.tensor([0, 0, 5, 50]))
    assert (row["top1"], row["top10"]) == (0.5, 0.75)
    assert row["top1_error"] == pytest.approx(0.25)


def test_rare_words_make_captions_near() -> None:
    words = captions.Words(["woman firefighter", "man cook", "man nurse", "cat face"])
    scores = words.nearness("man firefighter")
    assert max(range(4), key=scores.__getitem__) == 0
    assert scores[3] == 0


def test_nearness_is_the_same_in_every_process() -> None:
    # words of many weights: their sum in floating point depends on the order, which in a set depends on the hash seed
    code = (
        "from sfumato.evaluation.captions import Words as W; c = [' '.join(f'w{k}' for k in range(n)) for n in range(1, 30)];"
        "print([W(c).nearness(text) for text in c])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": str(k)}, capture_output=True, check=True
        ).stdout
        for k in range(2)
    }
    assert len(told) == 1


def test_settings_that_cannot_be_are_told_before_anything_is_measured(model_folder: Path) -> None:
    told: list[str] = []
    with pytest.raises(ValueError, match="unknown sampler 'nope'"):
        run.evaluate_model(LatentDiffusion.load(model_folder), EmojiData(size=32), sampler="nope", tell=told.append)
    assert not told


def test_a_model_is_measured_with_its_protocol(model_folder: Path) -> None:
    model = LatentDiffusion.load(model_folder)
    found = run.evaluate_model(model, EmojiData(size=32), captions=4, steps=2)
    assert set(found["caption_match"]) == {"train", "held_out", "held_out_bases"}
    row = found["caption_match"]["train"]
    assert row["top10"] == sum(rank < captions.NEAR for rank in found["caption_ranks"]["train"]) / 4
    assert found["denoising"]["loss"] > 0
    assert found["protocol"]["samples"]["steps"] == 2
    assert found["subject"]["autoencoder"] == model.codec.fingerprint()
    data = EmojiData(size=32)
    assert found["protocol"]["parts"] == {part: data.open(part).fingerprint for part in data.parts}
    again = run.evaluate_model(model, EmojiData(size=32), captions=4, steps=2)
    assert again == found
    told = doors.read_data(model_folder)
    assert told is not None
    assert EmojiData.model_validate({k: v for k, v in told.items() if k != "kind"}) == EmojiData(size=32)


def test_one_of_each_family_is_the_balance_that_training_shows() -> None:
    data = EmojiData(size=8)
    every, shown = run.trained(data, False), run.trained(data, True)
    families = data.open("train").families
    assert len(every) == len(data.open("train")) > len(shown) == len(families)
    names = {shown.name(k) for k in range(len(shown))}
    assert all(len(names & {every.name(k) for k in members}) == 1 for members in families)
    assert shown.told()["name"] == "emoji, train, one of each family"
    assert doors.real("emoji", 8, each=True).told() == shown.told()


def test_samples_and_their_reference_are_of_one_of_each_family_where_asked(model_folder: Path) -> None:
    look = Looking(FeatureNetwork(nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), Description(name="pixels", size=8)))
    model, data = LatentDiffusion.load(model_folder), EmojiData(size=32)
    found = run.evaluate_model(model, data, captions=2, steps=1, images=4, look=look, each=True)
    shown = run.trained(data, True)
    assert found["protocol"]["reference"] == shown.told()
    assert found["protocol"]["conditions_of"] == shown.part.fingerprint


def plain_ssim(a: torch.Tensor, b: torch.Tensor, *, contrast: bool = False) -> float:
    """The published formula, window by window, of one channel (H, W) in [0, 1], or its factor of contrast and structure."""
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    weights = torch.outer(line, line) / line.sum() ** 2
    found = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            x, y = (p[top : top + 11, left : left + 11].double() for p in (a, b))
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy, both = ((weights * u * v).sum() - m for u, v, m in ((x, x, mx**2), (y, y, my**2), (x, y, mx * my)))
            brightness = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
            found.append((2 * both + 9e-4) / (vx + vy + 9e-4) * (1 if contrast else brightness))
    return float(torch.stack(found).mean())


def test_ssim_is_the_published_one_in_bands_of_any_height(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 24, 17, generator=rng) * 2 - 1
    b = (a + 0.6 * torch.rand(2, 3, 24, 17, generator=rng)).clamp(-1, 1)
    grays = [(image.to_uint8(p).double() / 255) for p in (a, b)]
    expected = [sum(plain_ssim(grays[0][k, c], grays[1][k, c]) for c in range(3)) / 3 for k in range(2)]
    assert reconstruction.ssim(a, b).tolist() == pytest.approx(expected, abs=1e-5)
    seen: list[int] = []
    plain = reconstruction.F.conv2d

    def noted(x: torch.Tensor, line: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[2])
        return plain(x, line)

    monkeypatch.setattr(reconstruction.F, "conv2d", noted)
    monkeypatch.setattr(reconstruction, "together", lambda pixels: 8)  # of two pictures
    assert reconstruction.ssim(a, b).tolist() == pytest.approx(expected, abs=1e-5)
    assert seen[::2] == [14, 14, 14, 12]  # four rows of windows a time
    assert reconstruction.ssim(a[..., :10], b[..., :10]).isnan().all()


def test_large_pictures_are_compared_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(reconstruction, "together", lambda pixels: 2)
    monkeypatch.setattr(reconstruction, "ssim", lambda a, b: seen.append(len(a)) or torch.zeros(len(a)))
    several = list(torch.zeros(5, 3, 16, 16))
    assert len(reconstruction._columns(several, several, None)["psnr"]) == 5
    assert seen == [2, 2, 1]


def test_ms_ssim_is_the_published_product() -> None:
    rng = torch.Generator().manual_seed(1)
    a = torch.rand(1, 1, 44, 44, generator=rng) * 2 - 1
    b = (a + 1.6 * torch.rand(1, 1, 44, 44, generator=rng)).clamp(-1, 1)
    x, y = (image.to_uint8(p).double()[0, 0] / 255 for p in (a, b))
    weights = [w * sum(reconstruction.WEIGHTS) / sum(reconstruction.WEIGHTS[:3]) for w in reconstruction.WEIGHTS[:3]]
    expected = 1.0
    for number, weight in enumerate(weights):
        whole, contrast = plain_ssim(x, y), plain_ssim(x, y, contrast=True)
        expected *= max(whole if number == 2 else contrast, 0.0) ** weight
        x, y = (torch.nn.functional.avg_pool2d(p[None, None], 2)[0, 0] for p in (x, y))
    assert float(reconstruction.ms_ssim(a, b)) == pytest.approx(expected, abs=1e-5)
    assert abs(expected - float(reconstruction.ssim(a, b))) > 0.02
