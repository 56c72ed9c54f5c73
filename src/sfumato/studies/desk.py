"""Where a study works: data, device and budget, the runs that it trains, and the numbers that it has already.

Every study has a folder of its own, so that what it finds does not hang on which others were run before; they share
features of real pictures alone. How many images a run sees is worked out once, from rates that are measured at the
start, and kept in `plan.json`: a study that is stopped and called again ends where an uninterrupted one would.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sfumato import device as devices
from sfumato import files
from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.conditioning.text import TextConfig, counted, flat, train_tokenizer
from sfumato.data.base import Data, Part
from sfumato.data.picked import one_each
from sfumato.evaluation.gather import Gathered, gather
from sfumato.evaluation.source import Chosen, PartPictures
from sfumato.families.base import Shape
from sfumato.features.network import FeatureNetwork
from sfumato.studies import recipes
from sfumato.studies.judge import Judge, classes_of
from sfumato.tasks.requests import Generate
from sfumato.training.autoencoder import stack
from sfumato.training.log import lines
from sfumato.training.loop import Interrupted
from sfumato.training.rate import rates
from sfumato.training.recipe import FamilyRecipe, Recipe, parse
from sfumato.training.run import environment, objective_of, train

say = Console(stderr=True)
Fields = dict[str, Any]
PROBE = 15.0  # seconds of a training by which its pace is told
PROBED = 0.004  # of the hours, which that takes at most
SEEDS = (0, 1_000_000, 2_000_000)  # of the first picture of each sampling; the next count up


@dataclass
class Desk:
    """What one training of a study is given."""

    folder: Path  # of the study
    data: Fields  # the `data` of its recipes
    network: FeatureNetwork
    device: torch.device
    hours: float
    images: int = 512  # generated a sampling seed
    steps: int = 25
    seeds: Sequence[int] = SEEDS  # of sampling
    seed: int = 0  # of training
    scale: float = 1.0  # by which all networks are wider than on two cores
    precision: str = "auto"  # of trainings
    features: Path | None = None  # where features of real pictures are kept for all studies; in `folder` where None
    quiet: bool = False

    @cached_property
    def opened(self) -> Data:
        """The data set."""
        return Data.model_validate(self.data)

    @cached_property
    def train(self) -> Part:
        """Its training part."""
        return self.opened.open("train")

    @cached_property
    def shown(self) -> Part:
        """One picture of each of its families: what training shows, which draws families alike. All distances are to it,
        and classes and words that models are told come from it, so that models of both kinds can follow it."""
        return one_each(self.train)

    @cached_property
    def held_out(self) -> Part:
        """Its held-out part."""
        return self.opened.open("held_out")

    @property
    def name(self) -> str:
        """What tables call the data."""
        path = getattr(self.opened, "path", None)
        return Path(path).resolve().name if path else self.opened.kind_name()

    @property
    def dtype(self) -> torch.dtype:
        """The precision of sampling."""
        return devices.precision(self.faster, self.device)

    @cached_property
    def faster(self) -> str:
        """What «auto» is in this study, which a call that measured anew may find to be another."""
        kept = self.plan("precision").get("auto")
        if kept is None:
            kept = "bf16" if devices.precision("auto", self.device) == torch.bfloat16 else "fp32"
            self.keep_plan("precision", {"auto": kept})
        return str(kept)

    @property
    def trains(self) -> str:
        """The precision of trainings, by its name."""
        return self.faster if self.precision == "auto" else self.precision

    @property
    def labelled(self) -> bool:
        """Whether training pictures have classes: a folder may have them in its held-out part alone."""
        return bool(self.train.labels) and self._told("label")

    @property
    def captioned(self) -> bool:
        """Whether training pictures have captions."""
        return self._told("caption")

    def _told(self, field: str) -> bool:
        """Whether any of a hundred training pictures, all over the part, has a field, for some may lack theirs."""
        places = range(0, len(self.train), max(len(self.train) // 100, 1))
        return any(self.train.field(k, field) not in (None, "", [], ()) for k in places)

    @cached_property
    def longest(self) -> int | None:
        """Tokens of the longest caption of any part; None where a conditioner reads as many by itself."""
        asked, parts = TextConfig(), [self.train, *(self.opened.open(n) for n in self.opened.parts if n != "train")]
        texts = [list(flat([p.field(k, asked.field) for k in p.telling(asked.field)])) for p in parts]
        tokenizer = train_tokenizer(texts[0], asked.vocabulary)  # from repeated ones too, as training does
        most = max(counted(sorted({text for several in texts for text in several}), tokenizer), default=0)
        return most if most > asked.length else None

    @cached_property
    def real(self) -> Gathered:
        """Features of what training shows, the reference of all distances."""
        return self.seen(PartPictures(self.shown, f"{self.name}, train"))

    def seen(self, source: Any) -> Gathered:
        """Features of a source's pictures, kept by their content."""
        return gather(self.network, source, cache=self.features or self.folder / "features")

    def seen_fresh(self, source: Any, count: int | None = None) -> Gathered:
        """Features that are not kept: of `count` pictures of the source, the same every time, or of all."""
        return gather(self.network, source if count is None else Chosen(source, count))

    @cached_property
    def judge(self) -> Judge | None:
        """The classifier of the data's classes, None where there are none."""
        if not self.labelled:
            return None
        return Judge.trained(self.real["pooled"], classes_of(self.shown), len(self.shown.labels))

    def dividing(self, *factors: int) -> None:
        """Raise `ValueError` where a factor of the study does not divide the pictures, before anything is trained."""
        if gone := [f for f in factors if self.train.size % f]:
            raise ValueError(
                f"this study trains first stages of f = {', '.join(map(str, gone))}, which does not divide pictures of "
                f"{self.train.size} pixels; give --size {max(round(self.train.size / max(gone)), 2) * max(gone)}"
            )

    def drawable(self, fields: Mapping[str, Any]) -> None:
        """Raise `ValueError` where a family cannot draw pictures of this size, before anything is trained."""
        recipe = self.recipe("family", fields, 64)
        assert isinstance(recipe, FamilyRecipe)
        recipe.family.build(Shape(self.train.channels, self.train.size), tuple(self.train.labels), None)

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def recipe(self, name: str, fields: Mapping[str, Any], images: int) -> Recipe:
        """A whole recipe: the study's data, and so many images with few previews."""
        training = {
            "ema": [0.05], "preview": max(images // 2, 1), "report": max(images // 40, 1),
            "checkpoint": max(images // 4, 1), "keep": 1, "seed": self.seed,
            "precision": self.trains, **fields.get("training", {}), "images": images,
        }  # fmt: skip
        return parse({"data": self.data, **recipes.wider(fields, self.scale), "training": training}, name)

    def trained(self, name: str, fields: Mapping[str, Any], images: int) -> Path:
        """The model folder of a run: trained from the start, from where it was stopped, or there already.

        Raises `ValueError` where the run was begun with other settings.
        """
        run, recipe = self.run(name), self.recipe(name, fields, images)
        say.print(f"{name}: {images:,} images", highlight=False)
        try:
            begun = (run / "recipe.yaml").is_file()
            return train(recipe, run, resume=begun, device=str(self.device), quiet=self.quiet)
        except Interrupted:
            raise Interrupted(f"stopped while {name} was trained; the same command goes on") from None
        except FloatingPointError as error:
            half = devices.precision(recipe.training.precision, self.device) == torch.bfloat16
            remedy = "give another folder with --out, and --precision fp32" if half else "give other --hours and --out"
            raise FloatingPointError(f"{name}: {str(error).split(';')[0]}; {remedy}") from None
        except ValueError as error:
            if "another recipe" not in str(error):
                raise
            raise ValueError(
                f"{run} was begun with other settings; give the same --hours, --size and data as then, or another --out"
            ) from None

    def rates(self, name: str, fields: Mapping[str, Any]) -> list[float]:
        """Images a second of each step of a short run of this training, measured once."""
        kept = self.plan("rates")
        if name not in kept:
            recipe = self.recipe(name, fields, 1_000_000)
            seconds = min(PROBE, 3600 * PROBED * self.hours)
            several = rates(objective_of(recipe, self.run(name), self.device), recipe.training, self.device, seconds)
            kept[name] = [round(one, 3) for one in several]
            self.keep_plan("rates", kept)
        found: list[float] = kept[name]
        return found

    def rate(self, name: str, fields: Mapping[str, Any]) -> float:
        """The median of `rates`."""
        return statistics.median(self.rates(name, fields))

    def elapsed(self, name: str) -> list[tuple[int, float]]:
        """(images, seconds since the beginning) of a run, as its steps went; previews and starts do not count."""
        found, seconds = list[tuple[int, float]](), 0.0
        for line in lines(self.run(name) / "times.jsonl"):
            seconds += line["seconds"]
            found.append((line["images"], seconds))
        return found

    def seconds(self, name: str) -> float:
        """Seconds that a run's steps took."""
        found = self.elapsed(name)
        return found[-1][1] if found else 0.0

    def paces(self, name: str) -> list[float]:
        """Images a second of a run in each stretch that it reported."""
        return [float(line["images_per_second"]) for line in lines(self.run(name) / "times.jsonl")]

    def budget(self, name: str, fields: Mapping[str, Any], hours: float) -> int:
        """Images that a run sees in so many hours, worked out once."""
        return self.planned(name, fields, lambda: 3600 * hours * self.rate(name, fields))

    def planned(self, name: str, fields: Mapping[str, Any], images: Callable[[], float]) -> int:
        """Images that a run sees, so many in whole batches, worked out once."""
        planned = self.plan("images")
        if name not in planned:
            planned[name] = whole(images(), fields)
            self.keep_plan("images", planned)
        found: int = planned[name]
        return found

    def plan(self, part: str) -> dict[str, Any]:
        """A part of `plan.json`."""
        path = self.folder / "plan.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kept: dict[str, Any] = found.get(part, {})
        return kept

    def keep_plan(self, part: str, values: Mapping[str, Any]) -> None:
        """Write a part of `plan.json`."""
        path = self.folder / "plan.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        files.write(path, json.dumps({**found, part: dict(values)}, indent=1))

    def keeping(self, what: str, value: Any) -> None:
        """Raise `ValueError` where the study was begun with another value, as it was before a later version."""
        kept = self.plan("kept")
        if kept.get(what, value) != value or (what not in kept and self.plan("images")):
            raise ValueError(
                f"{self.folder} was begun by another version, with other {what}; choose another folder with --out"
            )
        self.keep_plan("kept", {**kept, what: value})

    def once(self, name: str, key: Any, make: Callable[[], Any]) -> Any:
        """A JSON value that is worked out once and kept in `measured/`, until what it is of, its `key`, is another."""
        path, told = self.folder / "measured" / f"{name}.json", json.loads(json.dumps(key))
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if kept.get("key") != told:
            kept = {"key": told, "value": make()}
            files.write(path, json.dumps(kept, indent=1, ensure_ascii=False))
        return kept["value"]

    def latents(self, hours: float, **shape: int) -> Path:
        """The model folder of `recipes.latents`, trained so long: the first stage of all studies but of factors."""
        fields = recipes.latents(self.train.size, **shape)
        return self.trained("first-latents", fields, self.budget("first-latents", fields, hours))

    def pixels(self, name: str = "pixels") -> Path:
        """The model folder of the identity, f = 1: its shift and scale measured, nothing trained."""
        folder = self.run(name) / "model"
        if not (folder / "model.yaml").is_file():
            codec = Codec(FirstStage.model_validate({"kind": "identity", "image_channels": self.train.channels}))
            begins = range(0, len(self.train), 128)
            parts = (range(b, min(b + 128, len(self.train))) for b in begins)
            codec.measure(codec.tally(codec.moments(stack(self.train, part))) for part in parts)
            codec.save(folder)
        return folder

    def protocol(self, **more: Any) -> dict[str, Any]:
        """How everything is measured; `more` is the study's own."""
        return {
            "machine": environment(self.device), "data": self.data, "train": self.train.fingerprint[:12], "features": self.network.told(),
            "distances": f"against {len(self.shown):,} pictures, one of each family of the training part", "images a seed": self.images, "sampling seeds": list(self.seeds),
            "training seed": self.seed, "sampler": Generate.model_fields["sampler"].default, "steps": self.steps, "guidance": 1.0,
            "hours": self.hours, "device": str(self.device), "precision of sampling": str(self.dtype).removeprefix("torch."),
            "width of networks": self.scale, "precision of training": self.trains, **more,
        }  # fmt: skip


def whole(images: float, fields: Mapping[str, Any]) -> int:
    """A number of images that batches divide, four at the least."""
    batch = int(fields.get("training", {}).get("batch", 64))
    return max(round(images / batch), 4) * batch
