"""The loop: exact to resume, safe to stop, honest about NaN, and it does learn."""

import copy
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from sfumato import files
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Data, Part
from sfumato.data.emoji import EmojiData
from sfumato.diffusion.loss import weighting
from sfumato.model import LatentDiffusion
from sfumato.training import checkpoint, latents
from sfumato.training.diffusion import Denoising
from sfumato.training.ema import Averages, exponent
from sfumato.training.log import _append, cut, lines
from sfumato.training.loop import Interrupted, Loop
from sfumato.training.muon import Muon, orthogonal
from sfumato.training.optimizer import Optimizer, rate_at
from sfumato.training.recipe import Recipe, TimesConfig, dump, parse
from sfumato.training.run import objective_of, train
from sfumato.training.settings import TrainingConfig
from sfumato.training.validation import denoising as held_out_loss
from tests.conftest import adversarial_recipe, autoencoder_recipe, diffusion_recipe
from tests.data.test_renumbered import pictures
from tests.test_files import files_up_to


def recipe_of(stage: str, first_stage: Path, **training: object) -> Recipe:
    if stage == "autoencoder":
        return autoencoder_recipe(**training)
    if stage == "adversarial":
        return adversarial_recipe(**training)
    read = diffusion_recipe(first_stage, **training)
    if stage == "pixels":
        return read.model_copy(update={"cache": False})
    if stage == "dropout":
        return read.model_copy(update={"backbone": read.backbone.model_copy(update={"dropout": 0.2})})
    return read


def contents(folder: Path) -> dict[str, bytes]:
    """What must be equal to the byte: metrics, the last checkpoint's tensors, the model."""
    last = checkpoint.found(folder / "state")[-1]
    paths = [
        folder / "metrics.jsonl",
        *last.glob("*.safetensors"),
        *(folder / "model").rglob("*.safetensors"),
    ]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


@pytest.mark.parametrize(
    ("stage", "accumulate"),
    [
        ("autoencoder", 1),
        ("autoencoder", 2),
        ("adversarial", 1),
        ("adversarial", 2),
        ("diffusion", 1),
        ("diffusion", 2),
        ("pixels", 1),
        ("dropout", 1),
    ],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    stage: str, accumulate: int, first_stage: Path, tmp_path: Path
) -> None:
    """Stopped by Ctrl-C between two reports, mid-epoch; then again from a checkpoint while the next is half written."""
    recipe = recipe_of(stage, first_stage, accumulate=accumulate)
    often = recipe.training.model_copy(update={"report": 48, "preview": 32})
    recipe = recipe.model_copy(update={"training": often})
    train(recipe, tmp_path / "whole", device="cpu", quiet=True)

    def stop(images: int, preview: Path | None) -> None:
        if images == 32 and preview is not None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="--resume"):
        train(recipe, tmp_path / "parts", device="cpu", quiet=True, watch=stop)
    (kept,) = checkpoint.found(tmp_path / "parts" / "state")
    (facts,) = kept.glob("*.json")
    assert json.loads(facts.read_text())["counts"]  # of the report that is half full
    (tmp_path / "parts" / "state" / ".000000064.part").mkdir()  # what a kill in the middle of a checkpoint leaves
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"images": 64, "lo')
    train(recipe, tmp_path / "parts", device="cpu", quiet=True, resume=True)
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert [name for name in whole if whole[name] != parts[name]] == []


def test_a_run_goes_on_only_with_what_it_began_with(first_stage: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "data", "cat", "dog")
    data = Data.model_validate({"kind": "folder", "path": str(tmp_path / "data"), "size": 32, "held_out": 0.1})
    asked = autoencoder_recipe().model_copy(update={"data": data})
    train(asked, tmp_path / "one", device="cpu", quiet=True)
    denoiser = diffusion_recipe(tmp_path / "one" / "model", images=32).model_copy(
        update={"conditioners": {}, "data": data}
    )
    train(denoiser, tmp_path / "two", device="cpu", quiet=True)
    longer = denoiser.model_copy(update={"training": denoiser.training.model_copy(update={"images": 64})})
    shutil.copytree(tmp_path / "one" / "model", tmp_path / "kept")
    shutil.rmtree(tmp_path / "one" / "model")
    shutil.copytree(first_stage, tmp_path / "one" / "model")
    with pytest.raises(ValueError, match=r"the autoencoder of .*two are not those that this run began with"):
        train(longer, tmp_path / "two", device="cpu", quiet=True, resume=True)
    shutil.rmtree(tmp_path / "one" / "model")
    shutil.copytree(tmp_path / "kept", tmp_path / "one" / "model")
    (tmp_path / "data" / "cat" / "0.png").rename(tmp_path / "0.png")
    with pytest.raises(
        ValueError, match=r"the pictures of .*two are not those that this run began with: bring them back"
    ):
        train(longer, tmp_path / "two", device="cpu", quiet=True, resume=True)
    (tmp_path / "0.png").rename(tmp_path / "data" / "cat" / "0.png")
    train(longer, tmp_path / "two", device="cpu", quiet=True, resume=True)


def test_a_finished_run_is_not_published_anew(tmp_path: Path) -> None:
    asked = autoencoder_recipe()
    train(asked, tmp_path / "run", device="cpu", quiet=True)
    before = (tmp_path / "run" / "model" / "model.yaml").stat().st_mtime_ns
    train(asked, tmp_path / "run", device="cpu", quiet=True, resume=True)
    assert (tmp_path / "run" / "model" / "model.yaml").stat().st_mtime_ns == before
    longer = asked.model_copy(update={"training": asked.training.model_copy(update={"images": 128})})
    train(longer, tmp_path / "run", device="cpu", quiet=True, resume=True)
    assert (tmp_path / "run" / "model" / "model.yaml").stat().st_mtime_ns > before


def test_a_run_that_goes_on_may_say_other_steps_of_sampling(first_stage: Path, tmp_path: Path) -> None:
    recipe = diffusion_recipe(first_stage, images=16, batch=16, checkpoint=16)
    train(recipe, tmp_path, device="cpu", quiet=True)
    longer = diffusion_recipe(first_stage, images=32, batch=16, checkpoint=16).model_copy(update={"steps": 4})
    assert LatentDiffusion.load(train(longer, tmp_path, device="cpu", quiet=True, resume=True)).config.steps == 4


def test_a_run_of_edm_goes_on_with_the_deviation_that_it_began_with(first_stage: Path, tmp_path: Path) -> None:
    asked = diffusion_recipe(first_stage, images=32).model_copy(update={"prediction": "edm"})
    train(asked, tmp_path / "run", device="cpu", quiet=True)
    written = tmp_path / "run" / "recipe.yaml"
    written.write_text("".join(line for line in written.read_text().splitlines(True) if "data_std" not in line))
    longer = asked.model_copy(update={"training": asked.training.model_copy(update={"images": 64})})
    train(longer, tmp_path / "run", device="cpu", quiet=True, resume=True)
    assert LatentDiffusion.load(tmp_path / "run" / "model").config.data_std == 0.5


def test_checkpoints_are_in_the_order_of_their_images(tmp_path: Path) -> None:
    for images in (999_950_000, 1_000_000_000, 20):
        (tmp_path / f"{images:09d}").mkdir()
    assert [int(p.name) for p in checkpoint.found(tmp_path)] == [20, 999_950_000, 1_000_000_000]


def test_the_seconds_before_a_stop_are_kept(tmp_path: Path) -> None:
    recipe = autoencoder_recipe(report=64, preview=32)  # stopped between two reports

    def stop(images: int, preview: Path | None) -> None:
        if images == 32 and preview is not None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", device="cpu", quiet=True, watch=stop)
    assert [row["images"] for row in lines(tmp_path / "run" / "times.jsonl")] == [32]
    train(recipe, tmp_path / "run", device="cpu", quiet=True, resume=True)
    times = lines(tmp_path / "run" / "times.jsonl")
    assert [row["images"] for row in times] == [32, 64, 96]
    assert all(row["seconds"] > 0 for row in times)


def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = autoencoder_recipe()
    train(recipe, tmp_path / "run", device="cpu", quiet=True)
    whole = contents(tmp_path / "run")
    older, newer = checkpoint.found(tmp_path / "run" / "state")
    weights = newer / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    train(recipe, tmp_path / "run", device="cpu", quiet=True, resume=True)
    assert f"checkpoint {newer} is damaged" in caplog.text
    assert contents(tmp_path / "run") == whole
    assert older.exists()


def test_when_all_checkpoints_are_damaged_nothing_is_lost(tmp_path: Path) -> None:
    recipe = autoencoder_recipe()
    train(recipe, tmp_path / "run", device="cpu", quiet=True)
    told = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for path in checkpoint.found(tmp_path / "run" / "state"):
        (path / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"every checkpoint in .*state is damaged.* another run folder, or delete"):
        train(recipe, tmp_path / "run", device="cpu", quiet=True, resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == told


def test_a_disk_that_takes_no_more_leaves_the_last_checkpoint_and_says_what_to_do(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 10, {"weights": {"a": torch.zeros(3)}}, {}, keep=2)
    with files_up_to(100_000), pytest.raises(OSError, match="what was saved is whole"):
        checkpoint.save(tmp_path, 20, {"small": {"b": torch.ones(3)}, "weights": {"a": torch.ones(10**5)}}, {}, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["000000010"]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[1]["images"] == 10


# A run whose second checkpoint finds no room: by then no file may be larger than a few thousand bytes.
FILLED = """
import resource, sys
from sfumato.cli import main
from sfumato.training import checkpoint
save, calls = checkpoint.save, []
def filled(*given):
    calls.append(1)
    if len(calls) == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return save(*given)
checkpoint.save = filled
main()
"""


def test_a_run_on_a_full_disk_ends_with_a_sentence_and_goes_on_later(tmp_path: Path) -> None:
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(files.yaml.safe_dump(dump(autoencoder_recipe())))
    words = [sys.executable, "-c", FILLED, "train", str(path), "--run", str(run), "--quiet", "--device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("sfumato: "))
    assert "start again: what was saved is whole" in said
    assert "Traceback" not in done.stderr
    assert [p.name for p in (run / "state").iterdir()] == ["000000032"]
    train(autoencoder_recipe(), tmp_path / "whole", device="cpu", quiet=True)
    train(autoencoder_recipe(), run, device="cpu", quiet=True, resume=True)
    assert contents(run) == contents(tmp_path / "whole")


def test_nan_stops_with_a_message_and_the_good_checkpoint_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sfumato.autoencoder.kl import KLAutoencoder

    inner, calls = KLAutoencoder.decode, []

    def decode(self: KLAutoencoder, latent: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return inner(self, latent) * (float("nan") if len(calls) > 5 else 1.0)

    monkeypatch.setattr(KLAutoencoder, "decode", decode)
    with pytest.raises(FloatingPointError, match=r"last good checkpoint is .*0000000\d\d.*training\.rate"):
        train(autoencoder_recipe(), tmp_path, device="cpu", quiet=True)
    found = checkpoint.newest(tmp_path / "state")
    assert found is not None
    assert all(bool(t.isfinite().all()) for t in found[0]["weights"].values())
    monkeypatch.undo()  # and what it says to do can be done
    gentler = autoencoder_recipe(rate=1e-3, precision="fp32")
    train(gentler, tmp_path, device="cpu", quiet=True, resume=True)
    assert "goes on with training.rate=0.001" in caplog.text
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["training"]["rate"] == 1e-3
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["images"] == gentler.training.images


def test_a_critic_s_rate_may_change_too_and_is_named_where_a_loss_is_not_finite(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def with_critic(images: int, **changes: float) -> Recipe:
        asked = adversarial_recipe(images=images)
        assert asked.objective.critic is not None
        critic = asked.objective.critic.model_copy(update=changes)
        return asked.model_copy(update={"objective": asked.objective.model_copy(update={"critic": critic})})

    begun, device = with_critic(32), torch.device("cpu")
    train(begun, tmp_path, device="cpu", quiet=True)
    loop = Loop(objective_of(begun, tmp_path, device), begun.training, tmp_path, "", device, torch.float32, quiet=True)
    assert "Lower training.rate or objective.critic.rate, or use training.precision=fp32" in str(loop._lost("loss"))
    train(with_critic(64, rate=1e-4), tmp_path, device="cpu", quiet=True, resume=True)
    assert "goes on with objective.critic.rate=0.0001; until now it was 0.002" in caplog.text
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["objective"]["critic"]["rate"] == 1e-4
    with pytest.raises(ValueError, match="another recipe"):
        train(with_critic(96, rate=1e-4, weight=0.25), tmp_path, device="cpu", quiet=True, resume=True)


def test_weights_that_overflow_after_a_finite_loss_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Loop._save

    def save(self: Loop, lasting: bool = False) -> None:
        if self.images == self.config.images:
            next(self.modules.parameters()).data.fill_(float("inf"))
        inner(self, lasting)

    monkeypatch.setattr(Loop, "_save", save)
    recipe = autoencoder_recipe()
    with pytest.raises(FloatingPointError, match=r"of the weights is not finite.*last good checkpoint"):
        train(recipe, tmp_path, device="cpu", quiet=True)
    newest = checkpoint.newest(tmp_path / "state")
    assert newest is not None
    assert newest[1]["images"] < recipe.training.images


def test_a_folder_with_another_run_is_not_written_over(tmp_path: Path) -> None:
    train(autoencoder_recipe(images=32), tmp_path, device="cpu", quiet=True)
    with pytest.raises(ValueError, match="add --resume"):
        train(autoencoder_recipe(images=32), tmp_path, device="cpu", quiet=True)
    with pytest.raises(ValueError, match="another recipe"):
        train(autoencoder_recipe(images=32, seed=1), tmp_path, device="cpu", quiet=True, resume=True)


def test_a_finished_run_is_made_longer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(autoencoder_recipe(images=32), tmp_path, device="cpu", quiet=True)
    with caplog.at_level("WARNING"):
        train(autoencoder_recipe(images=64, report=16), tmp_path, device="cpu", quiet=True, resume=True)
    assert "training.images=64; until now it was 32" in caplog.text
    newest = checkpoint.newest(tmp_path / "state")
    assert newest is not None
    assert newest[1]["images"] == 64
    seen = [json.loads(line)["images"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seen[-2:] == [48, 64]
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["training"]["images"] == 64


def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path) -> None:
    train(autoencoder_recipe(images=64), tmp_path, device="cpu", quiet=True)
    with pytest.raises(ValueError, match=r"seen 64 images already; give training\.images=64 or more"):
        train(autoencoder_recipe(images=32), tmp_path, device="cpu", quiet=True, resume=True)


def test_the_first_stage_learns(tmp_path: Path) -> None:
    train(autoencoder_recipe(images=640, rate=0.01), tmp_path, device="cpu", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_the_denoiser_learns_and_listens_to_words(first_stage: Path, tmp_path: Path) -> None:
    """Overfits eight emoji: their own words denoise them better than each other's."""
    part = EmojiData(size=32).open("train")
    part.rows, part.pictures = part.rows[::410][:8], part.pictures[::410][:8]
    part.families = [[k] for k in range(8)]
    from unittest import mock

    recipe = diffusion_recipe(first_stage, images=4800, rate=0.02, flip=0.0, batch=32, report=800, checkpoint=4800)
    with mock.patch.object(EmojiData, "open", return_value=part):
        folder = train(recipe, tmp_path / "run", device="cpu", quiet=True)
    found = held_out_loss(LatentDiffusion.load(folder), part)
    assert found["loss"] < 0.95
    assert found["shuffled"] > 1.05 * found["loss"]


def test_gradients_reach_the_text_encoder_through_the_loss(model_folder: Path) -> None:
    model = LatentDiffusion.load(model_folder).train()
    cond = model.conditions({"caption": ["red heart", "cat face"]}, 2)
    x = torch.randn(2, *model.latent_shape())
    model.denoiser.loss(x, torch.tensor([0.3, 0.6]), torch.randn_like(x), cond).sum().backward()
    grads = {n: p.grad for n, p in model.conditions.named_parameters() if "caption" in n}
    weight = grads["conditioners.caption.blocks.0.attn1.to_q.weight"]
    assert weight is not None
    assert float(weight.abs().sum()) > 0


def test_latents_are_encoded_once_and_refused_when_they_are_not_ours(codec: Codec, tmp_path: Path) -> None:
    part = EmojiData(size=16).open("held_out")
    stored = latents.encode(codec, part, tmp_path / "a", flip=True)
    images = part.pictures[[3, 5]].float() / 127.5 - 1
    expected = torch.cat([codec.moments(images[:1]), codec.moments(images[1:].flip(-1))])
    torch.testing.assert_close(stored.rows([3, 5], [False, True]), expected, atol=2e-3, rtol=2e-3)
    before = (tmp_path / "a" / latents.KEY).stat().st_mtime_ns
    assert len(latents.encode(codec, part, tmp_path / "a", flip=True)) == len(part)
    assert (tmp_path / "a" / latents.KEY).stat().st_mtime_ns == before
    codec.scale.fill_(2.0)
    with pytest.raises(ValueError, match="holds latents of autoencoder"):
        latents.encode(codec, part, tmp_path / "a", flip=True)
    with pytest.raises(ValueError, match="without mirrored"):
        latents.encode(codec, part, tmp_path / "b").rows([0], [True])


def test_an_interrupted_encoding_goes_on_where_it_was(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = EmojiData(size=16).open("held_out")
    whole = latents.encode(codec, part, tmp_path / "whole", shard=64)
    seen: list[range] = []
    encoded = latents.encoded

    def some(codec: Codec, part: Part, indices: range, flip: bool, at_once: int) -> Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(indices)
        return encoded(codec, part, indices, flip, at_once)

    monkeypatch.setattr(latents, "encoded", some)
    with pytest.raises(KeyboardInterrupt):
        latents.encode(codec, part, tmp_path / "parts", shard=64)
    assert not (tmp_path / "parts").exists()
    seen.clear()
    seen.append(range(0))
    monkeypatch.setattr(latents, "encoded", lambda *given: (seen.append(given[2]), encoded(*given))[1])
    parts = latents.encode(codec, part, tmp_path / "parts", shard=64)
    assert range(64) not in seen
    assert range(64, 128) not in seen
    assert torch.equal(whole.rows(range(len(part))), parts.rows(range(len(part))))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("whole", [True, False])
def test_two_runs_may_encode_the_same_at_once(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, whole: bool
) -> None:
    part = EmojiData(size=16).open("held_out")  # three shards
    expected = latents.encode(codec, part, tmp_path / "alone", shard=64).rows(range(len(part)))
    encoded, seen = latents.encoded, list[int]()

    def overtaken(codec: Codec, part: Part, indices: range, flip: bool, at_once: int) -> Tensor:
        """While one run encodes a shard, another ends, or writes the same shard."""
        found = encoded(codec, part, indices, flip, at_once)
        seen.append(indices.start)
        if len(seen) == at + 1:
            if whole:
                latents.encode(codec, part, tmp_path / "both", shard=64)
            else:
                latents._write(tmp_path / ".both.part" / latents._name(at), found)
        return found

    monkeypatch.setattr(latents, "encoded", overtaken)
    both = latents.encode(codec, part, tmp_path / "both", shard=64)
    assert torch.equal(both.rows(range(len(part))), expected)
    assert {p.name for p in tmp_path.iterdir()} == {"alone", "both"}


def test_shards_of_other_latents_are_not_taken(codec: Codec, tmp_path: Path) -> None:
    part = EmojiData(size=16).open("held_out")
    work = tmp_path / ".parts.part"
    latents._begun(work, latents.key(codec, part, False))
    latents._write(work / "shard-00000", torch.zeros(64, *codec.moments(torch.zeros(1, 3, 16, 16)).shape[1:]).half())
    codec.scale.fill_(2.0)
    again = latents.encode(codec, part, tmp_path / "parts", shard=64)
    assert float(again.rows([0]).abs().max()) > 0


def test_runs_that_begin_the_same_latents_at_once_both_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, write, tries = tmp_path / "work", files.write, iter([True, True])

    def raced(path: Path, text: Any) -> None:
        if next(tries, False):  # the folder is taken away in between
            raise FileNotFoundError(2, "No such file or directory", str(path))
        write(path, text)

    monkeypatch.setattr(files, "write", raced)
    latents._begun(work, {"of": "these"})
    (work / "shard-00000").mkdir()
    latents._begun(work, {"of": "these"})
    assert (work / "shard-00000").is_dir()
    latents._begun(work, {"of": "others"})
    assert not (work / "shard-00000").is_dir()
    monkeypatch.setattr(latents.shutil, "rmtree", lambda *_, **__: pytest.fail("another run began here just now"))
    (tmp_path / "new").mkdir()
    latents._begun(tmp_path / "new", {"of": "these"})  # a folder without a key may be another run's that writes it


def test_latents_from_pixels_are_those_of_the_cache(codec: Codec, tmp_path: Path) -> None:
    part = EmojiData(size=16).open("held_out")
    stored, fresh = latents.encode(codec, part, tmp_path / "a", flip=True), latents.Fresh(codec, part)
    rows = [fresh.rows([3, 5], [False, True]), stored.rows([3, 5], [False, True])]
    torch.testing.assert_close(rows[0], rows[1], atol=2e-3, rtol=2e-3)


def test_a_denoiser_refuses_an_autoencoder_it_was_not_trained_on(
    model_folder: Path, codec: Codec, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    codec.save(tmp_path / "model" / "autoencoder")
    fields = files.yaml.safe_load((tmp_path / "model" / "model.yaml").read_text())
    files.seal(tmp_path / "model", {k: v for k, v in fields.items() if k not in ("format", "files")})
    with pytest.raises(ValueError, match="use the autoencoder folder inside the model"):
        LatentDiffusion.load(tmp_path / "model")


def test_averages_follow_their_power() -> None:
    """The weights of a power's average are t^power; for weights equal to the step number its mean is known."""
    module = torch.nn.Linear(1, 1, bias=False)
    averages = Averages([module], [0.1])
    power = exponent(0.1)
    assert abs(((power + 1) / ((power + 2) ** 2 * (power + 3))) ** 0.5 - 0.1) < 1e-9
    for step in range(1, 2001):
        module.weight.data.fill_(step)
        averages.update(step)
    expected = 2000 * (power + 1) / (power + 2)
    assert abs(float(averages.kept[0][0]) / expected - 1) < 0.01
    averages.swap()
    assert abs(float(module.weight.detach()) / expected - 1) < 0.01
    averages.swap()
    assert float(module.weight.detach()) == 2000
    with pytest.raises(ValueError, match=r"0\.28"):
        exponent(0.3)


def test_the_rate_rises_stays_and_falls() -> None:
    config = TrainingConfig(images=1000, rate=1.0, warmup=0.1, decay=0.5, floor=0.1)
    for batch, accumulate in itertools.product((1, 64, 512), (1, 4)):
        same = config.model_copy(update={"batch": batch, "accumulate": accumulate})
        assert [round(rate_at(n, same), 3) for n in (50, 100, 500, 750, 1000)] == [0.5, 1.0, 1.0, 0.55, 0.1]


def test_muon_levels_the_spectrum_and_takes_kernels() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 20, 50)))
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    kernel = torch.nn.Parameter(torch.zeros(32, 16, 3, 3))
    kernel.grad = torch.randn_like(kernel)
    Muon([kernel], lr=0.01).step()
    assert abs(float(kernel.detach().square().mean().sqrt()) / (0.2 * 0.01) - 1) < 0.2  # AdamW's step at this rate


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_lanes_and_accumulation_give_the_gradients_of_the_whole_batch(stage: str, first_stage: Path) -> None:
    for lanes, accumulate in ((1, 1), (2, 1), (1, 3), (2, 2)):
        torch.manual_seed(0)
        recipe = recipe_of(stage, first_stage, accumulate=accumulate, clip=None)
        objective = objective_of(recipe, first_stage / "run", torch.device("cpu"))
        loop = Loop(objective, recipe.training, Path(), "", torch.device("cpu"), torch.float32, quiet=True)
        assert loop.lanes == torch.get_num_threads()
        loop.lanes = lanes
        loop.ahead = loop._ahead()  # which cuts a step into as many parts
        assert len(loop.ahead.begin(range(16))) == lanes * accumulate
        (turn,) = objective.turns
        parameters = [p for module in loop.learned[turn] for p in module.parameters() if p.requires_grad]
        for p in parameters:  # an untrained network's last layer is 0 and hides the gradients before it
            p.data += 0.02
        loss = objective.turns[turn](objective.batch(range(16)))["loss"]
        wanted = torch.autograd.grad(loss, parameters, allow_unused=True)
        loop.optimizers[turn].step = lambda rate: None  # type: ignore[method-assign]
        loop.step(range(16))
        torch.testing.assert_close(loop.sums["loss"], loss.detach())
        torch.testing.assert_close([p.grad for p in parameters], list(wanted), rtol=1e-3, atol=1e-5)


def test_an_optimiser_goes_on_with_another_number_of_lanes() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(*(torch.nn.Linear(n, n) for n in (24, 16, 24, 32)))
    other = copy.deepcopy(module)
    config = TrainingConfig(images=100)
    first, second = Optimizer([module], config), Optimizer([other], config, lanes=3)
    gradients = [torch.randn_like(p) for p in module.parameters()]

    def advance(optimizer: Optimizer) -> list[torch.Tensor]:
        for p, g in zip(optimizer.parameters, gradients, strict=True):
            p.grad = g.clone()
        optimizer.step(0.01)
        return [p.detach().clone() for p in optimizer.parameters]

    advance(first)
    second.restore(first.state())
    other.load_state_dict(module.state_dict())
    for a, b in zip(advance(first), advance(second), strict=True):
        torch.testing.assert_close(a, b)


def test_times_follow_the_recipe(first_stage: Path) -> None:
    def times(batch: int = 16, **how: object) -> torch.Tensor:
        read = diffusion_recipe(first_stage, batch=batch)
        read = read.model_copy(update={"times": TimesConfig.model_validate(how)})
        objective = objective_of(read, first_stage / "run", torch.device("cpu"))
        assert isinstance(objective, Denoising)
        side.append(objective.shape[-1])
        return objective.times(range(512))

    side: list[int] = []
    # half-way the ratio is sqrt(high / size * low / size), upside down: the shift follows the latent's side
    ratio = times(density="cosine_interpolated").median() ** -1 - 1
    assert float(ratio) == pytest.approx((64 * 32) ** 0.5 / side[0], rel=0.3)
    assert side[0] != 64
    assert abs(float(times(mean=2.0).logit().mean()) - 2) < 0.15
    assert abs(float(times(std=0.5).logit().std()) - 0.5) < 0.05
    strata = (times(density="uniform", stratified=True).reshape(-1, 16) * 16).floor()
    assert torch.equal(strata, torch.arange(16.0).expand(32, 16))
    with pytest.raises(ValueError, match="takes no mean"):
        TimesConfig(density="uniform", mean=1.0)


def test_a_weighting_changes_the_loss(first_stage: Path) -> None:
    for name, spread in (("simple", 1.0), ("min_snr", 1.0), ("edm", 1.0), ("edm", 0.25)):
        torch.manual_seed(0)
        read = diffusion_recipe(first_stage).model_copy(update={"weighting": name, "data_std": spread})
        objective = objective_of(read, first_stage / "run", torch.device("cpu"))
        assert isinstance(objective, Denoising)
        batch, denoiser = objective.batch(range(16)), objective.model.denoiser
        found = objective.turns["denoiser"](batch)["loss"]
        cond = objective.model.conditions(batch.fields, 16, batch.drop, draws=batch.draws)
        each = denoiser.loss(batch.latents, batch.t, batch.eps, cond)
        factor = weighting(name, spread)
        if factor is not None:
            each = factor(denoiser.schedule(batch.t), denoiser.prediction) * each
        torch.testing.assert_close(found, each.mean())


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"images": 10}\n{"images": 20}\n{"images": 30}\n{"ima')
    cut(path, 20)
    assert path.read_text() == '{"images": 10}\n{"images": 20}\n'
    before = path.stat()
    cut(path, 20)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    path.write_bytes('{"images": 10}\n{"images": 20, "é'.encode()[:-1])
    cut(path, 20)
    assert path.read_text() == '{"images": 10}\n'


def test_metrics_are_whole_where_cutting_them_fails(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f'{{"images": {k}}}\n' for k in range(20_000)))
    whole = path.read_bytes()
    with files_up_to(100_000), pytest.raises(OSError, match="what was saved is whole"):
        cut(path, 19_000)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]
    with files_up_to(100_000), pytest.raises(OSError, match="would be larger"):
        _append(path, {"images": 20_000})


def test_a_run_that_was_begun_before_conditions_were_dropped_together_goes_on_without(
    first_stage: Path, tmp_path: Path
) -> None:
    fields = diffusion_recipe(first_stage, images=32).model_dump(mode="json")
    fields |= {"data": {"kind": "emoji", "size": 32, "masks": {}}, "cache": False}
    asked = parse(fields)
    train(asked, tmp_path / "run", device="cpu", quiet=True)
    written = tmp_path / "run" / "recipe.yaml"
    lines_ = written.read_text().splitlines(True)
    written.write_text("".join(line for line in lines_ if "unsaid:" not in line and line.strip() != "all: 0.05"))
    longer = asked.model_copy(update={"training": asked.training.model_copy(update={"images": 64})})
    train(longer, tmp_path / "run", device="cpu", quiet=True, resume=True)
    found = yaml.safe_load(written.read_text())
    assert (found["unsaid"], found["data"]["masks"]["all"]) == (0.0, 0.0)
