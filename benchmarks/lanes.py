"""What lanes are worth: training steps of the demo's two recipes with and without, alternating in one run, as ratios.

python benchmarks/lanes.py [--rounds 5] [--steps 12]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from sfumato import device as devices
from sfumato.autoencoder.codec import Codec
from sfumato.training import recipe
from sfumato.training.loop import Loop
from sfumato.training.run import denoising, reconstruction


def loops(name: str, folder: Path) -> dict[str, Loop]:
    """The same training twice: with this machine's lanes, and with one."""
    where = torch.device("cpu")
    dtype = devices.precision("auto", where)
    made = {}
    for lanes in ("lanes", "one"):
        if name == "emoji-autoencoder":
            read = recipe.read(name)
            assert isinstance(read, recipe.AutoencoderRecipe)
            objective = reconstruction(read, where)
        else:
            read = recipe.read(name, [f"autoencoder={folder / 'first-stage'}"])
            assert isinstance(read, recipe.DiffusionRecipe)
            objective = denoising(read, folder / "run", where)
        made[lanes] = Loop(objective, read.training, folder, name, where, dtype, quiet=True)
        if lanes == "one":
            made[lanes] = alone(made[lanes])
    return made


def alone(loop: Loop) -> Loop:
    """The loop with one lane and one optimiser for all parameters."""
    from sfumato.training.optimizer import Optimizer

    loop.lanes = 1
    loop.ahead = loop._ahead()  # which cuts a step into as many parts as there are lanes when it is made
    loop.optimizers = {t: Optimizer(loop.learned[t], loop.configs[t], loop.dtype) for t in loop.learned}
    return loop


def rate(loop: Loop, steps: int) -> float:
    """Images a second."""
    batch = loop.config.batch
    begin = time.perf_counter()
    for _ in range(steps):
        loop.step(range(loop.images, loop.images + batch))
        loop.images += batch
    return steps * batch / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        read = recipe.read("emoji-autoencoder")
        assert isinstance(read, recipe.AutoencoderRecipe)
        Codec(read.autoencoder).save(folder / "first-stage")
        for name in ("emoji-autoencoder", "emoji"):
            both = loops(name, folder)
            found: dict[str, list[float]] = {"lanes": [], "one": []}
            for k in range(asked.rounds + 1):
                for which, loop in both.items():
                    speed = rate(loop, asked.steps)
                    if k:  # the first round warms up
                        found[which].append(speed)
            ratios = [a / b for a, b in zip(found["lanes"], found["one"], strict=True)]
            print(
                f"{name}: {both['lanes'].lanes} lanes {statistics.median(found['lanes']):.0f} images/s, "
                f"one {statistics.median(found['one']):.0f}; ratio {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
