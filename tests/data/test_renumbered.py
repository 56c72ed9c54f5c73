"""Classes of other data, by the numbers that a model has for them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.base import Data
from sfumato.data.renumbered import renumbered
from sfumato.evaluation import doors
from sfumato.evaluation.doors import Asked


def pictures(path: Path, *classes: str) -> Path:
    for k, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for number in range(6):
            noise = np.random.default_rng(10 * k + number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path / name / f"{number}.png")
    return path


def test_classes_are_read_by_name_and_unknown_ones_are_not_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = Data.model_validate(
        {"kind": "folder", "path": str(pictures(tmp_path / "a", "dog", "hen", "horse")), "size": 16}
    )
    part = data.open("train")
    assert renumbered(part, part.labels) is part
    assert renumbered(part, ()) is part
    assert renumbered(part, ("a", "b", "c")) is part  # called otherwise, number by number
    found = renumbered(part, ("cat", "dog", "horse"))
    assert "classes that the model does not know are not told it: hen; it knows cat, dog, horse" in caplog.text
    assert found.labels == ("cat", "dog", "horse")
    assert found.fingerprint != part.fingerprint
    assert list(found.families) == list(part.families)
    for k in range(len(part)):
        name = part.labels[part.field(k, "label")]
        expected = {"dog": 1, "hen": None, "horse": 2}[name]
        assert found.field(k, "label") == found.fields(k)["label"] == found.told(k)["label"] == expected
        assert found.field(k, "name") == part.field(k, "name")


def test_what_is_derived_of_pictures_is_derived_still(tmp_path: Path) -> None:
    folder = str(pictures(tmp_path / "a", "dog", "hen"))
    data = Data.model_validate({"kind": "folder", "path": folder, "size": 16, "degrade": {"factor": 2}})
    told = renumbered(data.open("train"), ("cat", "dog")).told(0)
    assert told["lowres"].shape == (3, 8, 8)


def test_an_evaluation_on_other_data_tells_the_model_s_own_classes(tmp_path: Path) -> None:
    own, other = pictures(tmp_path / "own", "cat", "dog", "horse"), pictures(tmp_path / "other", "dog", "horse")
    recipe = {"kind": "folder", "path": str(own), "size": 16}
    asked, labels = Asked(Path("model"), data=str(other)), ("cat", "dog", "horse")
    for said in (recipe, {**recipe, "path": str(tmp_path / "gone")}):  # beside the run's data, and where these are gone
        part = doors._data(asked, said, 16, 3, labels).open("held_out")
        assert part.labels == labels
        assert {part.field(k, "label") for k in range(len(part))} <= {1, 2}
    data = doors._data(Asked(Path("model")), {**recipe, "path": str(other)}, 16, 3, labels)  # the run's own, too
    for name in ("train", "held_out"):
        part = data.open(name)
        assert {part.field(k, "label") for k in range(len(part))} <= {1, 2}
    named = doors._data(asked, {**recipe, "path": str(tmp_path / "gone"), "degrade": {"factor": 2}}, 16, 3, labels)
    assert named.open("train").told(0)["lowres"].shape == (3, 8, 8)
