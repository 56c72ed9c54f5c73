"""Images a second of a training, from a short run of it: how minutes become numbers of images."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sfumato import device as devices
from sfumato.training import compiled
from sfumato.training.loop import Loop
from sfumato.training.objective import Objective
from sfumato.training.settings import TrainingConfig

WARM = 2  # calls


def rate(objective: Objective, config: TrainingConfig, device: torch.device, seconds: float = 2.0) -> float:
    """Images a second of an objective's training, from a short run of it; its weights are changed by this."""
    return statistics.median(rates(objective, config, device, seconds))


def rates(objective: Objective, config: TrainingConfig, device: torch.device, seconds: float = 2.0) -> list[float]:
    """`rate`, of every step of the short run."""
    for module in objective.turns.values():
        module.to(device)
    compiled.ready(objective.turns.values(), config, device)  # as a training does, whose pace this is to be
    loop = Loop(objective, config, Path(), "", device, devices.precision(config.precision, device), quiet=True)

    def step(number: int) -> None:
        loop.step(range(number * config.batch, (number + 1) * config.batch))
        devices.wait(device)

    with loop.ahead:
        return [config.batch / taken for taken in seconds_of_steps(step, seconds)]


def seconds_of_steps(step: Callable[[int], None], seconds: float) -> list[float]:
    """The times of at least four calls, so many seconds in all, after two that warm up, or compile."""
    taken: list[float] = []
    for number in range(10_000):
        begin = time.perf_counter()
        step(number)
        taken.append(time.perf_counter() - begin)
        if number >= 6 and sum(taken[WARM:]) > seconds:
            break
    return taken[WARM:]
