"""The one training loop, for every stage: read it from top to bottom.

State is counted in images. Everything random is a function of (seed, purpose, image position), so a run that is
stopped and resumed takes the same steps as one that was not.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import device as devices
from sfumato import distributed, files, streams
from sfumato.lanes import lanes, side_by_side
from sfumato.training import ahead, checkpoint, posthoc
from sfumato.training.ema import Averages, decays
from sfumato.training.interrupt import Agreed, interrupts
from sfumato.training.log import Log
from sfumato.training.objective import Objective
from sfumato.training.optimizer import Optimizer, rate_at
from sfumato.training.settings import TrainingConfig

log = logging.getLogger(__name__)
JUDGED = "judged.json"  # in `best`: after how many images it was so, and its held-out loss
Watch = Callable[[int, Path | None], None]  # (images seen, a preview just written or None)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by the user; its state is saved."""


@dataclass
class Loop:
    """One run: an objective, how long, and where its files go."""

    objective: Objective
    config: TrainingConfig
    folder: Path
    title: str
    device: torch.device
    dtype: torch.dtype
    quiet: bool = False
    watch: Watch | None = None

    def __post_init__(self) -> None:
        if self.config.snapshots and all(decays(length) for length in self.config.ema):
            log.warning(
                "training.snapshots are of averages as long as a share of the run, and training.ema has none: nothing is kept; "
                "give it one, such as 0.05"
            )
        turns = self.objective.turns
        self.learned = {turn: list(self.objective.learned(turn)) for turn in turns}
        modules = [m for several in self.learned.values() for m in several]
        self.modules = nn.ModuleList(modules)
        # dropout inside a network draws from torch's one stream, which lanes would take from in any order
        self.dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.modules.modules())
        self.lanes = 1 if self.dropout or distributed.place()[1] > 1 else lanes(self.device)
        uneven = self.objective.uneven
        self.turns = {n: distributed.wrapped(module, self.learned[n], uneven=uneven) for n, module in turns.items()}
        self.ahead = self._ahead()
        self.configs = {turn: self.objective.tuned(turn, self.config) for turn in turns}
        self.optimizers = {
            turn: Optimizer(several, self.configs[turn], self.dtype, self.lanes)
            for turn, several in self.learned.items()
        }
        self.averages = Averages(modules, self.config.ema)
        self.images, self.sums, self.counts = 0, dict[str, Tensor](), dict[str, int]()
        self.lowest: float | None = None  # held-out loss

    @cached_property
    def of(self) -> dict[str, str]:
        """What the run hangs on besides its recipe."""
        return self.objective.of()

    def _ahead(self) -> ahead.Ahead:
        c, count = self.config, self.config.accumulate * self.lanes * distributed.place()[1]
        return ahead.Ahead(
            self.objective.batch,
            lambda step: ahead.parts(step, count),
            lambda step: ahead.next_step(step[-1] + 1, c.batch, c.images),
            ahead.workers(c.workers, self.device),
            max(torch.get_num_threads() // self.lanes, 1),
        )

    def run(self) -> None:
        """Train to the last image and publish. Raises `Interrupted` after Ctrl-C, `FloatingPointError` on NaN."""
        c = self.config
        self.objective.offset = self.images % c.batch
        made, published = self.folder / "model" / "model.yaml", self.folder / "published"  # after so many images
        there = made.is_file() and published.is_file() and published.read_text() == str(self.images)
        if self.images >= c.images and there:
            return  # what is concluded anew on another machine may differ in a last bit, and others hang on it
        self._shared()
        if distributed.chief():
            posthoc.cut(self.folder / "averages", self.images)
        with (
            Log(self.folder, self.title, c.images, self.images, self.quiet) as log,
            interrupts() as stopped,
            self.ahead,
        ):
            agreed = Agreed()
            if self.images == 0:
                self.objective.begin()
                self._preview(log)
            while self.images < c.images:
                before, positions = self.images, ahead.next_step(self.images, c.batch, c.images)
                self.step(positions)
                self.images += len(positions)
                done = self.images >= c.images
                log.advance(self.images)
                if done or crossed(before, self.images, c.report):
                    self._report(log)
                if done or crossed(before, self.images, c.preview):
                    self._preview(log)
                if c.held_out and (done or crossed(before, self.images, c.held_out)):
                    self._judge(log)
                if c.snapshots and (done or crossed(before, self.images, c.snapshots)):
                    self._snapshot()
                halted = agreed(bool(stopped))
                lasting = bool(c.milestones) and crossed(before, self.images, c.milestones or 1)
                if done or halted or lasting or crossed(before, self.images, c.checkpoint):
                    self._save(lasting)
                if halted and not done:
                    log.timed(self.images)
                    raise Interrupted(f"stopped after {self.images:,} images; the same command with --resume goes on")
        with self.averaged():
            self.objective.conclude()
            if distributed.chief():
                files.replace(self.folder / "model", self.objective.publish)
                files.write(published, str(self.images))
        distributed.wait()

    def _finished(self) -> None:
        """A run without checkpoints is at its end where it was published after all its images, else at its beginning.

        Raises `ValueError` where a model is there that training anew would replace.
        """
        published = self.folder / "published"
        if not published.is_file() or not (self.folder / "model" / "model.yaml").is_file():
            return
        if published.read_text() != str(self.config.images):
            raise ValueError(
                f"{self.folder} is finished and its checkpoints are gone, so that it cannot go on: give another folder with "
                "--run, or remove this one to train it anew"
            )
        self.images = self.config.images

    def _shared(self) -> None:
        """Raise `ValueError` where a step of the run would leave one of several processes without an image."""
        c, left, processes = self.config, self.config.images - self.images, distributed.place()[1]
        if left <= 0 or (left % c.batch or c.batch) >= processes:  # steps are counted from where a run goes on
            return
        whole = self.images + max(left // c.batch, 1) * c.batch
        remedy = "a larger training.batch" if c.batch < processes else f"training.images={whole}"
        raise ValueError(
            f"the run's last batch has fewer images than there are processes ({processes}): give {remedy}, or start fewer "
            "processes"
        )

    def step(self, positions: Sequence[int]) -> None:
        """One optimiser step of every turn on the examples at these positions."""
        parts = self.ahead.begin(positions)
        active = [turn for turn in self.turns if self.objective.active(turn, positions)]
        for turn in active:
            parameters = [p for m in self.learned[turn] for p in m.parameters() if p.requires_grad]
            part = partial(self._part, turn, turn != active[-1], parameters, len(positions), parts[-1])
            measured: dict[str, Tensor] = {}
            for k in range(0, len(parts), self.lanes):
                for values, gradients in side_by_side(part, parts[k : k + self.lanes], self.lanes):
                    for name, value in values.items():
                        measured[name] = measured[name] + value if name in measured else value
                    accumulate(parameters, gradients)
                del gradients  # the last lane's would stay while the optimiser works
            distributed.total([measured[name] for name in sorted(measured)])
            measured["gradient"] = nn.utils.clip_grad_norm_(parameters, self.config.clip or math.inf)
            self.optimizers[turn].step(rate_at(self.images, self.configs[turn]))
            told = self.objective.settle(turn, measured, positions)
            self._note(turn, {**measured, **told})
        self.averages.update(math.ceil((self.images + len(positions)) / self.config.batch))

    def _part(
        self,
        turn: str,
        again: bool,
        parameters: list[nn.Parameter],
        whole: int,
        last: Sequence[int],
        positions: Sequence[int],
    ) -> tuple[dict[str, Tensor], Sequence[Tensor | None]]:
        """This part's share of what its turn measures, and of the gradients; a single lane adds these where they belong.

        `again`: a later turn of the step asks for the same part.
        """
        share = len(positions) / whole
        module, processes = self.turns[turn], distributed.place()[1]
        if self.dropout:
            torch.manual_seed(int(streams.generator(self.config.seed, "dropout", positions[0]).integers(2**63)))
        batch = self.ahead.batch(positions, again)
        gradients: Sequence[Tensor | None] = ()
        with distributed.meeting(module, positions is last):
            with devices.cast(self.dtype, self.device):
                values: dict[str, Tensor] = module(batch)
            if self.lanes == 1:  # what meets is a mean over processes, and a sum over parts is wanted
                torch.autograd.backward(values["loss"] * (share * processes), inputs=parameters)
            else:
                gradients = torch.autograd.grad(values["loss"] * share, parameters, allow_unused=True)
        return {name: value.detach() * share for name, value in values.items()}, gradients

    def _note(self, turn: str, values: dict[str, Tensor]) -> None:
        """Add up what is logged: scalars. Every turn has a loss and a gradient; the first one's go by these names."""
        first = turn == next(iter(self.optimizers))
        for name, value in values.items():
            if value.ndim:
                continue
            key = name if first or name not in ("loss", "gradient") else f"{turn}_{name}"
            self.sums[key] = self.sums.get(key, torch.zeros_like(value)) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def _means(self) -> dict[str, float]:
        """Means since the last report. Raises `FloatingPointError` where one is not finite."""
        values = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise self._lost(f"{', '.join(bad)} became {values[bad[0]]}")
        return values

    def _lost(self, what: str) -> FloatingPointError:
        """The error that says what is not finite, and how to go on."""
        kept = checkpoint.found(self.folder / "state")
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        rates = " or ".join(dict.fromkeys(self.objective.rated(turn) for turn in self.turns))
        return FloatingPointError(
            f"{what} before image {self.images:,}; {last}. "
            f"Lower {rates}, or use training.precision=fp32, and start again with --resume"
        )

    def _report(self, log: Log) -> None:
        values = {name: round(value, 7) for name, value in self._means().items()}
        self.sums, self.counts = {}, {}
        log.report(self.images, {**values, "rate": rate_at(self.images, self.configs[next(iter(self.configs))])})
        if self.watch is not None:
            self.watch(self.images, None)

    def _preview(self, log: Log) -> None:
        if not distributed.chief():
            return
        begin = time.perf_counter()
        path = self.folder / "samples" / f"{self.images:09d}.png"
        with self.averaged(), devices.cast(self.dtype, self.device):
            picture = self.objective.preview()
        files.write(path, lambda part: picture.save(part, "PNG"))
        log.pictured(path, time.perf_counter() - begin)
        if self.watch is not None:
            self.watch(self.images, path)

    def _judge(self, log: Log) -> None:
        """Measure the held-out loss of the averaged weights; keep their model where it is the lowest so far."""
        begin = time.perf_counter()
        with self.averaged(), devices.cast(self.dtype, self.device):
            found = self.objective.validate()
        log.since += time.perf_counter() - begin
        if not found:
            return
        log.note(self.images, {name: round(value, 7) for name, value in found.items()})
        if self.lowest is not None and not found["held_out"] < self.lowest:
            return
        if not math.isfinite(found["held_out"]):
            return
        self.lowest = found["held_out"]
        if self.config.best:
            with self.averaged():
                self.objective.conclude()
                if distributed.chief():
                    files.replace(self.folder / "best", self._best)

    def _best(self, folder: Path) -> None:
        """Publish the model of the lowest held-out loss, with what that is: a run that goes on from an earlier checkpoint,
        on another way, keeps it until it is beaten."""
        self.objective.publish(folder)
        files.write(folder / JUDGED, json.dumps({"images": self.images, "held_out": self.lowest}))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the modules hold the first average of their weights, in evaluation mode."""
        self.averages.swap()
        self.modules.eval()
        try:
            yield
        finally:
            self.averages.swap()
            self.modules.train()

    def _snapshot(self) -> None:
        """Keep the averages of the first turn's modules as they are now."""
        if not distributed.chief():
            return
        count = sum(1 for m in self.learned[next(iter(self.learned))] for _ in m.parameters())
        kept = [
            (w, tensors[:count])
            for w, tensors in zip(self.averages.lengths, self.averages.kept, strict=True)
            if not decays(w)
        ]
        step = math.ceil(self.images / self.config.batch)
        posthoc.save(self.folder / "averages", self.images, step, [w for w, _ in kept], [t for _, t in kept])

    def _save(self, lasting: bool = False) -> None:
        tensors = {
            "weights": self.modules.state_dict(),
            "averages": self.averages.state(),
            **{f"optimizer-{turn}": several.state() for turn, several in self.optimizers.items()},
        }
        self._means()  # nothing unchecked is saved over a good checkpoint
        if bad := [n for n, t in tensors["weights"].items() if t.is_floating_point() and not bool(t.isfinite().all())]:
            raise self._lost(f"{bad[0]} of the weights is not finite")  # an update can overflow after a finite loss
        checkpoint.equal([p for several in self.learned.values() for m in several for p in m.parameters()], self.images)
        if not distributed.chief():
            return
        sums = {name: float(total) for name, total in self.sums.items()}
        facts: dict[str, Any] = {"counts": self.counts, "sums": sums, "lowest": self.lowest, "of": self.of}
        checkpoint.save(self.folder / "state", self.images, tensors, facts, self.config.keep, lasting)

    def resume(self) -> None:
        """Go on from the newest checkpoint. Raises `ValueError` where the run hangs on something else than it did then."""
        if distributed.chief():
            checkpoint.tidy(self.folder / "state")
        newest = checkpoint.newest(self.folder / "state")
        if newest is None:
            self._finished()
            return
        tensors, facts = newest
        before = facts.get("of", self.of)
        if other := [name for name, told in self.of.items() if before.get(name, told) != told]:
            raise ValueError(
                f"{' and '.join(other)} of {self.folder} are not those that this run began with: bring them back, or begin "
                "another run folder with what is there now"
            )
        try:
            self.modules.load_state_dict(tensors["weights"])
            self.averages.restore(tensors["averages"])
            for turn, several in self.optimizers.items():
                several.restore(tensors[f"optimizer-{turn}"])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"recipe.yaml no longer describes what {self.folder / 'state'} holds ({str(error).splitlines()[0]}): undo "
                "what was changed in it, or begin another run"
            ) from error
        self.images, self.counts = int(facts["images"]), dict(facts["counts"])
        self.lowest = facts.get("lowest")
        if (judged := self.folder / "best" / JUDGED).is_file():
            best = json.loads(judged.read_text(encoding="utf-8"))["held_out"]
            self.lowest = best if self.lowest is None else min(best, self.lowest)
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.sums = {name: torch.tensor(total, dtype=kind, device=self.device) for name, total in facts["sums"].items()}


@torch.no_grad()
def accumulate(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to those that the parameters have, laid out as the parameters are.

    The way back through a gradient penalty gives convolutions' gradients in another order of dimensions, and a fused
    optimiser reads both as plain rows of numbers.
    """
    for parameter, gradient in zip(parameters, gradients, strict=False):
        if gradient is None:
            continue
        if parameter.grad is not None:
            parameter.grad.add_(gradient)
        elif gradient.stride() == parameter.stride():
            parameter.grad = gradient
        else:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every
