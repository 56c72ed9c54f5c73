"""Shortcut distillation: a trained denoiser learns to take steps of any length at once (Frans et al., 2024, «One Step
Diffusion via Shortcut Models»).

The student is told the length of its step beside the time (`conditioning/stride.py`). Told 0, it is to give what the
guided teacher gives, which is the flow itself. Told 2d, it is to end in one step where two of its own of d end: so the
shortest steps follow the flow and every longer one is learned from those of half its length, up to one from noise to
picture (eq. 4 and 5; there with a flow from data in place of a teacher). Guidance is baked in: a student is sampled with
guidance 1, by `ddim`, which is Euler's method, in as many steps as one likes.

With a `plain` flow the student told 0 stays the teacher as it is, without guidance and also where conditions are dropped,
and only the shortest steps follow the guided teacher, as guidance enters in section 4 there. So one network samples in a
few steps, and in many with any guidance.

A step of length d is `ddim`'s from t to t - d under the estimate of x_0, so it is sound for every schedule and for
every prediction that says something of x_0 in pure noise. The distance is the mean square in what the network predicts:
for flows, in the velocity, as published. The two steps are taken without gradient.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import streams
from sfumato.conditioning.base import Conditions
from sfumato.conditioning.bundle import Bundle
from sfumato.conditioning.pretrained_text import PretrainedText
from sfumato.conditioning.stride import FIELD, StrideConfig
from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers import ddim, last
from sfumato.diffusion.schedule import Schedule
from sfumato.model import LatentDiffusion
from sfumato.streams import Stream
from sfumato.training.diffusion import Denoising, Noisy
from sfumato.training.distillation import Distilling, Ending, guided, moved
from sfumato.training.recipe import DistillationRecipe

Estimate = Callable[[Tensor, Tensor], Tensor]  # of x_0, from x_t and times (B,)
SHARE = 0.75  # of a batch that learns the flow: Frans et al. (2024), section 4
ROUND = 16  # rows that are asked at once are a multiple of it where networks are compiled
SPREAD = 0.5 * (5**0.5 - 1)  # multiples of it, modulo 1, are even over any batch


class ShortcutTurn(nn.Module):
    """The student's estimate against the teacher's where it is told no stride, else against two steps of half the length."""

    def __init__(
        self, model: LatentDiffusion, teacher: LatentDiffusion, guidance: float, finest: int, plain: bool = False
    ) -> None:
        super().__init__()
        self.denoiser, self.conditions, self.guidance = model.denoiser, model.conditions, guidance
        self.finest, self.plain = finest, plain
        self._teacher = [teacher]  # not ours to train
        self.schedule = Ending(model.denoiser.schedule)

    def forward(self, batch: Noisy) -> dict[str, Tensor]:
        """The mean loss over the batch, and its two parts, which sum to it."""
        alpha, sigma = self.schedule(batch.t).like(batch.latents)
        x_t = alpha * batch.latents + sigma * batch.eps
        with torch.no_grad():
            target = self.target(x_t, batch)
        made = self.denoiser(x_t, batch.t, _read(self.conditions, batch))
        far = (made - target).flatten(1) / self.denoiser.slope(batch.t).to(made)[:, None]
        each = far.square().mean(1)
        flow = (each * (_lengths(batch) == 0)).mean()
        return {"loss": each.mean(), "flow": flow.detach(), "shortcut": (each.mean() - flow).detach()}

    def target(self, x_t: Tensor, batch: Noisy) -> Tensor:
        """The estimates of x_0 (B, C, h, w) that the student's shall equal at x_t."""
        found, length = torch.empty_like(x_t), _lengths(batch)
        flow = length == 0
        shortest = (length == 2 / self.finest) if self.plain else torch.zeros_like(flow)
        scale = 1.0 if self.plain else self.guidance

        def follow(x: Tensor, some: Noisy) -> Tensor:
            return self._teachers(some, scale)(x, some.t)

        def teachers(x: Tensor, some: Noisy) -> Tensor:
            return self._twice(x, some, self._teachers(some, self.guidance))

        def own(x: Tensor, some: Noisy) -> Tensor:
            half = {**some.fields, FIELD: (0.5 * _lengths(some)).tolist()}
            cond = _read(self.conditions, some._replace(fields=half))
            return self._twice(x, some, lambda x_t, t: self.denoiser(x_t, t, cond))

        for places, way in ((flow, follow), (shortest, teachers), (~flow & ~shortest, own)):
            rows = places.nonzero().flatten()
            if len(rows):
                # a compiled network is made anew for every number of rows: some stand twice so that there are few numbers
                asked = filled(rows, ROUND if x_t.device.type == "cuda" else 1)
                found[rows] = way(x_t[asked], picked(batch, asked))[: len(rows)].to(found)
        return found

    def _teachers(self, batch: Noisy, scale: float) -> Estimate:
        """What the teacher estimates under the batch's conditions, with guidance of this scale."""
        teacher = self._teacher[0]
        fields = {name: values for name, values in batch.fields.items() if name != FIELD}
        known = batch._replace(fields=fields, drop=batch.drop[:, : len(teacher.config.conditioners)])
        kept = {name: values for name, values in fields.items() if name in teacher.conditions.kept}
        cond = _read(teacher.conditions, known)
        null = None if scale == 1.0 else _read(teacher.conditions, known._replace(fields=kept))
        return lambda x_t, t: guided(teacher.denoiser, x_t, t, cond, null, scale)

    def _twice(self, x_t: Tensor, batch: Noisy, estimate: Estimate) -> Tensor:
        """The estimate whose one step ends where two of half the length end."""
        half = 0.5 * _lengths(batch)
        x, t = x_t, batch.t
        for _ in range(2):
            x = moved(x, estimate(x, t), self.schedule, t, t - half)
            t = t - half
        return between(x_t, x, self.schedule, batch.t, t)


def between(x_t: Tensor, x_s: Tensor, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """The estimates of x_0 by which a step from times t (B,) to s (B,), below them, leads from x_t to x_s: `moved`, solved."""
    (alpha, sigma), (alpha_s, sigma_s) = (schedule(time).like(x_t) for time in (t, s))
    kept = sigma_s / sigma
    return (x_s - kept * x_t) / (alpha_s - kept * alpha)


def filled(rows: Tensor, multiple: int) -> Tensor:
    """The numbers of some rows, the last of them again until a number divides how many there are."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % multiple)])


def picked(batch: Noisy, rows: Tensor) -> Noisy:
    """Some rows of a batch."""
    places = rows.tolist()
    fields = {name: [values[k] for k in places] for name, values in batch.fields.items()}
    latents, t, eps = (part[rows] for part in (batch.latents, batch.t, batch.eps))
    return Noisy(latents, t, eps, fields, batch.drop[places], batch.draws.pick(places))


def _lengths(batch: Noisy) -> Tensor:
    """How long each example's step is, (B,)."""
    return torch.tensor(batch.fields[FIELD]).to(batch.t)


def _read(conditions: Bundle, batch: Noisy) -> Conditions:
    size = (batch.latents.shape[-2], batch.latents.shape[-1])
    found: Conditions = conditions(batch.fields, len(batch.t), batch.drop, size=size, draws=batch.draws, augment=True)
    return found


class Shortcutting(Distilling):
    """Trains a copy of the teacher's denoiser that is told strides, and what tells them; other conditioners are kept."""

    def student(self, teacher: LatentDiffusion, asked: DistillationRecipe) -> LatentDiffusion:
        return strided(teacher, asked.steps)

    def turn(self, model: LatentDiffusion, teacher: LatentDiffusion, asked: DistillationRecipe) -> nn.Module:
        model.conditions.reader(FIELD).requires_grad_(True)
        return ShortcutTurn(model, teacher, asked.guidance, asked.steps, asked.flow == "plain")

    def learned(self, turn: str) -> Sequence[nn.Module]:
        return [self.model.denoiser, self.model.conditions.reader(FIELD)]

    def batch(self, positions: Sequence[int]) -> Noisy:
        found = super().batch(positions)
        return found._replace(fields={**found.fields, FIELD: self.lengths(positions).tolist()})

    def dropped(self, positions: Sequence[int]) -> Tensor:
        """None; where the flow stays plain, those that a training of the teacher would drop, of examples that learn it."""
        if self.asked.flow == "guided":
            return super().dropped(positions)
        return Denoising.dropped(self, positions) & (self.lengths(positions) == 0)[:, None]

    def lengths(self, positions: Sequence[int]) -> Tensor:
        """How long each example's step is, (B,): 0 for those that learn the flow, else 2 / steps to 1 by powers of two,
        each as likely. Every batch has its share of both."""
        u = streams.uniform((), self.recipe.training.seed, "stride", positions)
        doublings = self.steps.bit_length() - 1
        longer = 2.0 ** (1 + (u * doublings).floor().clamp(max=doublings - 1)) / self.steps
        share = SHARE if self.asked.share is None else self.asked.share
        flow = torch.tensor([p * SPREAD % 1.0 < share for p in positions])
        return torch.where(flow, 0.0, longer)

    def times(self, positions: Sequence[int]) -> Tensor:
        """Where the steps begin, (B,): those of a length at its multiples, each as likely; the flow anywhere down to the
        last row of the finest grid."""
        u, length = streams.uniform((), self.recipe.training.seed, "time", positions), self.lengths(positions)
        anywhere = 1 - u * (1 - 1 / self.steps)
        rows = length * (1 + (u / length.clamp(min=1 / self.steps)).floor())
        return torch.where(length == 0, anywhere, rows)

    def sampled(self, x: Tensor, fields: dict[str, list[Any]], grid: Grid, noise: Stream) -> Tensor:
        said = {**fields, FIELD: [1 / grid.steps] * len(x)}
        return last(ddim(self.model.denoise(self.model.conditions(said, len(x))), grid.begin(x), grid))


def strided(teacher: LatentDiffusion, finest: int) -> LatentDiffusion:
    """A copy of the teacher that is told strides down to 1 / finest too; before training it gives what the teacher gives.

    What is new begins at zero only in the conditioner's last layer: two zeros behind one another would learn nothing.
    Raises `ValueError` where the teacher says nothing of x_0 in pure noise, or knows a `stride` of another kind.
    """
    config = teacher.config
    if teacher.denoiser.blind:
        raise ValueError(
            f"a shortcut begins in pure noise, of which prediction {config.prediction!r} says nothing under this schedule; "
            "give a teacher with prediction v or flow"
        )
    if FIELD in {*config.conditioners, *teacher.conditions.fields.values()}:
        raise ValueError(f"the teacher has a condition called {FIELD!r} already; train it under another name and field")
    direct = getattr(config.backbone, "direct_vector", False)
    backbone = config.backbone.model_copy(update={"direct_vector": False}) if direct else config.backbone
    more = {**config.conditioners, FIELD: StrideConfig(finest=finest)}
    wider = config.model_copy(update={"backbone": backbone, "conditioners": more})
    made = LatentDiffusion(copy.deepcopy(teacher.codec), wider, teacher.size, teacher.texts).to(teacher.device)
    made.conditions.load_state_dict({**made.conditions.state_dict(), **teacher.conditions.state_dict()})
    copied(teacher.denoiser, made.denoiser)
    for name, reader in teacher.conditions.conditioners.items():
        own = made.conditions.conditioners[name]
        if isinstance(reader, PretrainedText) and isinstance(own, PretrainedText):
            own.listening(reader)  # which was told what the training will say
    width = teacher.conditions.sizes.vector
    if direct and width:  # what was added as it came is now led through the identity
        made.denoiser.state_dict()["network.vector.weight"][:, :width] = torch.eye(width, device=made.device)
    return made


@torch.no_grad()
def copied(old: nn.Module, new: nn.Module) -> None:
    """Give `new` the weights of `old`, a network of the same kind whose vector is narrower, or which has none.

    The old columns of a wider matrix are its first ones; a bias that `old` has not is zero. The rest, which only the
    new vector meets, stays as it is.
    """
    known = old.state_dict()
    for name, weight in new.state_dict().items():
        if name in known:
            weight[tuple(slice(n) for n in known[name].shape)] = known[name]
        elif weight.ndim == 1:
            weight.zero_()
