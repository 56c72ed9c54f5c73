"""The demo from start to end: plan, first stage, latents, denoiser, numbers, page."""

import json
import shlex
import shutil
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sfumato import device as devices
from sfumato import files
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Data
from sfumato.demo import plan as plans
from sfumato.demo import show
from sfumato.demo.plan import Plan
from sfumato.demo.report import Page, curves, percent
from sfumato.evaluation.run import evaluate_model
from sfumato.model import LatentDiffusion
from sfumato.tasks.pipeline import Pipeline
from sfumato.training.given import cached
from sfumato.training.rate import rate
from sfumato.training.run import denoising, reconstruction, train

say = Console(stderr=True)
FIRST, SECOND = "first-stage", "denoiser"


@dataclass
class Clock:
    """Seconds a stage, kept in the demo's folder: a resumed demo adds up, and what is only done again counts once."""

    path: Path
    begun: float = field(default_factory=time.perf_counter)  # when this session began
    finished: bool = False  # before it did: what was trained took what it took
    told: float = 0.0  # seconds of this session that stages have

    def read(self) -> dict[str, float]:
        """The seconds so far."""
        found: dict[str, float] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        return found

    @contextmanager
    def stage(self, name: str, again: bool = False) -> Iterator[None]:
        """Add what passes within to a stage's seconds, also when it is interrupted; or set them where all is done `again`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._note(name, time.perf_counter() - begin, again)

    def rest(self) -> None:
        """Add what passed outside of all stages: imports, reconstructions, the page."""
        self._note("rest", time.perf_counter() - self.begun - self.told, False)

    def _note(self, name: str, passed: float, again: bool) -> None:
        self.told += passed
        kept = self.read()
        if again or not self.finished or name not in kept:
            kept[name] = round(passed if again else kept.get(name, 0.0) + passed, 2)
            files.write(self.path, json.dumps(kept))


def demo(
    minutes: float,
    folder: Path,
    *,
    resume: bool,
    open_page: bool,
    device: str,
    quiet: bool = False,
    begun: float | None = None,
) -> Path:
    """Run the demo in `folder` and return the page's path; `begun` is when its seconds count from, by `perf_counter`.

    Raises `ValueError` where another demo is there, and `KeyboardInterrupt` as `stoppable` does.
    """
    where = devices.pick(device)
    plan = agreed(minutes, folder, resume)
    begun = time.perf_counter() if begun is None else begun
    clock = Clock(folder / "seconds.json", begun, (folder / "results.json").is_file())
    again = ["sfumato", "demo", "--minutes", told(minutes), "--out", str(folder), "--resume"]
    opened = Opener(open_page)

    def progress(images: int, preview: Path | None) -> None:
        if preview is not None:
            opened(live(folder))

    with stoppable(folder, clock, [*again, *(["--device", device] if device != "auto" else [])]):
        if plan is None:
            say.print(f"Measuring this machine, then training for about {minutes:g} minutes.")
            with clock.stage("measuring"):
                plan = measured(minutes, folder, where)
            plan.save(folder)
        first, second = plans.recipes(plan, folder)
        with clock.stage("first_stage"):
            train(first, folder / FIRST, resume=resume, device=device, quiet=quiet, watch=progress)
        with clock.stage("encode"):
            codec = Codec.load(folder / FIRST / "model").to(where)
            cached(codec, second.data.open("train"), folder / "latents", second.training.flip > 0)
        with clock.stage("denoiser"):
            train(second, folder / SECOND, resume=resume, device=device, quiet=quiet, watch=progress)
        shutil.copytree(folder / SECOND / "model", folder / "model", dirs_exist_ok=True)
        return finish(folder, plan, clock, second.data, where)


def told(minutes: float) -> str:
    """Minutes as the command line takes them, to the last digit."""
    return str(minutes).removesuffix(".0")


def agreed(minutes: float, folder: Path, resume: bool) -> Plan | None:
    """The plan that is in the folder, None where there is none yet. Raises `ValueError` where another demo is there."""
    plan = Plan.load(folder)
    elsewhere = "choose another folder with --out FOLDER (`make demo OUT=FOLDER`)"
    if plan is not None and not resume:
        raise ValueError(f"{folder} holds a demo already; add --resume to go on with it, or {elsewhere}")
    if plan is not None and plan.minutes != minutes:
        own = told(plan.minutes)
        raise ValueError(
            f"{folder} holds a demo of {own} minutes; go on with --minutes {own} (`make demo MINUTES={own}`), "
            f"or {elsewhere}"
        )
    return plan


@contextmanager
def stoppable(folder: Path, clock: Clock, again: Sequence[str]) -> Iterator[None]:
    """After whatever stops what is within, the page says so and how to go on, and reloads itself no more.

    Raises `KeyboardInterrupt` with the command that goes on.
    """
    onward = f"`{shlex.join(again)}` goes on"
    try:
        yield
    except BaseException as error:
        why = f"stopped by an error, {error}"
        if isinstance(error, KeyboardInterrupt):
            why = str(error).partition(";")[0] or "stopped"
        with suppress(OSError):  # a full disk may be what stopped it
            clock.rest()
            if not clock.finished and (folder / Page.file).is_file():
                live(folder, f"{why[:1].upper()}{why[1:]}; {onward}.")
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{why}; {onward}, and so does the same `make demo`") from error
        raise


def measured(minutes: float, folder: Path, where: torch.device) -> Plan:
    """The plan from short runs of both stages with weights that are thrown away."""
    first, second = plans.recipes(plans.budget(minutes, 100.0, 100.0), folder)
    stage = reconstruction(first, where)
    one = rate(stage, first.training, where)
    with _scratch(folder) as scratch:
        stage.codec.save(scratch / "model")
        loose = second.model_copy(update={"autoencoder": scratch / "model"})
        two = rate(denoising(loose, scratch / "denoiser", where), second.training, where)
    return plans.budget(minutes, one, two)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    path = folder / ".measuring"
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Opener:
    """Opens the page in a browser, once, if that was asked for."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.told = False

    def __call__(self, page: Path) -> None:
        if not self.told:
            say.print(f"The page is there and grows with the run: {page}", soft_wrap=True)
            self.told = True
        if self.wanted:
            webbrowser.open(page.resolve().as_uri())
            self.wanted = False


def live(folder: Path, stopped: str = "") -> Path:
    """The page while training runs, or after it was `stopped`, which says how."""
    second = (folder / SECOND / "samples").is_dir()
    page = Page(folder, status=stopped or f"Training the {'denoiser' if second else 'first stage'}.", live=not stopped)
    if second:
        growing(page, 6)
    newest = sorted((folder / FIRST / "samples").glob("*.png"))[-1:]
    for path in newest:
        page.heading("First stage so far", "Held-out emoji above, their reconstructions below.")
        page.figure(path, f"after {int(path.stem):,} images")
    losses(page)
    return page.write()


def growing(page: Page, rows: int) -> None:
    """One prompt set, one noise, along training."""
    paths = sorted((page.folder / SECOND / "samples").glob("*.png"))
    if len(paths) > rows:
        paths = [paths[round(k * (len(paths) - 1) / (rows - 1))] for k in range(rows)]
    if not paths:
        return
    page.heading("Growing sharper", "The same eight prompts from the same noise, while the denoiser learns.")
    for path in paths:
        page.figure(path, f"after {int(path.stem):,} images")
    page.trained(SECOND)


def losses(page: Page) -> None:
    """The curves of both stages."""
    plot = curves([("first stage", page.folder / FIRST, ("loss", "l1")), ("denoiser", page.folder / SECOND, ("loss",))])
    if plot is not None:
        page.heading("Curves")
        page.figure(plot, "losses against images seen")
        page.ran("tensorboard", "--logdir", page.folder)


def finish(folder: Path, plan: Plan, clock: Clock, data: Data, where: torch.device) -> Path:
    """Sample, measure, and write `results.json` and the last page."""
    page = Page(folder, live=False)
    with clock.stage("samples", again=True):
        pipeline = Pipeline.load(folder / "model", device=str(where), precision="auto")
        show.prompts(page, pipeline, data)
        show.guidance(page, pipeline)
        show.interpolation(page, pipeline)
    say.print("Measuring: reconstruction, held-out loss, caption match.")
    with clock.stage("evaluation", again=True):
        model = LatentDiffusion.load(folder / "model", where)  # with its whole weights: losses are measured too
        found = evaluate_model(model, data, captions=plan.captions, dtype=devices.precision("auto", where))
    show.reconstructions(page, pipeline, data)
    growing(page, 8)
    losses(page)
    page.write()  # once more with its numbers, of which the seconds are one
    clock.rest()
    seconds = clock.read()
    results = {
        "seconds": {"total": round(sum(seconds.values()), 1), **seconds},
        "plan": plan.model_dump(),
        **found,
    }
    files.write(folder / "results.json", json.dumps(results, indent=1))
    tables(page, results)
    path = page.write()
    say.print(f"Done in {results['seconds']['total'] / 60:.1f} minutes: {path}", soft_wrap=True)
    return path


def tables(page: Page, results: dict[str, Any]) -> None:
    """Numbers and times, with what they are to be compared with."""
    page.heading(
        "Caption match",
        "One sample a caption, compared at 16 pixels with every emoji: is its own the nearest, or among the ten nearest? "
        "The headline is the row of combinations that training never showed together.",
    )
    rows = []
    titles = {
        "held_out": "held-out combinations",
        "train": "recall of training captions",
        "held_out_bases": "held-out emoji",
    }
    for name, title in titles.items():
        cell = results["caption_match"][name]
        rows.append([f"{title} ({cell['count']})", percent(cell, "top1"), percent(cell, "top10")])
        for other in ("ceiling", "baseline", "chance"):
            rows.append([f"    {other}", percent(cell[other], "top1"), percent(cell[other], "top10")])
    page.table(["", "top 1", "top 10"], rows)
    page.ran(
        "sfumato", "evaluate", page.folder / SECOND, "--captions", results["plan"]["captions"], "--precision", "auto"
    )
    rebuilt, loss = results["reconstruction"], results["denoising"]
    page.heading("Numbers and times")
    page.table(
        ["", ""],
        [
            [
                "reconstruction of held-out emoji",
                f"{rebuilt['psnr']:.2f} ± {rebuilt['psnr_error']:.2f} dB PSNR, {rebuilt['ssim']:.3f} SSIM",
            ],
            ["held-out denoising loss", f"{loss['loss']:.4f}; with shuffled captions {loss['shuffled']:.4f}"],
            ["images seen, first stage", f"{results['plan']['first_stage_images']:,}"],
            ["images seen, denoiser", f"{results['plan']['denoiser_images']:,}"],
            *([name.replace("_", " "), f"{value:.1f} s"] for name, value in results["seconds"].items()),
        ],
    )
    page.ran("sfumato", "demo", "--minutes", told(results["plan"]["minutes"]), "--out", f"{page.folder}-again")
