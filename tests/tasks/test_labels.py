"""Classes in words: a name wins over a number, several are of one picture together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.conditioning.label import LabelConfig
from sfumato.families.autoregressive import AutoregressiveConfig
from sfumato.families.base import Shape, chosen
from sfumato.families.gan import GanConfig
from sfumato.streams import Stream
from sfumato.tasks import metadata
from sfumato.tasks.generate import modelled
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.requests import Generate
from sfumato.tasks.said import fields
from tests.tasks.test_tasks import built

NUMBERS = ["1", "2", "3", "5"]


@pytest.fixture(scope="module")
def numbered() -> Pipeline:
    return built({"class": {"kind": "label", "width": 8, "labels": NUMBERS}})


def array(picture: Image.Image) -> "np.ndarray[Any, Any]":
    return np.array(picture)


def test_a_name_wins_and_what_is_none_is_a_number(numbered: Pipeline) -> None:
    made = {one: array(numbered.generate(label=one, seed=0, steps=2)[0]) for one in (*NUMBERS, "0")}
    assert np.array_equal(made["0"], made["1"])  # no class is called 0, the first one is meant
    assert len({m.tobytes() for m in made.values()}) == 4
    assert fields(numbered.model, [None], ["3"]) == {"label": ["3"]}
    assert numbered.model.conditions.reader("label").index("3") == 2
    for wrong in ("4", "²"):
        with pytest.raises(ValueError, match=r"out of range|unknown label"):
            numbered.generate(label=wrong)


def test_a_class_is_told_by_its_number_in_python_too(numbered: Pipeline) -> None:
    one, two = (array(numbered.generate(label=label, seed=0, steps=2)[0]) for label in (0, "1"))
    assert np.array_equal(one, two)
    assert Generate(label=[0, "2"]).label == ["0", "2"]
    for wrong, said in ((9, "out of range"), (True, "label"), (2.5, "label")):
        with pytest.raises(ValueError, match=said):
            numbered.generate(label=wrong)


def test_a_family_takes_no_steps_and_tells_none(tmp_path: Path) -> None:
    family = GanConfig.model_validate({"width": 8, "latent": 8}).build(Shape(3, 16), (), None)
    whole = Pipeline(family, "gan")
    for said in ({"steps": 50}, {"sampler": "heun"}, {"grid": "even"}):
        with pytest.raises(ValueError, match="leave steps, sampler and grid out"):
            whole.generate(seed=0, **said)
    picture = whole.generate(seed=0)[0]
    metadata.save(picture, tmp_path / "a.png")
    assert not {"steps", "sampler", "grid"} & {*metadata.read(tmp_path / "a.png")}
    assert "Steps" not in picture.info["parameters"]
    assert "Seed: 0" in picture.info["parameters"]


def test_a_request_of_another_task_is_refused(numbered: Pipeline) -> None:
    with pytest.raises(ValueError, match="upscale takes a request of its own type, Upscale; got Generate"):
        numbered.upscale(Generate(seed=0))  # type: ignore[arg-type]


def test_a_family_reads_classes_alike() -> None:
    family = GanConfig.model_validate({"width": 8, "latent": 8}).build(Shape(3, 16), tuple(NUMBERS), None)
    asked = []

    def sample(noise: Any, labels: torch.Tensor, guidance: float) -> torch.Tensor:
        asked.append(int(labels[0]))
        return torch.zeros(len(labels), 3, 16, 16)

    family.sample = sample  # type: ignore[method-assign]
    for label in ("3", "0", None):
        list(modelled(family, Generate(label=label, seed=5)))
    assert asked == [2, 0, *chosen([5], 4)]  # one that it knows, where none is asked for
    with pytest.raises(ValueError, match="one class"):
        list(modelled(family, Generate(label=["1", "2"])))


def test_several_labels_are_of_one_picture_together(numbered: Pipeline, tmp_path: Path) -> None:
    one, both, turned = (numbered.generate(label=v, seed=0, steps=2)[0] for v in ("1", ["1", "5"], ["5", "1"]))
    assert array(both).tobytes() == array(turned).tobytes() != array(one).tobytes()
    assert array(numbered.generate(label=["1"], seed=0, steps=2)[0]).tobytes() == array(one).tobytes()
    config = LabelConfig(width=8, labels=tuple(NUMBERS))
    torch.manual_seed(0)
    encoder = config.build({})
    mean = encoder([["1", "5"]]).vector
    assert mean is not None
    torch.testing.assert_close(mean, (encoder(["1"]).vector + encoder(["5"]).vector) / 2)  # type: ignore[operator]
    for picture, label in ((one, "1"), (both, ["1", "5"])):
        metadata.save(picture, tmp_path / "a.png")
        assert metadata.read(tmp_path / "a.png")["label"] == label
    with pytest.raises(ValueError, match="list of labels is empty"):
        numbered.generate(label=[])


def test_what_cannot_be_guided_is_not(tmp_path: Path) -> None:
    gan = GanConfig.model_validate({"width": 8, "latent": 8}).build(Shape(3, 16), tuple(NUMBERS), None)
    with pytest.raises(ValueError, match="leave guidance out"):
        Pipeline(gan, "gan").generate(label="1", guidance=9.0, seed=0)
    picture = Pipeline(gan, "gan").generate(label="1", seed=0)[0]
    metadata.save(picture, tmp_path / "a.png")
    assert "guidance" not in metadata.read(tmp_path / "a.png")
    assert "CFG" not in picture.info["parameters"]
    with pytest.raises(ValueError, match="works in float32"):
        Pipeline(gan, "gan", torch.bfloat16)


def test_a_null_that_was_never_learned_guides_nothing() -> None:
    small = {"tokens": "palette", "side": 4, "width": 16, "depth": 1, "heads": 2, "drop": 0.0}
    family = AutoregressiveConfig.model_validate(small).build(Shape(3, 16), tuple(NUMBERS), None)
    with torch.no_grad():
        for p in family.transformer.parameters():
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    one, many = torch.tensor([1, 2]), Stream([0, 1])
    before = family.drawn(many, one, 3.0)
    with torch.no_grad():
        family.transformer.named.weight[-1] += 100.0
    assert torch.equal(family.drawn(many, one, 3.0), before)


def test_of_two_kinds_of_labels_each_is_told_its_own() -> None:
    two = built({
        "hue": {"kind": "label", "field": "colour", "width": 8, "labels": ["red", "blue", "both"]},
        "form": {"kind": "label", "field": "shape", "width": 8, "labels": ["cat", "dog", "both"]},
    })  # fmt: skip
    assert fields(two.model, [None], ["red"]) == {"colour": ["red"]}
    assert fields(two.model, [None] * 2, ["cat", "blue"]) == {"colour": ["blue"] * 2, "shape": ["cat"] * 2}
    assert fields(two.model, [None], ["both", "dog"]) == {"colour": ["both"], "shape": [["both", "dog"]]}
    assert len(two.generate(label=["red", "cat"], seed=0, steps=1)) == 1
    for word in ("green", "1"):
        with pytest.raises(
            ValueError, match=rf"no label of this model is called '{word}'; .*colour: red, blue, both; shape"
        ):
            two.generate(label=word, seed=0, steps=1)
