"""The first stage's objective: reconstruct, look real, and keep the latent in bounds.

Two turns. `coder` minimises the reconstruction error (pixels, and a perceptual distance where the recipe names one), the
regularisation of the latent, and, once the critic has begun, how unreal its pictures look. `critic` learns to tell
pictures from reconstructions (Esser et al., 2021, "Taming Transformers", eq. 5 to 8; Rombach et al., 2022, eq. 25).

The adaptive weight of the adversarial term is the ratio of two gradients at the decoder's last weights (Esser et al.,
eq. 7). It is measured over the whole batch of a step and used in the next, smoothed and bounded: so it is the same
however a batch is split, it cannot blow up when the critic is fresh, and it costs one extra product with the last
layer instead of three passes through the critic and the perceptual network.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import distributed, image, streams
from sfumato.autoencoder.base import Encoded
from sfumato.autoencoder.codebook import Codebook
from sfumato.autoencoder.codec import Codec, together
from sfumato.data import loader
from sfumato.data.base import Part
from sfumato.device import at_least_single
from sfumato.nn.rescale import blurred, smaller
from sfumato.training.critic import CriticConfig
from sfumato.training.discriminator import Critic, Kept, PatchDiscriminator, coder_loss
from sfumato.training.objective import Objective
from sfumato.training.recipe import AutoencoderRecipe, ReconstructionConfig
from sfumato.training.settings import TrainingConfig

SMOOTH = 0.9  # decay of the gradients' lengths from which the adaptive weight is told
REVIVE = 512  # pictures at most whose latents unused codes are moved to
FEW = 16  # latents a code from which its beginning is told
BLUR = 3  # places a side over which latents are blurred
JUDGED = 256  # pictures of the held-out loss


class Pictures(NamedTuple):
    """A batch of either turn."""

    images: Tensor  # (B, C, H, W) in [-1, 1]
    noise: Tensor  # (B, channels, h, w), for the posterior
    heed: Tensor  # (B,) in [0, 1]: how much the coder listens to the critic at this place of the run
    begun: bool  # whether the critic learns in this step
    positions: tuple[int, ...]  # (B,), places in the run
    moved: tuple[int, int] = (0, 0)  # places a side that latents are made small to, 0: not at all; quarter turns
    soft: Tensor | None = None  # (B,) in [0, 1]: how much of each latent is its blur; None: of no latent
    heeded: bool = False  # whether any of `heed` is above 0: an accelerator would have to be waited for to tell


class Balance(nn.Module):
    """The adaptive weight's memory, and the learnt log-variance of the output: what the losses themselves keep."""

    lengths: Tensor  # (2,), of the reconstruction's and of the adversarial gradient
    log_variance: Tensor

    def __init__(self, variance: bool) -> None:
        super().__init__()
        self.register_buffer("lengths", torch.zeros(2))
        self.log_variance = nn.Parameter(torch.zeros(()), requires_grad=variance)

    def weight(self, critic: CriticConfig) -> Tensor:
        """Of the adversarial term: 0 until both lengths were measured once, where it is adaptive."""
        if not critic.adaptive:
            return torch.full_like(self.lengths[0], critic.weight)
        reconstruction, adversarial = self.lengths
        ratio = (reconstruction / adversarial.clamp(min=1e-30)).clamp(max=critic.largest)
        return torch.where(adversarial > 0, critic.weight * ratio, 0.0)

    @torch.no_grad()
    def settle(self, reconstruction: Tensor, adversarial: Tensor) -> None:
        """Take in both gradients of a step; what is not finite is forgotten."""
        new = torch.stack([reconstruction.norm(), adversarial.norm()]).to(self.lengths)
        smoothed = torch.where(self.lengths > 0, self.lengths.lerp(new, 1 - SMOOTH), new)
        self.lengths.copy_(torch.where(new.isfinite().all(), smoothed, self.lengths))


class Coder(nn.Module):
    """Encode, draw from the posterior, decode, compare, and be judged."""

    def __init__(self, codec: Codec, weights: ReconstructionConfig, critic: PatchDiscriminator | None = None) -> None:
        super().__init__()
        self.codec, self.weights, self.critic = codec, weights, critic
        self.perceptual = weights.perceptual.build() if weights.perceptual and weights.perceptual_weight else None
        self.balance = Balance(weights.variance)
        self.kept: Kept = {}

    def forward(self, batch: Pictures) -> dict[str, Tensor]:
        """Mean losses over the batch; `loss` is their weighted sum."""
        encoded, rebuilt, wanted = self.rebuilt(batch)
        penalty = encoded.penalty.mean()
        found = {"kl" if encoded.codes is None else "codebook": penalty.detach()}
        if isinstance(book := getattr(self.codec.autoencoder, "codebook", None), Codebook):
            assert encoded.moments is not None
            assert encoded.codes is not None
            found |= book.tally(encoded.moments, encoded.codes)
        if self.critic is None or not batch.heeded:
            error = self.compare(rebuilt, wanted, found)
        else:
            error = self.judged(rebuilt, batch._replace(images=wanted), found)
        if batch.moved[0]:
            error = error + self.weights.equivariance * self.moved(continuous(encoded), batch, found)
        if batch.begun:
            self.kept[batch.positions] = (wanted, rebuilt.detach())
        return {"loss": error + (self.weights.kl if encoded.codes is None else self.weights.codebook) * penalty} | found

    def rebuilt(self, batch: Pictures) -> tuple[Encoded, Tensor, Tensor]:
        """What is encoded, what is decoded of it, and what that is to be: the pictures, or those that were mixed with their
        blur where latents were."""
        coder, soft = self.codec.autoencoder, batch.soft
        if soft is None:
            return *coder.rebuild(batch.images, batch.noise), batch.images
        encoded = coder.encode(batch.images, batch.noise)
        mixed, wanted = (
            x.lerp(blurred(x, side), soft[:, None, None, None].to(x))
            for x, side in ((continuous(encoded), BLUR), (batch.images, BLUR * self.codec.factor))
        )
        return encoded, coder.decode(mixed), wanted

    def moved(self, latent: Tensor, batch: Pictures, found: dict[str, Tensor]) -> Tensor:
        """The mean absolute error of what is decoded from latents made smaller and turned, beside the picture so treated.

        Latents that keep their meaning when they are scaled are smoother, and a denoiser learns them faster (Kouzelis et
        al., 2025, «EQ-VAE», eq. 5); the more channels, the more that matters.
        """
        side, turns = batch.moved
        sides = [max(round(side * n / max(latent.shape[-2:])), 1) for n in latent.shape[-2:]]
        f = self.codec.factor
        small = smaller(latent, sides)
        pixels = [f * n for n in sides]
        wanted = F.interpolate(batch.images, pixels, mode="bilinear", antialias=True, align_corners=False)
        made = self.codec.autoencoder.decode(small.rot90(turns, (2, 3)))
        error = (made - wanted.rot90(turns, (2, 3))).abs().mean()
        found["equivariance"] = error.detach()
        return error

    def compare(self, rebuilt: Tensor, images: Tensor, found: dict[str, Tensor]) -> Tensor:
        """The reconstruction's negative log-likelihood, a mean over image values; its terms are noted in `found`."""
        w, error = self.weights, rebuilt - images
        l1, l2 = error.abs().mean(), error.square().mean()
        found |= {"l1": l1.detach(), "l2": l2.detach()}
        total = w.l1 * l1 + w.l2 * l2
        if self.perceptual is not None:
            distance = self.perceptual(rebuilt, images).mean()
            found["perceptual"] = distance.detach()
            total = total + w.perceptual_weight * distance
        if not w.variance:
            return total
        found["log_variance"] = self.balance.log_variance.detach().clone()
        return total * (-self.balance.log_variance).exp() + self.balance.log_variance

    def judged(self, rebuilt: Tensor, batch: Pictures, found: dict[str, Tensor]) -> Tensor:
        """The reconstruction's error and the critic's opinion, each gone through backwards once, up to the picture."""
        c = self.weights.critic
        assert c is not None
        assert self.critic is not None
        picture = rebuilt.detach().requires_grad_()
        error = self.compare(picture, batch.images, found)
        opinions = coder_loss(c.loss, self.critic.judge(picture))
        (slope,) = torch.autograd.grad(error, picture, retain_graph=self.weights.variance)
        (push,) = torch.autograd.grad(opinions.mean(), picture)  # whole: a heeded one would be scaled up again
        heeded = push * batch.heed[:, None, None, None].to(push)  # the critic judges each picture alone
        opinion = (batch.heed * opinions.detach()).mean()
        weight = self.balance.weight(c)
        found |= {"adversarial": opinion, "adaptive": weight}
        if c.adaptive:
            last = last_layer(self.codec)
            for name, gradient in (("slope", slope), ("push", push)):
                (at_last,) = torch.autograd.grad(rebuilt, last, gradient, retain_graph=True)
                found[name] = at_least_single(at_last)
        value = error.detach() + weight * opinion
        carried = (rebuilt * (slope + weight * heeded)).sum()  # whose gradient at `rebuilt` is that of the whole
        own = error - error.detach() if self.weights.variance else 0.0  # the log-variance's, whose `picture` is a leaf
        return value + (carried - carried.detach()) + own


def continuous(encoded: Encoded) -> Tensor:
    """The latent before codes are chosen, for what moves or mixes latents does so before."""
    raw = encoded.latent if encoded.codes is None else encoded.moments
    assert raw is not None
    return raw


def last_layer(codec: Codec) -> Tensor:
    """The decoder's last weights. Raises `ValueError` where the autoencoder has no decoder to be judged."""
    decoder = getattr(codec.autoencoder, "decoder", None)
    found = [m for m in decoder.modules() if isinstance(m, nn.Conv2d)] if isinstance(decoder, nn.Module) else []
    if not found:
        raise ValueError("this kind of autoencoder has no decoder for a critic to judge; leave objective.critic out")
    return found[-1].weight


class Reconstruction(Objective):
    """Trains a codec's autoencoder on one part of a data set."""

    def __init__(
        self, codec: Codec, recipe: AutoencoderRecipe, train: Part, held_out: Part | None, device: torch.device
    ) -> None:
        """Without held-out pictures, previews show what is trained on, and nothing is judged."""
        self.codec, self.recipe, self.train, self.held_out, self.device = codec, recipe, train, held_out, device
        side = recipe.data.size // codec.factor
        self.shape = (codec.channels, side, side)
        codec.autoencoder.check(torch.empty(1, train.channels, train.size, train.size))
        self.turns: Mapping[str, nn.Module] = self._turns()

    def _turns(self) -> dict[str, nn.Module]:
        weights = self.recipe.objective
        if weights.critic is None:
            self.coder = Coder(self.codec, weights)
            return {"coder": self.coder}
        last_layer(self.codec)
        critic = PatchDiscriminator(self.codec.image_channels, weights.critic.width, weights.critic.layers)
        critic.fits(self.train.size, self.train.size)  # it may begin after days
        self.coder = Coder(self.codec, weights, critic)
        return {"coder": self.coder, "critic": Critic(critic, weights.critic, self.coder.kept)}

    def of(self) -> dict[str, str]:
        teacher = getattr(self.codec.config, "teacher", "")  # of a decoder of another first stage's latents
        return {"the pictures": self.train.fingerprint, **({"the first stage": teacher} if teacher else {})}

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return any(p.requires_grad for p in self.codec.autoencoder.parameters())

    def learned(self, turn: str) -> Sequence[nn.Module]:
        if turn == "coder":
            return [self.codec.autoencoder, self.coder.balance]
        assert self.coder.critic is not None
        return [self.coder.critic]

    def tuned(self, turn: str, training: TrainingConfig) -> TrainingConfig:
        critic = self.recipe.objective.critic
        if turn == "coder" or critic is None:
            return training
        return critic.tuned(training)

    def rated(self, turn: str) -> str:
        return "training.rate" if turn == "coder" else "objective.critic.rate"

    def batch(self, positions: Sequence[int]) -> Pictures:
        t = self.recipe.training
        rows = loader.batch(self.train, t.seed, positions, t.flip, ())
        noise = streams.normal(self.shape, t.seed, "posterior", positions)
        told = [self._heed(p) for p in positions]
        begun = self._since(positions[0]) >= 0
        images, noise, heed = (x.to(self.device, self.dtype) for x in (rows.images, noise, torch.tensor(told)))
        moved, soft = self._moved(positions[0]), self._soft(positions)
        return Pictures(images, noise, heed, begun, tuple(positions), moved, soft, any(told))

    def _moved(self, position: int) -> tuple[int, int]:
        """How the latents of a step are made smaller and turned: the same for all parts of it."""
        if not self.recipe.objective.equivariance:
            return 0, 0
        step, side = (position - self.offset) // self.recipe.training.batch, self.shape[1]
        rng = streams.generator(self.recipe.training.seed, "equivariance", step)
        return int(rng.integers(max(side // 4, 1), side + 1)), int(rng.integers(4))

    def _soft(self, positions: Sequence[int]) -> Tensor | None:
        """How much of each latent is its blur."""
        seed, share = self.recipe.training.seed, self.recipe.objective.smooth
        if not share:
            return None
        drawn = [streams.generator(seed, "smooth", p).random(2) for p in positions]
        return torch.tensor([much if which < share else 0.0 for which, much in drawn], device=self.device)

    def _since(self, position: int) -> int:
        critic = self.recipe.objective.critic
        return -1 if critic is None else critic.since(position, self.offset, self.recipe.training.batch)

    def _heed(self, position: int) -> float:
        critic = self.recipe.objective.critic
        return 0.0 if critic is None else critic.heed(self._since(position))

    def active(self, turn: str, positions: Sequence[int]) -> bool:
        return turn == "coder" or self._since(positions[0]) >= 0

    @torch.no_grad()
    def begin(self) -> None:
        """Give a codebook its first vectors: the means of what the fresh encoder makes of the first pictures."""
        book = self._book
        if book is None or not book.config.kmeans:
            return
        tokens = math.prod(self.shape[1:])
        pictures = min(max(FEW * book.size // tokens, 1), len(self.train), 16 * REVIVE)
        rows = self._latents(range(pictures))
        book.begin(rows, self._order("kmeans", 0, len(rows)), pictures)

    @torch.no_grad()
    def settle(self, turn: str, measured: Mapping[str, Tensor], positions: Sequence[int]) -> Mapping[str, Tensor]:
        if "slope" in measured:
            self.coder.balance.settle(measured["slope"], measured["push"])
        book = self._book
        if turn != "coder" or book is None:
            return {}
        told = book.settle(measured["hits"], measured["sums"])
        if book.unused().any():
            rows = self._latents(positions[:REVIVE])
            book.revive(rows, self._order("revive", positions[0], len(rows)))
        return told

    @property
    def _book(self) -> Codebook | None:
        book = getattr(self.codec.autoencoder, "codebook", None)
        return book if isinstance(book, Codebook) else None

    def _latents(self, positions: Sequence[int]) -> Tensor:
        """The encoder's outputs for these examples, (N, C)."""
        parts = [positions[k : k + 64] for k in range(0, len(positions), 64)]
        made = [self.codec.moments(self.batch(part).images) for part in parts]
        return torch.cat(made).movedim(1, -1).flatten(0, 2)

    def _order(self, purpose: str, position: int, count: int) -> Tensor:
        return torch.from_numpy(streams.generator(self.recipe.training.seed, purpose, position).permutation(count))

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Held-out originals above their reconstructions."""
        part = self.held_out or self.train
        step = max(len(part) // 16, 1)
        originals = self._stacked(part, range(0, min(16 * step, len(part)), step))
        return image.sheet(torch.cat([originals, self._rebuilt(originals)]), columns=len(originals))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean absolute error over pixels of at most 256 held-out pictures, spread over the part, and the PSNR in dB."""
        if (part := self.held_out) is None:
            return {}
        count = min(len(part), JUDGED)
        chosen = [k * len(part) // count for k in range(count)]

        def differences(begin: int) -> tuple[Tensor, Tensor]:
            originals = self._stacked(part, chosen[begin : begin + 32])
            apart = (originals - self._rebuilt(originals)).float().flatten(1).cpu()
            return apart.abs().mean(1), apart.square().mean(1)

        errors, squares = zip(*distributed.spread(differences, range(0, len(chosen), 32)), strict=True)
        psnr = 10 * torch.log10(4 / torch.cat(squares).clamp(min=1e-10))
        return {"held_out": float(torch.cat(errors).mean()), "held_out_psnr": float(psnr.mean())}

    @torch.no_grad()
    def conclude(self) -> None:
        """Measure shift and scale over the whole training part."""
        if self.codec.autoencoder.whitened:
            return

        def tallied(begin: int) -> Tensor:
            rows = self._stacked(self.train, range(begin, min(begin + 128, len(self.train))))
            return self.codec.tally(self.codec.moments(rows))

        self.codec.measure(distributed.spread(tallied, range(0, len(self.train), 128)))

    def _rebuilt(self, originals: Tensor) -> Tensor:
        """What the first stage makes of pictures (B, C, H, W), clamped to [-1, 1]: few at a time where they are large."""
        coder, rows = self.codec.autoencoder, together(originals.shape[2] * originals.shape[3])
        made = [coder.decode(coder.encode(part).latent) for part in torch.split(originals, rows)]
        return torch.cat(made).clamp(-1, 1)

    def _stacked(self, part: Part, indices: Iterable[int]) -> Tensor:
        return stack(part, indices).to(self.device, self.dtype)

    def publish(self, folder: Path) -> None:
        self.codec.save(folder)


def stack(part: Part, indices: Iterable[int]) -> Tensor:
    """The pictures at these indices as (B, C, H, W) float32 in [-1, 1]."""
    return torch.stack([part.image(k) for k in indices]).float() / 127.5 - 1.0
