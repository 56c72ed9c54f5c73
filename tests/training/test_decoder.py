"""A decoder that goes on learning: what stays stays to the bit, what it refuses, and latents that are smoothed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sfumato import cli
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.identity import IdentityConfig
from sfumato.evaluation import doors
from sfumato.model import LatentDiffusion
from sfumato.training import recipe, run
from sfumato.training.decoder import Decoding, begun, learning
from tests.conftest import SHORT, adversarial_recipe, autoencoder_recipe
from tests.training.test_finetuning import alike

CPU = torch.device("cpu")


def decoding(start: Path | str, objective: dict[str, Any] | None = None, **training: Any) -> recipe.DecoderRecipe:
    read = recipe.parse(
        {
            "stage": "decoder", "start": str(start), "data": {"kind": "emoji", "size": 32},
            "objective": {"smooth": 0.75, **(objective or {})}, "training": {**SHORT, "flip": 0.5, **training},
        }
    )  # fmt: skip
    assert isinstance(read, recipe.DecoderRecipe)
    return read


def stays(made: Codec, start: Codec) -> None:
    """All but the decoder is as it was, and that is not."""
    before, now = start.state_dict(), made.state_dict()
    parts = ("autoencoder.decoder.", "autoencoder.out.")
    changed = {name for name in before if not torch.equal(before[name], now[name])}
    assert changed
    assert all(name.startswith(parts) for name in changed)
    assert before.keys() == now.keys()


def test_a_first_stage_keeps_its_latents(first_stage: Path, tmp_path: Path) -> None:
    start = Codec.load(first_stage)
    made = Codec.load(run.train(decoding(first_stage), tmp_path, device="cpu", quiet=True))
    stays(made, start)
    assert made.config == start.config
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(made.encode(images), start.encode(images))
    assert made.fingerprint() != start.fingerprint()


def test_a_model_keeps_its_denoiser_and_its_card(model_folder: Path, tmp_path: Path) -> None:
    start = LatentDiffusion.load(model_folder)
    folder = run.train(decoding(model_folder.parent), tmp_path, device="cpu", quiet=True)  # a run's folder will do
    made = LatentDiffusion.load(folder)
    assert alike(made.denoiser, start.denoiser)
    assert alike(made.conditions, start.conditions)
    assert (made.config, made.texts, made.size) == (start.config, start.texts, start.size)
    stays(made.codec, start.codec)
    before = (model_folder / "README.md").read_text(encoding="utf-8")
    told = (folder / "README.md").read_text(encoding="utf-8")
    assert told.startswith(before.rstrip())
    assert "Its decoder went on learning" in told


def test_codes_stay_what_they_are(tmp_path: Path) -> None:
    first = run.train(adversarial_recipe(), tmp_path / "first", device="cpu", quiet=True)
    critic = {"width": 8, "layers": 2, "start": 32, "ramp": 32, "rate": 0.002}
    made = run.train(decoding(first, {"critic": critic}), tmp_path / "on", device="cpu", quiet=True)
    stays(Codec.load(made), Codec.load(first))


def test_a_run_that_was_stopped_ends_as_one_that_was_not(model_folder: Path, tmp_path: Path) -> None:
    asked = decoding(model_folder, snapshots=32, ema=[0.1, 0.2])
    run.train(asked, tmp_path / "a", device="cpu", quiet=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(sorted((tmp_path / "b/state").iterdir())[-1])
    shutil.rmtree(tmp_path / "b/model")
    run.train(asked, tmp_path / "b", resume=True, device="cpu", quiet=True)
    for name in ("metrics.jsonl", "model/autoencoder/weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_average_of_another_length_leaves_the_encoder(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.train(decoding(model_folder, snapshots=32, ema=[0.1, 0.2]), tmp_path / "run", device="cpu", quiet=True)
    for more in (
        ["--width", "0.15", "--out", tmp_path / "made"],
        ["--widths", "0.1,0.15", "--plot", tmp_path / "p.png"],
    ):
        cli.main(["ema", str(tmp_path / "run"), *map(str, more)])
    stays(Codec.load(tmp_path / "made" / "autoencoder"), Codec.load(model_folder / "autoencoder"))
    assert alike(LatentDiffusion.load(tmp_path / "made").denoiser, LatentDiffusion.load(model_folder).denoiser)
    assert "PSNR" in capsys.readouterr().out


def test_smoothed_latents_are_held_against_smoothed_pictures(first_stage: Path) -> None:
    objective = run.decoding(decoding(first_stage), CPU)
    assert isinstance(objective, Decoding)
    batch, coder = objective.batch(range(64)), objective.coder
    assert batch.soft is not None
    assert 0.55 < float((batch.soft > 0).float().mean()) < 0.95
    assert len(batch.soft.unique()) > 30
    part = objective.batch(range(32, 64))
    assert part.soft is not None
    assert torch.equal(batch.soft[32:], part.soft)  # however a batch is split
    encoded, rebuilt, wanted = coder.rebuilt(batch._replace(soft=torch.full((64,), 0.5)))
    blur = F.avg_pool2d(F.pad(encoded.latent, (1, 1, 1, 1), mode="replicate"), 3, 1)
    torch.testing.assert_close(rebuilt, coder.codec.autoencoder.decode((encoded.latent + blur) / 2))
    assert float((wanted[..., 1:] - wanted[..., :-1]).abs().mean()) < 0.8 * float(
        (batch.images[..., 1:] - batch.images[..., :-1]).abs().mean()
    )
    hard = coder(batch._replace(soft=None))["loss"]
    torch.testing.assert_close(coder(batch._replace(soft=torch.zeros(64)))["loss"], hard)


def test_a_whole_first_stage_learns_with_smoothed_latents_too(tmp_path: Path) -> None:
    for kind in ({"kind": "kl"}, {"kind": "vq", "codebook": {"size": 32}}):
        asked = autoencoder_recipe({"smooth": 0.5, "equivariance": 0.25}, kind, images=32)
        Codec.load(run.train(asked, tmp_path / kind["kind"], device="cpu", quiet=True))


def test_a_decoder_taught_smoothed_latents_is_better_at_them(first_stage: Path, tmp_path: Path) -> None:
    found = {}
    for share in (0.0, 1.0):
        asked = decoding(first_stage, {"smooth": share}, images=960, report=960, checkpoint=960)
        made = Codec.load(run.train(asked, tmp_path / str(share), device="cpu", quiet=True))
        objective = run.decoding(decoding(first_stage), CPU)
        objective.coder.codec = made
        with torch.no_grad():
            batch = objective.batch(range(64))._replace(soft=torch.ones(64))
            _, rebuilt, wanted = objective.coder.rebuilt(batch)
        found[share] = float((rebuilt - wanted).abs().mean())
    assert found[1.0] < 0.95 * found[0.0]


def test_what_has_no_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no decoder that could learn"):
        learning(Codec(IdentityConfig.model_validate({"image_channels": 3})))
    with pytest.raises(ValueError, match="there is no model folder"):
        begun(decoding(tmp_path / "nothing"))
    folder = tmp_path / "family"
    folder.mkdir()
    (folder / "model.yaml").write_text("stage: family\n", encoding="utf-8")
    with pytest.raises(ValueError, match="another family"):
        begun(decoding(folder))


def test_the_shipped_recipe_is_shown_and_wants_its_network(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["show", "decoder", f"start={model_folder}", "data={kind: emoji, size: 32}"])
    said = capsys.readouterr().out
    assert "stage: decoder" in said
    assert "denoiser" in said
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "decoder", f"start={model_folder}", "data={kind: emoji, size: 32}", f"--run={tmp_path}"])
    assert stop.value.code == 2
    assert "objective.perceptual=null" in capsys.readouterr().err


def test_it_does_not_go_on_inside_another_model(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "start")
    asked = decoding(tmp_path / "start")
    run.train(asked, tmp_path / "run", device="cpu", quiet=True)
    start = LatentDiffusion.load(tmp_path / "start")
    with torch.no_grad():
        next(start.denoiser.parameters()).add_(0.1)
    shutil.rmtree(tmp_path / "start")
    start.save(tmp_path / "start")
    longer = decoding(tmp_path / "start", images=128)
    with pytest.raises(ValueError, match="the model"):
        run.train(longer, tmp_path / "run", resume=True, device="cpu", quiet=True)


def test_a_critic_is_shown_what_the_decoder_is_to_make(first_stage: Path) -> None:
    critic = {"width": 8, "layers": 2, "start": 0, "ramp": 1}
    objective = run.decoding(decoding(first_stage, {"smooth": 1.0, "critic": critic}), CPU)
    batch, coder = objective.batch(range(16)), objective.coder
    coder(batch)
    real, made = coder.kept[batch.positions]
    _, rebuilt, wanted = coder.rebuilt(batch)
    torch.testing.assert_close(real, wanted)
    torch.testing.assert_close(made, rebuilt.detach())
    assert not torch.equal(wanted, batch.images)


def test_it_is_measured_on_what_its_model_learned_from(model_folder: Path, first_stage: Path, tmp_path: Path) -> None:
    whole = run.train(decoding(model_folder, ema=[0.1]), tmp_path / "whole", device="cpu", quiet=True)
    recipe_of = tmp_path / "whole" / "recipe.yaml"
    recipe_of.write_text(recipe_of.read_text(encoding="utf-8").replace("size: 32", "size: 64"), encoding="utf-8")
    assert doors.read_data(whole) == doors.read_data(model_folder)
    alone = run.train(decoding(first_stage), tmp_path / "alone", device="cpu", quiet=True)
    found = doors.read_data(alone)
    assert found is not None
    assert found["size"] == 32
    recipe_of.write_text(
        recipe_of.read_text(encoding="utf-8").replace(str(model_folder), "gone/model"), encoding="utf-8"
    )
    assert doors.read_data(whole) is None


def test_what_stays_is_not_counted_as_learning(model_folder: Path, tmp_path: Path) -> None:
    found = run.needed(decoding(model_folder), tmp_path, CPU)
    codec = LatentDiffusion.load(model_folder).codec.autoencoder
    parts = [part for name in ("decoder", "out") for part in [getattr(codec, name)]]
    learned = sum(p.numel() for part in parts for p in part.parameters())
    assert found.learned == learned < found.parameters
