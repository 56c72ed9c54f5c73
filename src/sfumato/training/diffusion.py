"""The second stage's objective: L_LDM, the denoiser and its conditioners trained together (Rombach et al., 2022, eq. 3)."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato import image, streams
from sfumato.conditioning.base import Conditions, Draws
from sfumato.data import loader
from sfumato.data.base import Part
from sfumato.diffusion.grid import even
from sfumato.diffusion.loss import Weighting, density, stratified, weighting
from sfumato.diffusion.samplers import ddim, last
from sfumato.model import LatentDiffusion
from sfumato.training import validation
from sfumato.training.autoencoder import stack
from sfumato.training.decoded import Crops, Decoded
from sfumato.training.discriminator import Critic
from sfumato.training.fitted import networks
from sfumato.training.latents import Fresh, Latents, Shaped
from sfumato.training.objective import Objective
from sfumato.training.recipe import DiffusionRecipe
from sfumato.training.settings import TrainingConfig

PREVIEWS = 16
UNSAID = 0.1  # of the examples, where there are several conditions, of which nothing is said at all


class Noisy(NamedTuple):
    """A batch of the denoiser's turn."""

    latents: Tensor  # (B, C, h, w), whitened
    t: Tensor  # (B,)
    eps: Tensor  # (B, C, h, w)
    fields: dict[str, list[Any]]
    drop: Tensor  # (B, number of conditioners), True where a condition is dropped
    draws: Draws  # of what conditioners do to their values in training
    crops: Crops | None = None  # what of the estimates is compared as a picture
    positions: tuple[int, ...] = ()  # (B,), places in the run, where there are crops


class DenoiserTurn(nn.Module):
    """Condition, add noise, predict, compare."""

    def __init__(
        self, model: LatentDiffusion, weighting: Weighting | None = None, decoded: Decoded | None = None
    ) -> None:
        super().__init__()
        self.model, self.weighting, self.decoded = model, weighting, decoded

    def forward(self, batch: Noisy) -> dict[str, Tensor]:
        """The mean loss over the batch."""
        size = (batch.latents.shape[-2], batch.latents.shape[-1])
        cond = self.model.conditions(batch.fields, len(batch.t), batch.drop, size=size, draws=batch.draws, augment=True)
        parts = self.parts(batch, cond)
        lesson = self.model.conditions.lesson(batch.fields, len(batch.t), batch.draws)
        if lesson is not None:
            parts["lesson"] = lesson
        if len(parts) == 1:
            return {"loss": parts["denoising"]}
        weights = {} if self.decoded is None else self.decoded.weights
        loss = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    def parts(self, batch: Noisy, cond: Conditions) -> dict[str, Tensor]:
        """The loss on latents, and where the recipe asks for it what is said of the decoded estimate, means over the batch."""
        denoiser = self.model.denoiser
        if self.decoded is None or batch.crops is None:
            return {"denoising": denoiser.loss(batch.latents, batch.t, batch.eps, cond, self.weighting).mean()}
        loss, estimate = denoiser.told(batch.latents, batch.t, batch.eps, cond, self.weighting)
        told: dict[str, Tensor] = self.decoded(self.model.codec, estimate, batch.crops, batch.positions)
        return {"denoising": loss.mean()} | told


class Denoising(Objective):
    """Trains a model's denoiser and conditioners on latents."""

    uneven = True

    def __init__(
        self,
        model: LatentDiffusion,
        recipe: DiffusionRecipe,
        train: Part,
        latents: Latents | Shaped | Fresh,
        device: torch.device,
        card: str,
        held_out: Part | None = None,
    ) -> None:
        self.model, self.recipe, self.train, self.latents, self.device = model, recipe, train, latents, device
        self.card, self.held_out = card, held_out
        self.shape, self.codec = model.latent_shape(), model.codec.fingerprint()
        shortest = min(min(shape) for shape in train.shapes or [(model.size, model.size)]) // model.codec.factor
        self.decoded = None if recipe.decoded is None else Decoded(recipe.decoded, model.codec, shortest)
        self.turns: Mapping[str, nn.Module] = {
            "denoiser": DenoiserTurn(model, weighting(recipe.weighting, recipe.data_std), self.decoded)
        }
        self.judge = None if recipe.decoded is None else recipe.decoded.critic
        if self.decoded is not None and self.decoded.critic is not None and self.judge is not None:
            self.turns = {**self.turns, "critic": Critic(self.decoded.critic, self.judge, self.decoded.kept)}

    def of(self) -> dict[str, str]:
        words = hashlib.sha256(repr(sorted(self.model.texts.items())).encode()).hexdigest()
        return {
            "the pictures": self.train.fingerprint,
            "the autoencoder": self.codec,
            "the words": words,
            **{f"the network of {name}": sha256 for name, sha256 in networks(self.model).items()},
        }

    def learned(self, turn: str) -> Sequence[nn.Module]:
        if turn != "critic":
            return [self.model.denoiser, self.model.conditions]
        assert self.decoded is not None
        assert self.decoded.critic is not None
        return [self.decoded.critic]

    def tuned(self, turn: str, training: TrainingConfig) -> TrainingConfig:
        return self.judge.tuned(training) if turn == "critic" and self.judge is not None else training

    def rated(self, turn: str) -> str:
        return "decoded.critic.rate" if turn == "critic" else "training.rate"

    def active(self, turn: str, positions: Sequence[int]) -> bool:
        return turn != "critic" or self._since(positions[0]) >= 0

    def _since(self, position: int) -> int:
        return -1 if self.judge is None else self.judge.since(position, self.offset, self.recipe.training.batch)

    def through(self) -> Sequence[nn.Module]:
        return [*super().through(), *([] if self.decoded is None else [self.model.codec.autoencoder])]

    def batch(self, positions: Sequence[int]) -> Noisy:
        t = self.recipe.training
        wanted = self.model.conditions.read
        if self.train.steps is not None:
            self.train.steps.offset = self.offset
        plan = loader.plan(self.train, t.seed, positions, t.flip, wanted)
        moments = self.latents.rows(plan.indices, plan.flips).to(self.device, self.dtype)
        shape = (self.shape[0], *moments.shape[2:])
        noise = streams.normal(shape, t.seed, "posterior", positions).to(moments)
        eps = streams.normal(shape, t.seed, "eps", positions).to(moments)
        with torch.no_grad():
            latents = self.model.codec.whiten(moments, noise)
        known = {name: values for name, values in plan.fields.items() if name in wanted}
        fields = self.model.conditions.mirrored(known, plan.flips)
        times, drop = self.times(positions).to(moments), self.dropped(positions)
        found = Noisy(latents, times, eps, fields, drop, Draws.training(t.seed, positions))
        if self.decoded is None or (self.decoded.perceptual is None and self._since(positions[0]) < 0):
            return found
        return found._replace(crops=self.crops(self.decoded, plan, found, positions), positions=tuple(positions))

    def crops(self, decoded: Decoded, plan: loader.Plan, batch: Noisy, positions: Sequence[int]) -> Crops:
        """What of a batch is decoded, and the pictures that it is compared with."""
        rows = decoded.rows(positions)
        if not rows:
            return Crops((), (), batch.latents.new_empty(0), batch.latents.new_empty(0))
        pictures = stack(self.train, [plan.indices[k] for k in rows]).to(batch.latents)
        for place, k in enumerate(rows):
            if plan.flips[k]:
                pictures[place] = pictures[place].flip(-1)
        unknown = self.model.conditions.unknown(batch.fields, len(positions), batch.drop)
        found = decoded.crops(pictures, rows, unknown, self.recipe.training.seed, positions)
        since = self._since(positions[0])
        if self.judge is None or since < 0:
            return found
        heed = self.judge.heed(since)
        return found._replace(begun=True, heed=pictures.new_full((len(rows),), heed) if heed else None)

    def dropped(self, positions: Sequence[int]) -> Tensor:
        """Which conditions are not told, (B, number of conditioners)."""
        conditions, asked = self.model.conditions, self.recipe.unsaid
        unsaid = (UNSAID if conditions.amplified > 1 else 0.0) if asked is None else asked
        count = len(self.model.config.conditioners)
        draws = streams.uniform((count + 1,), self.recipe.training.seed, "drop", positions)
        return conditions.dropped(draws, unsaid)

    def times(self, positions: Sequence[int]) -> Tensor:
        """Training times (B,) in [0, 1], drawn as the recipe says."""
        how, batch = self.recipe.times, self.recipe.training.batch
        u = streams.uniform((), self.recipe.training.seed, "time", positions)
        if how.stratified:
            u = stratified(u, torch.tensor([p % batch for p in positions]), batch)
        sized = {"size": max(self.shape[1:])} if how.density == "cosine_interpolated" else {}
        return density(how.density)(u, self.model.denoiser.schedule, **how.options, **sized)

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """One sample for each of a few conditions, always from the same noise, in twelve steps, or in the fewer that the
        recipe says its models are sampled in. Guidance, as in requests, amplifies what is said and no picture that is given."""
        (fields, shape), conditions = self._previewed(), self.model.conditions
        kept = {name: values for name, values in fields.items() if name in conditions.kept}
        count = next((len(values) for values in fields.values()), PREVIEWS)
        size = shape[1:]
        x = streams.normal(shape, 0, "preview", range(count)).to(self.device, self.dtype)
        guided = len(fields) > len(kept)
        other = conditions(kept, count, size=size) if kept and guided else None
        denoise = self.model.denoise(conditions(fields, count, size=size), other, 2.5 if guided else 1.0)
        grid = even(self.model.denoiser.schedule, min(self.recipe.steps or 12, 12))
        return image.sheet(self.model.pictures(last(ddim(denoise, grid.begin(x), grid))), columns=min(count, 8))

    def validate(self) -> dict[str, float]:
        if self.held_out is None:
            return {}
        found, own = validation.denoising(self.model, self.held_out), validation.lesson(self.model, self.held_out)
        return {
            "held_out": found["loss"],
            "held_out_shuffled": found["shuffled"],
            **({} if own is None else {"held_out_lesson": own}),
        }

    def _previewed(self) -> tuple[dict[str, list[Any]], tuple[int, int, int]]:
        """The recipe's prompts, or the conditions of the first training examples, of whole pictures, as far as these are of
        the first one's shape; and the shape of its latents."""
        wanted = self.model.conditions.unframed
        if self.recipe.prompts and (words := self.model.conditions.asked("caption")):
            said = {field: list(self.recipe.prompts) for field in words}
            return self.model.conditions.imagined(said, len(self.recipe.prompts)), self.shape
        plan = loader.plan(self.train, self.recipe.training.seed, range(PREVIEWS), 0.0, wanted)
        if self.train.shapes is None:
            return {name: values for name, values in plan.fields.items() if name in wanted}, self.shape
        shapes = [self.train.shapes[k] for k in plan.indices]
        told = {
            name: [v for v, one in zip(values, shapes, strict=True) if one == shapes[0]]
            for name, values in plan.fields.items()
            if name in wanted
        }
        return told, self.model.latent_shape(shapes[0][1], shapes[0][0])

    def publish(self, folder: Path) -> None:
        self.model.save(folder, self.card)
