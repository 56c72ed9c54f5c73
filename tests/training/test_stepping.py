"""Steps: as long as is asked for, clipped, of the right optimiser; the best model, and moments that are kept."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.autoencoder.codec import Codec
from sfumato.cli.train import _tell_best
from sfumato.data.emoji import EmojiData
from sfumato.training import latents
from sfumato.training.autoencoder import Reconstruction
from sfumato.training.loop import Loop
from sfumato.training.optimizer import Optimizer
from sfumato.training.run import objective_of, train
from sfumato.training.settings import TrainingConfig
from tests.conftest import adversarial_recipe, autoencoder_recipe, diffusion_recipe

CPU = torch.device("cpu")


def test_steps_are_as_long_as_the_rate_that_is_asked_for() -> None:
    moved = []
    for rate in (0.01, 0.001):
        layer = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1.0)
        optimizer = Optimizer([layer], TrainingConfig(images=1, rate=1.0, optimizer="adamw", weight_decay=0.0))
        layer.weight.grad = torch.ones(3, 3)
        optimizer.step(rate)
        moved.append(float((layer.weight.detach() - 1).abs().mean()))
    assert moved == pytest.approx([0.01, 0.001], rel=1e-3)


def test_muon_takes_matrices_but_no_tables_and_norms_do_not_decay() -> None:
    block = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.LayerNorm(32))
    table, matrix, bias, scale, shift = block.parameters()
    muon, adam = Optimizer([block], TrainingConfig(images=1, weight_decay=0.1)).parts
    assert [id(p) for group in muon.param_groups for p in group["params"]] == [id(matrix)]
    decaying, still = ({id(p) for p in group["params"]} for group in adam.param_groups)
    assert (decaying, still) == ({id(table)}, {id(bias), id(scale), id(shift)})
    assert [group["weight_decay"] for group in adam.param_groups] == [0.1, 0.0]


def stepped(first_stage: Path, clip: float | None) -> float:
    """The length of the gradient with which a fresh denoiser's first step is taken."""
    read = diffusion_recipe(first_stage, clip=clip)
    torch.manual_seed(0)
    loop = Loop(
        objective_of(read, first_stage / "run", CPU),
        read.training,
        first_stage / "run",
        "",
        CPU,
        torch.float32,
        quiet=True,
    )
    lengths: list[float] = []

    def step(rate: float) -> None:
        gradients = [p.grad.flatten() for m in loop.learned["denoiser"] for p in m.parameters() if p.grad is not None]
        lengths.append(float(torch.cat(gradients).norm()))

    loop.optimizers["denoiser"].step = step  # type: ignore[method-assign]
    loop.step(range(16))
    (length,) = lengths
    return length


def test_gradients_are_clipped_to_the_length_that_is_asked_for(first_stage: Path) -> None:
    assert stepped(first_stage, 1e-3) == pytest.approx(1e-3, rel=1e-2)
    assert stepped(first_stage, None) == stepped(first_stage, 1e6) > 1e-2


def test_gradients_are_clipped_where_a_device_has_no_kernels_for_many_tensors(
    first_stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As mps, of which torch refuses those that are asked for by name, and takes one tensor after another otherwise."""
    for name in ("_device_has_foreach_support", "_has_foreach_support"):
        monkeypatch.setattr(f"torch.nn.utils.clip_grad.{name}", lambda *given: False)
    assert stepped(first_stage, 1e-3) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("judged", "wanted"),
    [
        ([0.5, 0.25, math.nan], [0, 1, -1]),
        ([0.25, 0.5, math.nan], [0, -1]),
        ([math.nan, 0.5, 0.25], [0, 1, -1]),
    ],
)
def test_the_model_of_the_lowest_loss_is_kept_and_none_whose_loss_is_not_finite(
    judged: list[float], wanted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, kept, real = iter(judged), list[int](), Reconstruction.publish

    def publish(self: Reconstruction, folder: Path) -> None:
        kept.append(len(kept) if "best" in folder.name else -1)  # written beside, and named when it is whole
        real(self, folder)

    monkeypatch.setattr(Reconstruction, "validate", lambda self: {"held_out": next(left)})
    monkeypatch.setattr(Reconstruction, "conclude", lambda self: None)
    monkeypatch.setattr(Reconstruction, "publish", publish)
    train(autoencoder_recipe(held_out=32, best=True, report=96), tmp_path / "run", device="cpu", quiet=True)
    assert kept == wanted


def test_the_best_model_is_told_beside_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"images": 32, "held_out": 0.5}, {"images": 64, "held_out": 0.25}, {"images": 96, "held_out": 0.75}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _tell_best(tmp_path)
    assert "after 64 images, loss 0.2500; the last has 0.7500" in capsys.readouterr().err


def test_lengths_of_averages_that_are_none_are_refused_in_the_recipe() -> None:
    for length in (0.3, 1.0, 7.0):
        with pytest.raises(ValueError, match=r"below 0\.28 or by a decay"):
            TrainingConfig(images=1, ema=(length,))


def test_moments_that_half_precision_cannot_hold_are_kept_finite(codec: Codec, tmp_path: Path) -> None:
    part = EmojiData(size=16).open("held_out")
    real = codec.moments
    codec.moments = lambda images, *more: 1e6 * real(images, *more).sign()  # type: ignore[method-assign]
    stored = latents.encode(codec, part, tmp_path / "a").rows([0, 1])
    assert float(stored.abs().max()) == 65504


def test_a_critic_is_stepped_as_its_recipe_says(tmp_path: Path) -> None:
    read = adversarial_recipe()
    critic = read.objective.critic
    assert critic is not None
    loop = Loop(objective_of(read, tmp_path, CPU), read.training, tmp_path, "", CPU, torch.float32, quiet=True)
    own = loop.configs["critic"]
    assert (own.optimizer, own.rate, own.betas) == ("adamw", critic.rate, critic.betas)
    assert loop.configs["coder"] == read.training
    assert {type(part) for part in loop.optimizers["critic"].parts} == {torch.optim.AdamW}


def test_averages_take_in_the_weights_once_a_step_of_all_turns_and_parts(tmp_path: Path) -> None:
    read = adversarial_recipe(accumulate=3, ema=[0.05, 0.1])
    loop = Loop(objective_of(read, tmp_path, CPU), read.training, tmp_path, "", CPU, torch.float32, quiet=True)
    steps, critic, real = list[int](), next(loop.learned["critic"][0].parameters()), loop.averages.update
    seen: list[torch.Tensor] = []

    def update(step: int) -> None:
        steps.append(step)
        seen.append(critic.detach().clone())
        real(step)

    loop.averages.update = update  # type: ignore[method-assign]
    for loop.images in (64, 80):  # where the critic learns too
        loop.step(range(loop.images, loop.images + 16))
    assert steps == [5, 6]
    assert torch.equal(seen[-1], critic)  # after the last turn
    assert not torch.equal(seen[0], seen[1])


class Reached(Exception):
    """A step began."""


@pytest.mark.parametrize(
    ("done", "images", "remedy"),
    [
        (100, 117, "training.images=116"),  # steps of 16 and of 1, though 117 is 5 above a multiple of 16
        (100, 101, "training.images=116"),
        (100, 113, None),  # one step of 13, though 113 is 1 above a multiple
        (96, 113, "training.images=112"),
        (100, 116, None),
    ],
)
def test_every_process_has_an_image_in_every_step_of_a_run_that_goes_on(
    done: int, images: int, remedy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = autoencoder_recipe(images=images)
    loop = Loop(objective_of(read, tmp_path, CPU), read.training, tmp_path, "", CPU, torch.float32, quiet=True)

    def step(positions: range) -> None:
        raise Reached

    loop.images, loop.step = done, step  # type: ignore[method-assign,assignment]
    monkeypatch.setattr("sfumato.distributed.place", lambda: (0, 2))
    if remedy is None:
        with pytest.raises(Reached):
            loop.run()
        return
    with pytest.raises(
        ValueError, match=rf"fewer images than there are processes \(2\): give {remedy}, or start fewer"
    ):
        loop.run()


def test_a_batch_of_fewer_images_than_processes_is_to_be_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = autoencoder_recipe(images=32, batch=2)
    loop = Loop(objective_of(read, tmp_path, CPU), read.training, tmp_path, "", CPU, torch.float32, quiet=True)
    monkeypatch.setattr("sfumato.distributed.place", lambda: (0, 3))
    with pytest.raises(ValueError, match=r"give a larger training.batch, or start fewer"):
        loop.run()
