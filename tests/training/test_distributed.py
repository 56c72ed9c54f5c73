"""One process or many: the same data, the same noise, the same weights to rounding."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import yaml

from sfumato import distributed, files
from sfumato.training import checkpoint
from sfumato.training.recipe import Recipe, dump
from tests.conftest import adversarial_recipe, autoencoder_recipe, diffusion_recipe, planned_recipe
from tests.training.several import parted, stopped, together, trained, used

STEPS, BATCH = 50, 16


def recipes(first_stage: Path, precision: str, steps: int = STEPS) -> dict[str, Recipe]:
    """Both stages and both turns of the adversarial one. Codes that start by k-means and move are in the second.

    In float32 the critic has its default rate: faster ones make a game in which one rounding, which tips one latent to
    another code, grows a hundredfold in twenty steps.
    """
    some = {"images": steps * BATCH, "batch": BATCH, "checkpoint": steps * BATCH, "precision": precision}
    critic = {"width": 8, "layers": 2, "start": 32, "ramp": 64, "rate": 4e-4, "r1": 0.1}
    vq = adversarial_recipe(**some, accumulate=2)
    assert vq.objective.critic is not None
    if precision == "fp32":
        slower = vq.objective.critic.model_copy(update={"rate": critic["rate"]})
        vq = vq.model_copy(update={"objective": vq.objective.model_copy(update={"critic": slower})})
    return {
        "kl": autoencoder_recipe({"variance": True, "critic": critic}, **some),
        "vq": vq,
        "diffusion": diffusion_recipe(first_stage, **some),
    }


def with_training(recipe: Recipe, **settings: object) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=settings)})


def state(run: Path) -> dict[str, torch.Tensor]:
    """Weights, averages and optimisers of the last checkpoint."""
    last = checkpoint.found(run / "state")[-1]
    return {f"{p.stem}.{n}": t for p in last.glob("*.safetensors") for n, t in files.load_tensors(p).items()}


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any number."""
    assert one.keys() == other.keys()
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one if one[n].numel())


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(first_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process."""
    folder = tmp_path_factory.mktemp("whole")
    trained(recipes(first_stage, "fp64"), folder)
    trained({f"{n}-fp32": r for n, r in recipes(first_stage, "fp32").items()}, folder)
    return folder


def test_processes_wait_for_one_that_works_alone_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """It measures a batch, or joins a cache; torch's own patience ends after 10 or 30 minutes."""
    begun: list[timedelta] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda how, timeout: begun.append(timeout))
    with distributed.joined():
        assert begun == [timedelta(days=1)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    with distributed.joined():
        assert begun == 2 * [timedelta(days=1)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_as_one(processes: int, whole: Path, first_stage: Path, tmp_path: Path) -> None:
    asked = recipes(first_stage, "fp64") | {f"{n}-fp32": r for n, r in recipes(first_stage, "fp32").items()}
    together(processes, trained, asked, tmp_path)
    for name in asked:
        if name.endswith("fp32"):
            for one, other in zip(losses(whole / name), losses(tmp_path / name), strict=True):
                # a rounding may tip a latent to another code, which is a step and no rounding any more: the float64
                # runs above are the proof for codebooks
                near = 2e-2 if name.startswith("vq") and one["images"] > 2 * BATCH else 1e-4
                for loss in {"loss", "critic_loss"} & one.keys():
                    assert one[loss] == pytest.approx(other[loss], rel=near, abs=near)
            continue
        one, other = state(whole / name), state(tmp_path / name)
        assert sum(t.dtype == torch.float64 for t in one.values()) > 0.8 * len(one)
        assert farthest(one, other) < 1e-9


def test_two_processes_take_the_steps_of_one(first_stage: Path, tmp_path: Path) -> None:
    asked: dict[str, Recipe] = {n: r for n, r in recipes(first_stage, "fp64", steps=6).items() if n != "kl"}
    some = {"images": 6 * BATCH, "batch": BATCH, "precision": "fp64", "held_out": 6 * BATCH}
    asked["planned"] = planned_recipe(first_stage, dropout=0.9, **some)  # most steps hear no boxes, and plan them
    trained(asked, tmp_path / "one")
    together(2, trained, asked, tmp_path / "two")
    for name in asked:
        one, two = state(tmp_path / "one" / name), state(tmp_path / "two" / name)
        assert farthest(one, two) < 1e-10
        models = [sorted(p.name for p in (tmp_path / n / name / "model").rglob("*")) for n in ("one", "two")]
        assert models[0] == models[1]
    measured = [files.opened(tmp_path / n / "vq" / "model", "autoencoder")["latents"] for n in ("one", "two")]
    for name in ("shift", "scale"):
        assert measured[0][name] == pytest.approx(measured[1][name], rel=1e-9, abs=1e-9)
    heard, alone = losses(tmp_path / "two" / "planned"), losses(tmp_path / "one" / "planned")
    for measure in ("lesson", "held_out_lesson"):
        told = [[row[measure] for row in rows if measure in row] for rows in (heard, alone)]
        assert told[0]
        assert told[0] == pytest.approx(told[1])


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(whole: Path, first_stage: Path, tmp_path: Path) -> None:
    """25 steps on two processes and 25 on one."""
    asked = {n: r for n, r in recipes(first_stage, "fp64").items() if n != "kl"}
    half = {n: with_training(r, report=STEPS // 2 * BATCH) for n, r in asked.items()}
    together(2, stopped, half, tmp_path)
    for name in asked:
        assert [int(p.name) for p in checkpoint.found(tmp_path / name / "state")] == [STEPS // 2 * BATCH]
    trained(half, tmp_path)
    for name in asked:
        assert farthest(state(whole / name), state(tmp_path / name)) < 1e-9


def command(run: Path, recipe: Path, processes: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend=c10d"]
    where = ["--rdzv-endpoint=localhost:0", "-m"]
    start = [*launcher, *where] if processes > 1 else ["-m"]
    return [sys.executable, *start, "sfumato", "train", str(recipe), "--run-folder", str(run), "--resume", "--quiet"]


@pytest.mark.slow
def test_when_one_process_dies_all_stop_and_the_others_can_go_on(tmp_path: Path) -> None:
    """Two processes by torchrun; one is killed; the launcher ends with an error; one process takes up the run."""
    recipe = autoencoder_recipe(images=200_000, checkpoint=32)
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(dump(recipe)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = subprocess.Popen(command(run, path, 2), stderr=subprocess.PIPE, text=True, env=environment)
    until(lambda: both.poll() is not None or len(checkpoint.found(run / "state")) > 0, 120)
    assert both.poll() is None, both.communicate()[1]
    members = children(both.pid)
    assert len(members) == 2
    os.kill(members[1], signal.SIGKILL)
    killed = time.monotonic()
    _, said = both.communicate(timeout=60)
    assert both.returncode != 0
    assert re.search(r"exitcode\s*: -9|Signal 9", said), said
    assert time.monotonic() - killed < 60
    assert not [pid for pid in members if alive(pid)]
    until_image = int(checkpoint.found(run / "state")[-1].name)
    alone = subprocess.Popen(command(run, path, 1), stderr=subprocess.PIPE, text=True, env=environment)
    until(lambda: int(checkpoint.found(run / "state")[-1].name) > until_image, 120)
    alone.send_signal(signal.SIGINT)
    _, said = alone.communicate(timeout=60)
    assert "--resume" in said
    assert alone.returncode == 130


# A process of several whose second step fails as Python says, in the process of rank 1 alone.
FAILING = """
import sys
from sfumato import distributed
from sfumato.cli import main
from sfumato.training.autoencoder import Reconstruction
make = Reconstruction.batch
def batch(self, positions):
    if distributed.place()[0] == 1 and positions[0] >= 16:
        raise {error}("this picture is bad")
    return make(self, positions)
Reconstruction.batch = batch
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ValueError", "KeyError"])
def test_when_one_process_fails_all_stop_with_its_error(error: str, tmp_path: Path) -> None:
    """An error that the command says in a sentence, and one that it does not expect."""
    path, run, script = (tmp_path / name for name in ("recipe.yaml", "run", "failing.py"))
    path.write_text(yaml.safe_dump(dump(autoencoder_recipe(images=200_000))))
    script.write_text(FAILING.format(error=error))
    words = command(run, path, 2)
    place = words.index("sfumato")
    words[place - 1 : place + 1] = [str(script)]
    begun = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    until(lambda: begun.poll() is not None or len(children(begun.pid)) == 2, 60)
    members = children(begun.pid)
    _, said = begun.communicate(timeout=120)
    assert begun.returncode != 0
    assert "this picture is bad" in said
    assert not [pid for pid in members if alive(pid)]


def until(done: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def squares(count: int, path: Path) -> None:
    found = list(distributed.spread(lambda n: (n * n, distributed.place()[0]), range(count)))
    if distributed.chief():
        path.write_text(json.dumps(found))
    with distributed.alone():
        assert distributed.place() == (0, 1)
    assert distributed.some(distributed.place()[0] == 1)


def test_work_is_spread_and_comes_back_in_order(tmp_path: Path) -> None:
    assert list(distributed.spread(lambda n: n * n, range(5))) == [0, 1, 4, 9, 16]
    together(2, squares, 5, tmp_path / "found")
    assert json.loads((tmp_path / "found").read_text()) == [[0, 0], [1, 1], [4, 0], [9, 1], [16, 0]]


@pytest.mark.slow
def test_encoding_sampling_and_measuring_do_not_depend_on_the_number_of_processes(
    model_folder: Path, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each of several processes
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    used(model_folder, tmp_path / "one")
    torch.set_num_threads(threads)
    together(2, used, model_folder, tmp_path / "two")
    one, two = (torch.load(tmp_path / n / "t", weights_only=True) for n in ("one", "two"))
    assert torch.equal(one["rows"], two["rows"])
    assert torch.equal(one["pictures"], two["pictures"])
    assert (tmp_path / "one" / "found.json").read_text() == (tmp_path / "two" / "found.json").read_text()
    tables = [sorted(p.name for p in (tmp_path / n / "latents").iterdir()) for n in ("one", "two")]
    assert tables[0] == tables[1]


def test_processes_whose_gradients_do_not_meet_save_nothing(tmp_path: Path) -> None:
    together(2, parted, autoencoder_recipe(images=8 * BATCH, batch=BATCH, checkpoint=4 * BATCH), tmp_path)
    assert all("their gradients do not meet" in (tmp_path / f"told-{k}").read_text() for k in range(2))
    assert not checkpoint.found(tmp_path / "run" / "state")
