"""Parts of parts: what is picked is as it was, and one of each family is the balance of training."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.data import loader
from sfumato.data.base import Data, Part
from sfumato.data.picked import Picked, one_each, uncropped


@pytest.fixture(scope="module")
def part() -> Part:
    return Data.model_validate({"kind": "emoji", "size": 16}).open("train")


def test_what_is_picked_is_as_it_was(part: Part) -> None:
    few = Picked(part, [5, 2, 9])
    assert (len(few), len(few.families), few.labels) == (3, 3, part.labels)
    assert torch.equal(few.image(1), part.image(2))
    assert few.fields(2) == part.fields(9)
    assert few.field(2, "caption") == part.field(9, "caption")
    assert few.mirrors(0) == part.mirrors(5)
    assert few.fingerprint != Picked(part, [5, 2, 8]).fingerprint
    assert few.fingerprint == Picked(part, [5, 2, 9]).fingerprint


def test_one_of_each_family_has_the_balance_that_training_shows(part: Part) -> None:
    each = one_each(part)
    assert isinstance(each, Picked)
    assert [sum(k in set(family) for k in each.indices) for family in part.families] == [1] * len(part.families)
    assert one_each(each) is each  # families of one
    count = 4 * len(part.families)
    shown = Counter(part.labels[part.fields(loader.draw(part, 0, p))["label"]] for p in range(count))
    there = Counter(part.labels[each.fields(k)["label"]] for k in range(len(each)))
    assert {name: shown[name] / count for name in there} == pytest.approx(
        {name: there[name] / len(each) for name in there}, abs=0.01
    )
    alike = Counter(part.labels[part.fields(k)["label"]] for k in range(len(part)))
    assert abs(alike["People & Body"] / len(part) - there["People & Body"] / len(each)) > 0.2


def test_of_squares_the_whole_ones_alone_are_kept(part: Part, tmp_path: Path) -> None:
    for k in range(4):
        Image.effect_noise((24 + k, 16), 90).save(tmp_path / f"{k}.png")
    fields = {"kind": "folder", "path": str(tmp_path), "size": 16, "held_out": 0, "crops": 3}
    several = Data.model_validate(fields).open("train")
    whole, one = uncropped(several), Data.model_validate({**fields, "crops": 1}).open("train")
    assert (len(several), len(whole)) == (12, 4)
    assert all(torch.equal(whole.image(k), one.image(k)) for k in range(4))
    assert uncropped(part) is part
