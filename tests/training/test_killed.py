"""kill -9 at any moment, then the same command again: to the byte what an uninterrupted run gives."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sfumato.training import checkpoint
from sfumato.training.recipe import dump
from tests.training.test_training import contents, recipe_of

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


@pytest.mark.slow
def test_a_run_that_dies_while_a_checkpoint_is_written_goes_on(first_stage: Path, tmp_path: Path) -> None:
    """Dies at a file of the first checkpoint, and again at one of the second; both leave half a file behind."""
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(dump(recipe_of("adversarial", first_stage))))
    whole = uninterrupted(tmp_path, path)
    for fatal in (2, 6):
        done = subprocess.run(
            [sys.executable, "-c", DYING, str(fatal), *words(run, path)], env=environment(), capture_output=True
        )
        assert done.returncode == 9, done.stderr.decode()
        assert [p.name for p in (run / "state").iterdir() if p.name.endswith(".part")]
    assert len(checkpoint.found(run / "state")) == 1
    subprocess.run([sys.executable, "-m", "sfumato", *words(run, path)], check=True, env=environment())
    assert contents(run) == whole
    assert not [p.name for p in (run / "state").iterdir() if p.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "adversarial", "diffusion", "pixels"])
def test_kill_9_at_random_moments(stage: str, first_stage: Path, tmp_path: Path) -> None:
    """Killed again and again, at moments drawn anew each time; checkpoints are dense, so that many hit one."""
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe = recipe_of(stage, first_stage, images=1600, checkpoint=48, report=32, accumulate=2)
    path.write_text(yaml.safe_dump(dump(recipe)))
    whole = uninterrupted(tmp_path, path)
    draw, kills = random.Random(), 0
    for _ in range(40):
        with (tmp_path / "said").open("wb") as said:
            command = [sys.executable, "-m", "sfumato", *words(run, path)]
            process = subprocess.Popen(command, env=environment(), stderr=said)
        before = progress(run)
        end = time.monotonic() + 120
        # once it has begun to train, some moments more: a kill before that proves nothing
        while process.poll() is None and progress(run) == before and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.8))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0, (tmp_path / "said").read_text()
    assert kills >= 2
    found = contents(run)
    assert found.keys() == whole.keys()
    assert [name for name in whole if whole[name] != found[name]] == []


def progress(run: Path) -> str:
    """What changes while a run trains: its metrics and its checkpoints."""
    state, metrics = run / "state", run / "metrics.jsonl"
    names = sorted(p.name for p in state.iterdir()) if state.is_dir() else []
    return f"{names} {metrics.stat().st_size if metrics.is_file() else 0}"
