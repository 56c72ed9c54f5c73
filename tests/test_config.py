"""The kind is the file, typos end early, and what is dumped can be read back."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.kl import KLConfig
from sfumato.config import Config, explain, known, trusting
from sfumato.data.base import Data


def test_kinds_are_found_without_a_registry() -> None:
    assert known(FirstStage) == ["identity", "kl", "tiny", "vq"]
    assert known(Data) == ["emoji", "folder", "scenes", "table"]


def test_a_dumped_choice_reads_back_with_all_its_fields() -> None:
    config = FirstStage.model_validate({"kind": "kl", "coder": {"width": 32, "factor": 4}})
    assert isinstance(config, KLConfig)
    assert FirstStage.model_validate(config.model_dump(mode="json")) == config
    assert config.model_dump()["coder"]["width"] == 32


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="known kinds: identity, kl"):
        FirstStage.model_validate({"kind": "kll"})


@pytest.mark.parametrize(
    "path", ["./pictures", "../pictures", ".hidden", "/abs/pictures", "/abs/pictures.d", "a/b", "~/a"]
)
def test_a_path_is_no_kind_and_its_place_is_said(path: str) -> None:
    for value in (path, {"kind": path}):
        with pytest.raises(ValidationError, match="known kinds: emoji, folder") as caught:
            Data.model_validate(value)
        assert f"a folder of pictures is given as data.kind=folder data.path={path}" in str(caught.value)
    with pytest.raises(ValidationError, match="known kinds: identity, kl, tiny, vq "):
        FirstStage.model_validate(path)


def test_an_unknown_key_is_named_with_its_place() -> None:
    with pytest.raises(ValidationError) as caught:
        FirstStage.model_validate({"kind": "kl", "coder": {"widht": 3}})
    assert "coder.widht: unknown key" in explain(caught.value, "recipe.yaml")


def test_foreign_code_runs_only_where_it_is_trusted() -> None:
    with trusting(False), pytest.raises(ValidationError, match="trust=True"):
        FirstStage.model_validate({"kind": "somewhere.else"})
    with pytest.raises(ValidationError, match="there is no module"):
        FirstStage.model_validate({"kind": "somewhere.else"})
    assert isinstance(FirstStage.model_validate({"kind": "sfumato.autoencoder.kl"}), KLConfig)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"factor": 6}, "power of two"),
        ({"factor": 4, "stem": 8}, "stem 8 is larger"),
        ({"factor": 8, "multipliers": [1, 2]}, "4 levels"),
        ({"factor": "eight"}, "valid integer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FirstStage.model_validate({"kind": "kl", "coder": fields})


class Numbers(Config):
    share: float = 0.0
    count: int | None = None
    several: int | Literal["auto"] = 1
    truth: bool = False
    either: bool | float = 0.0
    word: Literal["on", "off"] | int = 1
    inner: Annotated[float, Field(ge=0)] = 0.0


@pytest.mark.parametrize("name", ["share", "count", "several", "inner"])
def test_a_truth_is_no_number(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is a number, and true is none; give a number"):
        Numbers.model_validate({name: True})


def test_truths_stay_where_they_are_asked_for() -> None:
    found = Numbers.model_validate({"truth": True, "either": True, "share": 1, "count": None, "several": "auto"})
    assert (found.truth, found.either, found.share, found.count, found.several) == (True, True, 1.0, None, "auto")
