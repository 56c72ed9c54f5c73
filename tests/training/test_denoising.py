"""The denoiser's turn: what a batch says, and that what a recipe asks for reaches the network."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.conditioning.bundle import Bundle
from sfumato.data import loader
from sfumato.diffusion.prediction import prediction
from sfumato.training.diffusion import Denoising
from sfumato.training.recipe import parse
from sfumato.training.run import objective_of
from tests.conftest import diffusion_recipe

CPU = torch.device("cpu")


def test_what_is_said_of_a_mirrored_picture_is_mirrored_with_it(first_stage: Path) -> None:
    fields = diffusion_recipe(first_stage).model_dump(mode="json")
    fields |= {"conditioners": {"hole": {"kind": "masked"}}, "data": {"kind": "emoji", "size": 32, "masks": {}}}
    read = parse({**fields, "cache": False})
    batches = {}
    for flip in (0.0, 1.0):
        asked = read.model_copy(update={"training": read.training.model_copy(update={"flip": flip})})
        objective = objective_of(asked, first_stage / "run", CPU)
        assert isinstance(objective, Denoising)
        read_one = objective.model.conditions.reader("masked").read
        batches[flip] = [read_one(value) for value in objective.batch(range(16)).fields["masked"]]
        turned = [objective.train.mirrors(k) for k in loader.plan(objective.train, 0, range(16), 1.0).indices]
    assert any(turned)
    for before, shown, flipped in zip(batches[0.0], batches[1.0], turned, strict=True):
        for plain, found in zip(before, shown, strict=True):
            assert torch.equal(found, plain.flip(-1) if flipped else plain)


def test_conditions_are_made_worse_in_training_where_their_conditioner_does_that(
    first_stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(diffusion_recipe(first_stage), first_stage / "run", CPU)
    told: list[Any] = []
    real = Bundle.forward

    def forward(self: Bundle, *words: Any, **more: Any) -> Any:
        told.append((more["augment"], more["draws"]))
        return real(self, *words, **more)

    monkeypatch.setattr(Bundle, "forward", forward)
    batch = objective.batch(range(4))
    objective.turns["denoiser"](batch)
    assert told == [(True, batch.draws)]


def test_a_model_predicts_by_the_spread_that_its_recipe_tells(first_stage: Path) -> None:
    for spread in (0.5, 2.0):
        update = {"prediction": "edm", "data_std": spread}
        objective = objective_of(diffusion_recipe(first_stage).model_copy(update=update), first_stage / "run", CPU)
        assert isinstance(objective, Denoising)
        denoiser = objective.model.denoiser
        scales = denoiser.schedule(torch.tensor([0.3, 0.7]))
        for found, expected in zip(denoiser.prediction(scales), prediction("edm", spread)(scales), strict=True):
            torch.testing.assert_close(found, expected)
