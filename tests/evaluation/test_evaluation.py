"""Numbers against cases whose answer is known."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.data.emoji import EmojiData
from sfumato.evaluation import captions, reconstruction, run
from sfumato.model import LatentDiffusion


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
    assert found["denoising"]["loss"] > 0
    assert found["protocol"]["samples"]["steps"] == 2
    assert found["protocol"]["autoencoder"] == model.codec.fingerprint()
    again = run.evaluate_model(model, EmojiData(size=32), captions=4, steps=2)
    assert again == found
    assert run.read_data(model_folder) == {"kind": "emoji", "size": 32, "font": None}
