"""Batches made ahead are those made in the step, to the bit; their faults surface there, and no thread stays."""

import shutil
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sfumato.data import loader
from sfumato.data.emoji import EmojiPart
from sfumato.training import checkpoint, run
from sfumato.training.ahead import Ahead, next_step, parts, workers
from sfumato.training.loop import Loop
from tests.training.test_training import contents, recipe_of


def ahead(make: object, count: int, batch: int = 4, whole: int = 40, split: int = 2) -> Ahead:
    return Ahead(
        make,  # type: ignore[arg-type]
        lambda step: parts(step, split),
        lambda step: next_step(step[-1] + 1, batch, whole),
        count,
        1,
    )


def left() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("ahead")]


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_parts_come_once_and_in_order(count: int) -> None:
    made: list[list[int]] = []

    def make(part: Sequence[int]) -> list[int]:
        time.sleep(0.001 * (part[0] % 3))
        made.append(list(part))
        return list(part)

    seen, step = [], next_step(0, 4, 38)
    with ahead(make, count, whole=38) as source:
        while step:
            for part in source.begin(step):
                seen += source.batch(part)
                assert max(p[-1] for p in made) <= step[-1] + 4 * (1 + count)
            step = next_step(step[-1] + 1, 4, 38)
    assert sorted(seen) == list(range(38))
    assert seen[:4] == [0, 2, 1, 3]
    assert len(made) == 20
    assert not left()


@pytest.mark.parametrize("count", [1, 3])
def test_parts_of_the_next_step_are_made_before_those_of_this_one_are_asked_for(count: int) -> None:
    made = threading.Event()

    def make(part: Sequence[int]) -> Sequence[int]:
        if part[0] >= 4:
            made.set()
        return part

    with ahead(make, count) as source:
        source.begin(range(4))
        assert made.wait(10)


def test_a_second_turn_is_given_the_same_batch_and_other_positions_are_made_at_once() -> None:
    with ahead(list, 2) as source:
        first = source.begin(range(4))[0]
        assert source.batch(first) is source.batch(first)
        assert source.batch(range(20, 23)) == [20, 21, 22]
        source.begin(range(12, 16))  # somewhere else: what was begun is dropped
        assert source.batch(range(12, 16, 2)) == [12, 14]
    assert source.batch(range(3)) == [0, 1, 2]


class Rows(list[int]):
    """A part that can be looked after: a plain list knows no weak references."""


def test_without_workers_a_part_is_made_once_for_all_turns_and_kept_no_longer() -> None:
    made: list[list[int]] = []

    def make(part: Sequence[int]) -> Rows:
        made.append(list(part))
        return Rows(part)

    with ahead(make, 0) as source:
        first, second = source.begin(range(4))
        kept = [weakref.ref(source.batch(part, again=True)) for part in (first, second)]
        alive = [ref() is not None for ref in kept]
        again = [list(source.batch(part)) for part in (first, second)]
        assert (alive, again, made) == ([True, True], [[0, 2], [1, 3]], [[0, 2], [1, 3]])
        assert [ref() for ref in kept] == [None, None]
        source.batch(first, again=True)
        source.begin(range(4, 8))  # the next step, though nobody asked again
        source.batch(first)
        assert made[2:] == [[0, 2], [0, 2]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_with_a_critic_reads_every_picture_once(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    image = EmojiPart.image
    monkeypatch.setattr(EmojiPart, "image", lambda self, k: (read.append(k), image(self, k))[1])
    recipe, device = recipe_of("adversarial", tmp_path, accumulate=accumulate), torch.device("cpu")
    objective = run.objective_of(recipe, tmp_path, device)
    loop = Loop(objective, recipe.training, tmp_path, "", device, torch.float32, quiet=True)
    loop.step(range(32, 48))
    assert loop.counts["critic_loss"] == 1
    assert len(read) == 16


def test_a_fault_is_raised_in_its_own_step() -> None:
    def make(part: Sequence[int]) -> Sequence[int]:
        if 9 in part:
            raise ValueError("row 9 cannot be read")
        return part

    seen: list[int] = []

    def through() -> None:
        with ahead(make, 4) as source:
            for begin in range(0, 40, 4):
                for part in source.begin(range(begin, begin + 4)):
                    seen.extend(source.batch(part))

    with pytest.raises(ValueError, match="row 9 cannot be read"):
        through()
    assert sorted(seen) == [*range(9), 10]
    assert not left()


def test_threads_of_torch_are_as_they_were() -> None:
    before = torch.get_num_threads()
    with ahead(lambda part: torch.get_num_threads(), 2) as source:
        assert source.batch(source.begin(range(4))[0]) == 1
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_auto_leaves_the_cpu_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.training.ahead.processors", lambda: 6)
    assert workers("auto", torch.device("cpu")) == 0
    assert workers("auto", torch.device("cuda")) == 6
    assert workers(3, torch.device("cpu")) == 3
    monkeypatch.setattr("sfumato.training.ahead.processors", lambda: 60)
    assert workers("auto", torch.device("cuda")) == 8


@pytest.mark.parametrize("stage", ["adversarial", "pixels"])
def test_workers_change_no_bit(stage: str, first_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makers = set()
    monkeypatch.setattr(
        loader, "plan", lambda *a, plan=loader.plan, **k: makers.add(threading.current_thread().name) or plan(*a, **k)
    )
    found = []
    for count in (0, 3):
        makers.clear()
        recipe = recipe_of(stage, first_stage, accumulate=2, workers=count)
        run.train(recipe, tmp_path / str(count), device="cpu", quiet=True)
        found.append(contents(tmp_path / str(count)))
        assert any(name.startswith("ahead") for name in makers) == (count > 0)
    assert found[0] == found[1]
    assert not left()


def test_a_resumed_run_may_have_other_workers(tmp_path: Path) -> None:
    one, other = (recipe_of("autoencoder", tmp_path, images=64, workers=count) for count in (0, 2))
    run.train(one, tmp_path / "whole", device="cpu", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(checkpoint.found(tmp_path / "cut" / "state")[-1])
    shutil.rmtree(tmp_path / "cut" / "model")
    assert checkpoint.found(tmp_path / "cut" / "state")
    run.train(other, tmp_path / "cut", resume=True, device="cpu", quiet=True)
    whole, cut = ((tmp_path / name / "model" / "weights.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_a_picture_that_fails_in_a_worker_stops_the_run_with_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def image(self: EmojiPart, index: int) -> torch.Tensor:
        raise ValueError("row 12 cannot be read; leave it out")

    monkeypatch.setattr(EmojiPart, "image", image)
    monkeypatch.setattr("sfumato.training.loop.Loop._preview", lambda self, log: None)
    with pytest.raises(ValueError, match="row 12 cannot be read; leave it out"):
        run.train(recipe_of("autoencoder", tmp_path, workers=2), tmp_path, device="cpu", quiet=True)
    assert not left()
