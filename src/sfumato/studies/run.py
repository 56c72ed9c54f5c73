"""A study by its name, from its budget to its page; trained once, or several times from other seeds."""

import dataclasses
import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from sfumato import files
from sfumato.studies.desk import Desk, say
from sfumato.studies.measure import weights
from sfumato.studies.names import CHOICES, HOURS
from sfumato.studies.result import Figure, Result, Table
from sfumato.studies.verdict import Claim, together

LEAST = 8  # images a sampling
CLOCK, TICK = "clock.json", 10.0  # seconds


def study(name: str, desk: Desk, command: str, *, trainings: int = 1, **more: Any) -> tuple[Result, Path]:
    """Run a study and write its page; returns what it found and where. Raises `ValueError` for an unknown name.

    With several `trainings` everything is trained as often, each from seeds of its own in an equal share of the hours,
    and a claim is decided by the trainings' means.
    """
    if name not in HOURS:
        raise ValueError(f"there is no study {name!r}; known: {', '.join(HOURS)}")
    run: Callable[..., Result] = importlib.import_module(f"sfumato.studies.{name}").study
    chosen = {**CHOICES.get(name, {}), **{key: more[key] for key in CHOICES.get(name, {}) if key in more}}
    desk = enough(desk)
    begun(desk, trainings, chosen)
    found = list[Result]()
    for k in range(trainings):
        folder = desk.folder / f"again-{k}" if k else desk.folder
        again = dataclasses.replace(desk, folder=folder)
        if k and not again.plan("precision"):  # one choice for all trainings, of which a claim takes the mean
            again.keep_plan("precision", {"auto": desk.faster})
        share = dataclasses.replace(
            desk,
            folder=folder,
            seed=k,
            hours=desk.hours / trainings,
            features=desk.features or desk.folder / "features",
        )
        found.append(clocked(share, run, **more, **{key: chosen[key] for key in chosen if key not in more}))
    result = joined(found)
    return result, result.write(desk.folder, command)


def enough(desk: Desk) -> Desk:
    """The desk with no more images a sampling than half of what training shows: more of a small set would be as many real
    pictures, all of them, against themselves."""
    if len(desk.shown) < 2 * LEAST:
        raise ValueError(f"a study wants {2 * LEAST} training pictures at the least; {desk.name} has {len(desk.shown)}")
    most = max(len(desk.shown) // 2, LEAST)
    if desk.images <= most:
        return desk
    say.print(f"{most} images a sampling seed rather than {desk.images}, for the set is small", highlight=False)
    return dataclasses.replace(desk, images=most)


def begun(desk: Desk, trainings: int, chosen: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Note what budgets hang on, a study's own choices among it. Raises `ValueError` where the study was begun with another:
    trainings hang on it already."""
    asked = {
        "--hours": desk.hours,
        "--trainings": trainings,
        "--scale": desk.scale,
        "--device": desk.device.type,
        "--precision": desk.precision,
        **{f"--{key}": spoken(value) for key, value in chosen.items()},
    }
    kept = desk.plan("asked") if desk.plan("images") or desk.plan("rates") else {}  # what nothing hangs on yet is free
    usual = {f"--{key}": spoken(value) for own in CHOICES.values() for key, value in own.items()} if kept else {}
    for option, value in asked.items():
        before = kept.get(option, usual.get(option, value))  # a study that began before there was a choice
        if before != value:
            told = before if isinstance(before, str) else f"{before:g}"
            raise ValueError(
                f"{desk.folder} holds this study with {option} {told}; go on with that, or choose another folder with --out"
            )
    if not kept:  # with another device another precision may be the faster one
        desk.keep_plan("precision", {})
    desk.keep_plan("asked", {**kept, **asked})


def before(folder: Path) -> dict[str, Any]:
    """What the study in a folder was begun with, `--hours` and more; {} where nothing was worked out there."""
    path = folder / "plan.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(kept.get("asked", {})) if kept.get("images") or kept.get("rates") else {}


def spoken(value: Any) -> Any:
    """A choice as its option is written: several with commas."""
    return value if isinstance(value, str) else ",".join(value)


def clocked(desk: Desk, run: Callable[..., Result], **more: Any) -> Result:
    """One training of a study; the time of all calls that it took is kept beside it, that of killed ones too."""
    with ticking(desk):
        found = run(desk, **more)
    found.hours = took(desk)
    found.tables.append(trainings_of(desk))
    return found


@contextmanager
def ticking(desk: Desk, every: float = TICK) -> Iterator[None]:
    """Keep `clock.json`, the hours of all calls, written every so many seconds, for a call that is killed tells nothing at
    its end."""
    before, begin, done = took(desk), time.perf_counter(), threading.Event()

    def tick() -> None:
        files.write(desk.folder / CLOCK, json.dumps({"hours": before + (time.perf_counter() - begin) / 3600}))

    def tell() -> None:
        while not done.wait(every):
            tick()

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        tick()


def took(desk: Desk) -> float:
    """Hours of all calls until now."""
    path = desk.folder / CLOCK
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else desk.plan("took")  # where it was before
    return float(kept.get("hours", 0.0))


def trainings_of(desk: Desk) -> Table:
    """What was trained: every run of the study, in the order in which they were planned."""
    lines = []
    for name, images in desk.plan("images").items():
        fields = yaml.safe_load((desk.run(name) / "recipe.yaml").read_text(encoding="utf-8"))
        steps, minutes = images // fields["training"]["batch"], desk.seconds(name) / 60
        lines.append(
            [name, f"{images:,}", f"{steps:,}", f"{minutes:.1f}", f"{weights(desk.run(name) / 'model') / 1e6:.1f} M"]
        )
    return Table(
        "What was trained",
        ["run", "images seen", "steps", "minutes", "weights, without those of a first stage before"],
        lines,
    )


def joined(results: Sequence[Result]) -> Result:
    """Several trainings of one study as one: claims by the trainings' means, the tables and figures of each."""
    first = results[0]
    if len(results) == 1:
        return first
    made = Result(
        first.name,
        first.title,
        f"{first.intro} Everything was trained {len(results)} times, from other seeds; speeds and powers above are of the first.",
    )
    made.protocol = {
        name: value if all(r.protocol.get(name) == value for r in results) else [r.protocol.get(name) for r in results]
        for name, value in first.protocol.items()
    }
    made.protocol["training seed"] = list(range(len(results)))
    if isinstance(each := made.protocol.pop("hours", None), float):
        made.protocol |= {"hours": each * len(results), "hours of a training": each}
    made.hours = sum(r.hours for r in results)
    for several in zip(*(r.claims for r in results), strict=True):
        told = "; ".join(f"training {k}: {c.measured}" for k, c in enumerate(several, 1))
        made.claims.append(Claim(several[0].text, together(several), told))
    for k, result in enumerate(results, 1):
        made.tables += [Table(f"{t.title}, training {k}", t.head, t.rows) for t in result.tables]
        made.figures += [Figure(f.path, f"{f.caption} (training {k})") for f in result.figures]
    return made
