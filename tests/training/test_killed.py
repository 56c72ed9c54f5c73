"""kill -9 at any moment, then the same command again: to the byte what an uninterrupted run gives."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from sfumato.autoencoder.codec import Codec
from sfumato.data.emoji import EmojiData
from sfumato.data.folder import FolderData
from sfumato.training import checkpoint, latents
from sfumato.training.recipe import Recipe, dump
from tests.training.test_training import contents, recipe_of

FEW = 36  # pictures of a class: two classes, of which some are held out, so that 96 images are more than an epoch
KILLS = 4

# Ends the process without a word at the n-th time that a checkpoint's file is about to be there.
DYING = """
import os, sys
from sfumato import files
from sfumato.cli import main
calls, fatal = 0, int(sys.argv.pop(1))
save = files.save_tensors
def dying(path, tensors):
    global calls
    if ".part" in path.parent.name and "state" in str(path):
        calls += 1
        if calls == fatal:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
            os._exit(9)
    save(path, tensors)
files.save_tensors = dying
main()
"""


def words(run: Path, recipe: Path) -> list[str]:
    return ["train", str(recipe), "--run", str(run), "--resume", "--quiet", "--device", "cpu"]


def environment() -> dict[str, str]:
    # one lane or two is part of what a byte-for-byte comparison holds fixed
    return {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


def uninterrupted(tmp_path: Path, recipe: Path) -> dict[str, bytes]:
    command = [sys.executable, "-m", "sfumato", *words(tmp_path / "whole", recipe)]
    subprocess.run(command, check=True, env=environment(), capture_output=True)
    return contents(tmp_path / "whole")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of captioned pictures in two classes."""
    folder, part = tmp_path_factory.mktemp("pictures"), EmojiData(size=32).open("train")
    for k in range(2 * FEW):
        place = folder / f"class {k % 2}" / f"{k}.png"
        place.parent.mkdir(exist_ok=True)
        array = part.image(20 * k).permute(1, 2, 0).numpy()
        Image.fromarray(array).save(place)
        place.with_suffix(".txt").write_text(part.fields(20 * k)["caption"][0])
    return folder


def on(recipe: Recipe, pictures: Path) -> Recipe:
    """The recipe on these few pictures."""
    data = FolderData(path=pictures, size=32, held_out=0.05)
    epoch = len(data.open("train").families)
    assert recipe.training.images > 1.3 * epoch
    assert epoch % recipe.training.batch  # an epoch ends within a batch
    return recipe.model_copy(update={"data": data})


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "fatal"), [("adversarial", (2, 10, 3)), ("diffusion", (2, 8, 3))])
def test_a_run_that_dies_while_a_checkpoint_is_written_goes_on(
    stage: str, fatal: Sequence[int], first_stage: Path, pictures: Path, tmp_path: Path
) -> None:
    """Dies at a file of the first checkpoint, then at one of the third, in the second epoch, and at that one once more;
    each leaves half a file behind."""
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(dump(on(recipe_of(stage, first_stage), pictures))))
    whole = uninterrupted(tmp_path, path)
    for number, kept in zip(fatal, ([], [32, 64], [32, 64]), strict=True):
        done = subprocess.run(
            [sys.executable, "-c", DYING, str(number), *words(run, path)], env=environment(), capture_output=True
        )
        assert done.returncode == 9, done.stderr.decode()
        assert [p.name for p in (run / "state").iterdir() if p.name.endswith(".part")]
        assert [int(p.name) for p in checkpoint.found(run / "state")] == kept
    subprocess.run([sys.executable, "-m", "sfumato", *words(run, path)], check=True, env=environment())
    assert contents(run) == whole
    assert not [p.name for p in (run / "state").iterdir() if p.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "adversarial", "diffusion", "pixels"])
def test_kill_9_at_random_moments(stage: str, first_stage: Path, pictures: Path, tmp_path: Path) -> None:
    """Killed again and again, at moments drawn anew each time, through many epochs; checkpoints are dense, so that many
    hit one."""
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe = on(recipe_of(stage, first_stage, images=1600, checkpoint=48, report=32, accumulate=2), pictures)
    path.write_text(yaml.safe_dump(dump(recipe)))
    whole = uninterrupted(tmp_path, path)
    seed = int(os.environ.get("SFUMATO_KILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"SFUMATO_KILL_SEED={seed} kills at these moments again")
    draw, kills = random.Random(seed), 0
    command = [sys.executable, "-m", "sfumato", *words(run, path)]
    while kills < KILLS:
        with (tmp_path / "said").open("wb") as said:
            process = subprocess.Popen(command, env=environment(), stderr=said)
        # once it has begun to train, or has saved, some moments more: a kill before that proves nothing
        watched = saved if kills % 2 else progress
        before, end = watched(run), time.monotonic() + 120
        while process.poll() is None and watched(run) == before and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.8))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    if process.returncode == 0:
        assert kills >= 2
    else:
        assert process.returncode == -signal.SIGKILL, (tmp_path / "said").read_text()
        assert int(saved(run)) > 2 * FEW  # no run was killed in the first epoch alone
        subprocess.run(command, check=True, env=environment())
    found = contents(run)
    assert found.keys() == whole.keys()
    assert [name for name in whole if whole[name] != found[name]] == []


# Kills itself, without a word, when a step of the encoding is about to be done for the n-th time; no shard is written twice.
ENCODING = """
import json, os, signal, sys
from pathlib import Path
from sfumato.autoencoder.codec import Codec
from sfumato.data.emoji import EmojiData
from sfumato.training import latents
codec, folder, step, fatal = Codec.load(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
home = {"encoded": latents, "sync_all": latents.files, "rmtree": latents.shutil}[step]
calls, inner = 0, getattr(home, step)
def dying(*given, **more):
    global calls
    calls += 1
    if calls == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*given, **more)
setattr(home, step, dying)
write = latents._write
def once(folder, moments):
    assert not folder.exists()
    write(folder, moments)
latents._write = once
latents.encode(codec, EmojiData(size=32).open("held_out"), folder, shard=64)
"""


@pytest.mark.slow
def test_an_encoding_that_is_killed_goes_on(first_stage: Path, tmp_path: Path) -> None:
    """While the second of three shards is encoded; when it is written and not yet there; when all are one and not yet
    in place; and at the very end, when only the shards have to be deleted."""
    codec, part = Codec.load(first_stage), EmojiData(size=32).open("held_out")
    whole = latents.encode(codec, part, tmp_path / "whole", shard=64)
    folder, work = tmp_path / "parts", tmp_path / ".parts.part"
    # `rmtree` is first called for a data set of an earlier try, then for the shards
    for step, fatal, there in (("encoded", 2, 1), ("sync_all", 1, 1), ("sync_all", 3, 3), ("rmtree", 2, 3)):
        command = [sys.executable, "-c", ENCODING, str(first_stage), str(folder), step, str(fatal)]
        done = subprocess.run(command, env=environment(), capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert len(list(work.glob("shard-?????"))) == there
        assert folder.exists() == (step == "rmtree")
    parts = latents.encode(codec, part, folder, shard=64)
    assert torch.equal(whole.rows(range(len(part))), parts.rows(range(len(part))))
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert not work.exists()


def test_shards_are_on_the_disk_before_they_are_in_place(
    first_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    sync, rename = os.fsync, Path.rename

    def synced(place: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{place}")))
        sync(place)

    def renamed(path: Path, target: Path) -> Path:
        done.append(("rename", str(path)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    part = EmojiData(size=32).open("held_out")
    latents.encode(Codec.load(first_stage), part, tmp_path / "latents", shard=100)
    moved = [(k, path) for k, (what, path) in enumerate(done) if what == "rename"]
    assert len(moved) == 3  # two shards and the whole
    for k, folder in moved:
        before = {path.removeprefix(f"{folder}/") for what, path in done[:k] if what == "sync"}
        assert any(name.endswith(".arrow") for name in before)
        assert {"state.json", "dataset_info.json"} <= before
        assert ("sync", str(Path(folder).parent if k != moved[-1][0] else tmp_path)) in done[k:]


def saved(run: Path) -> str:
    """The newest checkpoint."""
    return max((p.name for p in checkpoint.found(run / "state")), default="0")


def progress(run: Path) -> str:
    """What changes while a run trains: its metrics and its checkpoints."""
    state, metrics = run / "state", run / "metrics.jsonl"
    names = sorted(p.name for p in state.iterdir()) if state.is_dir() else []
    return f"{names} {metrics.stat().st_size if metrics.is_file() else 0}"
