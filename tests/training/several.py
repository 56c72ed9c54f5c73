"""What each of several processes runs in the tests of `test_distributed.py`."""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.multiprocessing import ProcessRaisedException, spawn

from sfumato import distributed
from sfumato.data.emoji import EmojiData
from sfumato.evaluation import run
from sfumato.evaluation.source import PartPictures, Sampled
from sfumato.features.network import Description, FeatureNetwork
from sfumato.model import LatentDiffusion
from sfumato.tasks.generate import generate
from sfumato.tasks.requests import Generate
from sfumato.training import interrupt, latents, validation
from sfumato.training.loop import Interrupted
from sfumato.training.recipe import Recipe
from sfumato.training.run import train


def together(processes: int, function: Callable[..., Any], *given: Any) -> None:
    """Run `function(*given)` in so many processes that are one group, as `torchrun` would start them."""
    for left in reversed(range(5)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        try:
            spawn(_member, args=(processes, port, function, given), nprocs=processes)
        except ProcessRaisedException as error:  # another test may have taken the port since
            if "EADDRINUSE" not in str(error) or not left:
                raise
        else:
            return


def _member(rank: int, processes: int, port: int, function: Callable[..., Any], given: Sequence[Any]) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    torch.set_num_threads(1)
    with distributed.joined():
        function(*given)
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter, which aborts a process that is done


def trained(recipes: dict[str, Recipe], folder: Path) -> None:
    """Train every recipe into a folder of its name."""
    for name, recipe in recipes.items():
        train(recipe, folder / name, device="cpu", quiet=True, resume=True)


def stopped(recipes: dict[str, Recipe], folder: Path) -> None:
    """Train every recipe until its first report, as if the user then stopped one of the processes."""
    interrupt.EVERY = 0.0  # so that they ask one another at every step
    for name, recipe in recipes.items():

        def stop(images: int, preview: Path | None, first: int = recipe.training.report) -> None:
            if images == first and preview is None:
                os.kill(os.getpid(), signal.SIGINT)

        with contextlib.suppress(Interrupted):
            train(recipe, folder / name, device="cpu", quiet=True, watch=stop)


loss = validation._loss


def used(model_folder: Path, folder: Path) -> None:
    """Encode, sample and measure; what was found goes to files of the folder."""
    model = LatentDiffusion.load(model_folder)
    part = EmojiData(size=32).open("held_out")
    stored = latents.encode(model.codec, part, folder / "latents", flip=True, shard=100)
    network = FeatureNetwork(torch.nn.Flatten(), Description(name="pixels", size=4))
    look = run.Looking(network, cache=folder / "features")
    found: dict[str, Any] = {"codec": run.evaluate_codec(model.codec, PartPictures(part, "emoji"), look)}
    request = Generate(prompt=["red heart", "cat face", "sun", "tree", "apple"], steps=3, batch=2, seed=1)
    sampled = Sampled(model, request, 40, part)
    found["samples"] = run.evaluate_images(sampled, PartPictures(part, "emoji"), look)
    batches: list[range] = []
    with mock.patch.object(validation, "_loss", lambda *given: (batches.append(given[3]), loss(*given))[1]):
        found["denoising"] = validation.denoising(model, part, limit=128)
    assert len(batches) == 2 * 2 // distributed.place()[1]  # with the own words and with others'
    pictures = torch.cat([made.pictures for made in generate(model, request)])
    anew = request.model_copy(update={"seed": -1, "steps": 1})
    seeds = [seed for made in generate(model, anew) for seed in made.seeds]
    assert seeds == list(range(seeds[0], seeds[0] + 5))  # drawn once, not by every process
    if distributed.chief():
        torch.save({"rows": stored.rows(range(len(stored)), [True] * len(stored)), "pictures": pictures}, folder / "t")
        (folder / "found.json").write_text(json.dumps(found))


def parted(recipe: Recipe, folder: Path) -> None:
    """Train with gradients that do not meet, as where a module is not wrapped."""
    told = ""
    with mock.patch.object(distributed, "wrapped", lambda module, *_, **__: module):
        try:
            train(recipe, folder / "run", device="cpu", quiet=True)
        except ValueError as error:
            told = str(error)
    (folder / f"told-{distributed.place()[0]}").write_text(told)
