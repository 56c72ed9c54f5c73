"""How cost grows: images a second against resolution, batch, width, processes and data-set size, and a step's overhead.

    python benchmarks/growth.py --plot growth.png

One U-Net (width 64, two levels, words) on latents of 8 x 8, changed in one way at a time. A rate is that of the loop's
own steps, in the precision that `auto` chooses.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sfumato import device as devices
from sfumato.autoencoder.codec import Codec
from sfumato.training import recipe
from sfumato.training.log import Log
from sfumato.training.loop import Loop
from sfumato.training.rate import seconds_of_steps
from sfumato.training.run import denoising

BASE = {"width": 64, "batch": 64, "size": 64, "pictures": 512}
SWEEPS: dict[str, list[int]] = {
    "size": [32, 64, 128, 256], "batch": [4, 16, 64, 256], "width": [32, 64, 128, 256], "pictures": [128, 512, 2048, 8192],
}  # fmt: skip
AXES = {"size": "pixels a side", "batch": "batch", "width": "width", "pictures": "pictures", "processes": "processes"}


def pictures(folder: Path, count: int, size: int) -> None:
    """Random pictures, each with a caption."""
    rng = np.random.default_rng(0)
    for k in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{k:05d}.jpg")
        (folder / f"{k:05d}.txt").write_text(f"picture {k % 97}")


def second(data: dict[str, Any], first: Path, width: int, batch: int, pictures: int) -> recipe.DiffusionRecipe:
    """The denoiser's recipe."""
    read = recipe.parse(
        {
            "stage": "diffusion", "autoencoder": str(first), "data": data,
            "backbone": {"kind": "unet", "width": width, "multipliers": [1, 2], "attention": [2]},
            "conditioners": {"caption": {"kind": "text", "width": 128}},
            "training": {"images": 10_000_000, "batch": batch},
        }
    )  # fmt: skip
    assert isinstance(read, recipe.DiffusionRecipe)
    return read


def first_stage(folder: Path) -> Path:
    """A fresh first stage of factor 8: its weights do not matter here."""
    coder = dict(recipe.load_yaml("photo-f8")["autoencoder"]["coder"]) | {"channels": 4, "width": 32}
    read = recipe.parse(
        {
            "stage": "autoencoder", "autoencoder": {"kind": "kl", "coder": coder}, "data": "emoji",
            "training": {"images": 1000},
        }
    )  # fmt: skip
    assert isinstance(read, recipe.AutoencoderRecipe)
    codec = Codec(read.autoencoder)
    codec.save(folder)
    return folder


def loop_of(folder: Path, values: dict[str, int], optimizer: str = "muon") -> Loop:
    """A loop for these sizes, its data made and its latents encoded where they are not there."""
    where = devices.pick()
    name = f"{values['pictures']}-{values['size']}"
    pictured = folder / "data" / name
    if not pictured.is_dir():
        pictured.mkdir(parents=True)
        pictures(pictured, values["pictures"], values["size"])
    data = {"kind": "folder", "path": str(pictured), "size": values["size"]}
    read = second(data, folder / "first", values["width"], values["batch"], values["pictures"])
    training = read.training.model_copy(update={"optimizer": optimizer})
    objective = denoising(read, folder / "runs" / name, where)
    dtype = devices.precision("auto", where)
    return Loop(objective, training, Path(), "", where, dtype, quiet=True)


def rate(loop: Loop, seconds: float) -> float:
    """Images a second: the median step after those that warm up."""
    with loop.ahead:  # as in a training
        return loop.config.batch / statistics.median(seconds_of_steps(lambda number: stepped(loop, number), seconds))


def stepped(loop: Loop, number: int) -> None:
    """The n-th step, until it is done: an accelerator is only asked for it."""
    batch = loop.config.batch
    loop.step(range(number * batch, (number + 1) * batch))
    devices.wait(loop.device)


def overhead(loop: Loop, seconds: float, folder: Path, shared: bool = False) -> tuple[float, dict[str, float]]:
    """The share of a step that is not the network, and its parts: the step again, each time without one of them.

    A step is the loop's with what follows it, progress and a report: at every step, where a run reports every few hundred
    to thousand images, so the log's share is a bound.
    `network` is the step without all of them, so what it leaves out is forward and backward. Alternating, because
    machines are noisy.
    """
    batch = loop.config.batch
    parts = {tuple(part): loop.objective.batch(part) for part in loop.ahead.split(range(batch))}  # of every step
    kinds: dict[str, tuple[Any, str, Any]] = {
        "data": (loop.ahead, "make", lambda part: parts[tuple(part)]),
        "clipping": (torch.nn.utils, "clip_grad_norm_", lambda *given, **settings: torch.zeros(())),
        "optimiser": (loop, "optimizers", Still(loop)),
        "averages": (loop.averages, "update", lambda step: None),
        "log": (loop, "told", lambda log: None),
    }
    taken: dict[str, list[float]] = {"whole": [], **{name: [] for name in kinds}, "network": []}
    loop.told = lambda log: written(loop, log)  # type: ignore[attr-defined]
    with Log(folder, "overhead", loop.config.images, 0, quiet=True) as log:
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds or len(taken["whole"]) < 6:
            for name in list(taken) if len(taken["whole"]) % 2 else list(reversed(taken)):
                gone = list(kinds) if name == "network" else [name] if name in kinds else []
                kept = {n: getattr(*kinds[n][:2]) for n in gone}
                for n in gone:
                    setattr(*kinds[n])
                clock = time.process_time if shared else time.perf_counter
                start = clock()
                loop.step(range(batch))
                loop.images += batch
                loop.told(log)  # type: ignore[attr-defined]
                devices.wait(loop.device)
                taken[name].append(clock() - start)
                for n in gone:
                    setattr(*kinds[n][:2], kept[n])
    median = {name: statistics.median(times[1:]) for name, times in taken.items()}
    shares = {name: max(1 - median[name] / median["whole"], 0.0) for name in kinds}
    return 1 - median["network"] / median["whole"], shares


def written(loop: Loop, log: Log) -> None:
    """What the loop tells after a step: progress, and a report."""
    log.advance(loop.images)
    loop._report(log)


class Still(dict[str, Any]):
    """Optimisers that only drop the gradients."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop.optimizers)
        self.loop = loop

    def __getitem__(self, turn: str) -> Any:
        class Nothing:
            @staticmethod
            def step(rate: float) -> None:
                for module in self.loop.learned[turn]:
                    module.zero_grad(set_to_none=True)

        return Nothing()


def several(folder: Path, processes: int, seconds: float) -> float:
    """Images a second of all processes together, a thread each, by torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, __file__, "--member", str(folder), "--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return float(next(line for line in out.splitlines() if line.startswith("rate ")).split()[1])


def member(folder: Path, seconds: float) -> None:
    """What each of several processes does."""
    from sfumato import distributed

    with distributed.joined():
        loop, taken = loop_of(folder, BASE), []
        for number in range(12):  # the same number for all: they meet in every step
            begin = time.perf_counter()
            stepped(loop, number)
            taken.append(time.perf_counter() - begin)
        if distributed.chief():
            print(f"rate {BASE['batch'] / statistics.median(taken[3:])}", flush=True)
    sys.stdout.flush()
    os._exit(0)


def plot(found: dict[str, dict[int, float]], path: Path) -> None:
    """A panel a sweep, both axes in logarithms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(found), 3.2), layout="constrained")
    every = [rate for values in found.values() for rate in values.values()]
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if 0.5 * min(every) < t < 2 * max(every)]
    for place, (name, values) in enumerate(found.items(), 1):
        axes = figure.add_subplot(1, len(found), place)
        axes.plot(list(values), list(values.values()), "o-")
        axes.set(xscale="log", yscale="log", xlabel=AXES[name])
        axes.set_xticks(list(values), [str(v) for v in values])
        axes.set_yticks(ticks, [str(t) for t in ticks])
        axes.set_ylim(0.7 * min(every), 1.4 * max(every))
        axes.minorticks_off()
        axes.grid(alpha=0.3, which="both")
        if place == 1:
            axes.set_ylabel("images a second, training")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of steps a point")
    parser.add_argument("--overhead", action="store_true", help="only the share of a step that is not the network")
    parser.add_argument(
        "--shared", action="store_true", help="the overhead in processor time, for cores that others use"
    )
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--member", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.member:
        member(asked.member, asked.seconds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first_stage(folder / "first")
        for optimizer in ("adamw", "muon"):
            for width in (64, 128):
                loop = loop_of(folder, BASE | {"width": width}, optimizer)
                share, parts = overhead(loop, 3 * asked.seconds, folder / "log", asked.shared)
                told = ", ".join(f"{name} {100 * value:.1f} %" for name, value in parts.items())
                print(
                    f"{optimizer}, width {width}: {100 * share:.1f} % of a step is not the network ({told})", flush=True
                )
        if asked.overhead:
            return
        found: dict[str, dict[int, float]] = {}
        for name, values in SWEEPS.items():
            found[name] = {v: rate(loop_of(folder, BASE | {name: v}), asked.seconds) for v in values}
            print(f"{AXES[name]}: " + ", ".join(f"{v}: {r:.0f}" for v, r in found[name].items()), flush=True)
        found["processes"] = {n: several(folder, n, asked.seconds) for n in (1, 2, 4)}
        print("processes: " + ", ".join(f"{v}: {r:.0f}" for v, r in found["processes"].items()), flush=True)
    if asked.plot:
        plot(found, asked.plot)
    if asked.json:
        asked.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
