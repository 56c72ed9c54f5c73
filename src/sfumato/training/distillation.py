"""Consistency distillation: a trained denoiser learns to jump to the picture from any noise (Song et al., 2023; Luo et al., 2023).

Between two neighbouring rows of a grid the teacher, guided, takes one step of its flow. The student's estimates of x_0 at
both ends must agree, f(x_t, t) = f(x_s, s), and at t = 0 the estimate is x itself, whatever the network says, for that is
how x_0 follows from every prediction. So all estimates along a path become its end, which one evaluation then finds.
Guidance is baked in: a student is sampled with guidance 1, by `lcm`.

The target is the student's own, without gradient (Song & Dhariwal, 2024, section 3.2), and the distance is their
pseudo-Huber one. Conditioners stay the teacher's.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato import files, image, streams
from sfumato.data.base import Part
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.grid import Grid, even
from sfumato.diffusion.samplers import last, lcm
from sfumato.diffusion.schedule import Scales, Schedule
from sfumato.model import DistilledConfig, LatentDiffusion
from sfumato.streams import Stream
from sfumato.training.diffusion import PREVIEWS, Denoising, Noisy
from sfumato.training.latents import Fresh, Latents, Shaped
from sfumato.training.recipe import DiffusionRecipe, DistillationRecipe

HUBER = 0.00054  # of sqrt(values of a latent): Song & Dhariwal (2024), section 3.3


class DistillationTurn(nn.Module):
    """One step of the guided teacher, and the student's estimates at both of its ends."""

    def __init__(self, model: LatentDiffusion, teacher: LatentDiffusion, guidance: float, steps: int) -> None:
        super().__init__()
        self.denoiser, self.conditions, self.guidance = model.denoiser, model.conditions, guidance
        self._teacher = [teacher]  # not ours to train
        self.rows = even(model.denoiser.schedule, steps)

    def forward(self, batch: Noisy) -> dict[str, Tensor]:
        """The mean distance over the batch; `batch.t` are the upper rows' times.

        The student's estimates are of full precision whatever is around: at high noise they differ by less than bfloat16
        tells apart. The teacher's need not be.
        """
        kind = batch.latents.device.type
        around = torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))
        with torch.autocast(kind, enabled=False):
            return self._compared(batch, around)

    def _compared(self, batch: Noisy, around: AbstractContextManager[Any]) -> dict[str, Tensor]:
        size = (batch.latents.shape[-2], batch.latents.shape[-1])
        conditions = self.conditions
        with torch.no_grad():
            cond = conditions(batch.fields, len(batch.t), size=size, draws=batch.draws, augment=True)
            other = {n: v for n, v in batch.fields.items() if n in conditions.kept}
            null = conditions(other, len(batch.t), size=size, draws=batch.draws, augment=True)
            steps = self.rows.steps
            lower = batch.t - 1.0 / steps
            lower = torch.where(lower < 0.5 / steps, torch.zeros_like(lower), lower)
            schedule = self.denoiser.schedule
            alpha, sigma = schedule(batch.t).like(batch.latents)
            x_t = alpha * batch.latents + sigma * batch.eps
            with around:
                x_0 = guided(self._teacher[0].denoiser, x_t, batch.t, cond, null, self.guidance)
            x_s = moved(x_t, x_0, Ending(schedule), batch.t, lower)
            # where nothing is noise the estimate is x itself: at t = 0 also of schedules whose first row is not clean
            ends = (lower == 0).reshape(-1, 1, 1, 1)
            target = torch.where(ends, x_s, self.denoiser(x_s, lower, cond))
        made = self.denoiser(x_t, batch.t, cond)
        edge = HUBER * math.sqrt(made[0].numel())
        far = (made - target).square().flatten(1).sum(1)
        return {"loss": ((far + edge**2).sqrt() - edge).mean() / math.sqrt(made[0].numel())}


def guided(teacher: Denoiser, x_t: Tensor, t: Tensor, cond: object, null: object, scale: float) -> Tensor:
    """The teacher's estimate of x_0 with its guidance, example by example at its own time."""
    given: Tensor = teacher(x_t, t, cond)
    if scale == 1.0:
        return given
    base: Tensor = teacher(x_t, t, null)
    return torch.lerp(base, given, scale)


def moved(x_t: Tensor, x_0: Tensor, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """A deterministic step from times t (B,) to s (B,) with the estimates x_0: `samplers.base.move` at a time each."""
    (alpha, sigma), (alpha_s, sigma_s) = (schedule(time).like(x_t) for time in (t, s))
    eps = (x_t - alpha * x_0) / sigma
    return alpha_s * x_0 + sigma_s * eps


@dataclass(frozen=True)
class Ending:
    """A schedule whose t = 0 is clean, whatever its first row: a sampler's last step ends there."""

    schedule: Schedule

    def __call__(self, t: Tensor) -> Scales:
        alpha, sigma = self.schedule(t)
        return Scales(torch.where(t == 0, 1.0, alpha), torch.where(t == 0, 0.0, sigma))

    def time(self, scales: Scales) -> Tensor:
        return self.schedule.time(scales)


class Distilling(Denoising):
    """Trains a copy of the teacher's denoiser; its conditioners are kept as they are. What another way of distillation
    does otherwise is in `student`, `turn`, `learned`, `dropped`, `times` and `sampled` (`shortcut.py`)."""

    uneven = False

    def __init__(
        self,
        teacher: LatentDiffusion,
        asked: DistillationRecipe,
        recipe: DiffusionRecipe,
        train: Part,
        latents: Latents | Shaped | Fresh,
        device: torch.device,
        card: str,
    ) -> None:
        model = self.student(teacher, asked)
        told = DistilledConfig(how=asked.how, steps=asked.sample, guidance=asked.guidance, flow=asked.flow)
        model.config = model.config.model_copy(update={"distilled": told})
        super().__init__(model, recipe, train, latents, device, card)
        self.asked, self.steps = asked, asked.steps
        self.taught = files.fingerprint(teacher.denoiser.state_dict() | teacher.conditions.state_dict())
        model.denoiser.train()  # a loaded one is not; a run that is resumed meets no preview that would do it
        model.conditions.requires_grad_(False).eval()
        self.turns = {"denoiser": self.turn(model, teacher.requires_grad_(False).eval(), asked)}

    def of(self) -> dict[str, str]:
        return {**super().of(), "the teacher": self.taught}

    def student(self, teacher: LatentDiffusion, asked: DistillationRecipe) -> LatentDiffusion:
        """What is trained, as it begins."""
        return copy.deepcopy(teacher)

    def turn(self, model: LatentDiffusion, teacher: LatentDiffusion, asked: DistillationRecipe) -> nn.Module:
        """The turn that trains it."""
        return DistillationTurn(model, teacher, asked.guidance, asked.steps)

    def learned(self, turn: str) -> Sequence[nn.Module]:
        return [self.model.denoiser]

    def dropped(self, positions: Sequence[int]) -> Tensor:
        return torch.zeros_like(super().dropped(positions))

    def times(self, positions: Sequence[int]) -> Tensor:
        """Upper rows of the grid, each as likely, (B,)."""
        u = streams.uniform((), self.recipe.training.seed, "time", positions)
        return (u * self.steps).floor().add(1).clamp(max=self.steps) / self.steps

    @torch.no_grad()
    def preview(self) -> Image.Image:
        fields, _ = self._previewed()
        count = next((len(values) for values in fields.values()), PREVIEWS)
        noise = Stream(range(count))
        x = noise.normal(self.shape, 0).to(self.device, self.dtype)
        made = self.sampled(x, fields, even(self.model.denoiser.schedule, self.asked.sample), noise)
        return image.sheet(self.model.pictures(made), columns=min(count, 8))

    def sampled(self, x: Tensor, fields: dict[str, list[Any]], grid: Grid, noise: Stream) -> Tensor:
        """Latents from noise x (B, c, h, w), as the model is meant to be sampled."""
        return last(lcm(self.model.denoise(self.model.conditions(fields, len(x))), grid.begin(x), grid, noise=noise))

    def publish(self, folder: Path) -> None:
        self.model.save(folder, self.card)
