"""How long a step is, told to the network: nothing at first, and never a longer one than was asked."""

import pytest
import torch
from pydantic import ValidationError

from sfumato.conditioning.bundle import Bundle
from sfumato.conditioning.stride import StrideConfig


def test_it_says_nothing_before_it_is_trained_and_nothing_said_is_the_stride_0() -> None:
    torch.manual_seed(0)
    stride = StrideConfig(width=16, finest=8).build({})
    bundle = Bundle({"stride": stride})
    for said in ({"stride": [0.0, 0.5, 1.0]}, {}):
        fresh = bundle(said, 3).vector
        assert fresh is not None
        assert torch.equal(fresh, torch.zeros(3, 16))
    torch.nn.init.normal_(stride.tell.layers[-1].weight)  # type: ignore[arg-type]
    told = bundle({"stride": [0.0, None, 0.5, 1.0]}, 4).vector
    null = bundle.null(4).vector
    assert told is not None
    assert null is not None
    assert torch.allclose(told[:2], null[:2], atol=1e-6)
    assert len({tuple(row.tolist()) for row in told[1:]}) == 3
    assert bundle.kept == {"stride"}


@pytest.mark.parametrize(
    ("length", "told"),
    [(1, 1), (0.75, 0.5), (0.5, 0.5), (1 / 3, 0.25), (0.6 / 2, 0.25), (0.2, 0), (1 / 8, 0), (1 / 9, 0), (0.0, 0)],
)
def test_a_length_is_told_as_the_longest_known_one_that_is_no_longer(length: float, told: float) -> None:
    assert StrideConfig(finest=8).build({}).known(length) == told


def test_a_length_of_inexact_arithmetic_is_its_power_of_two() -> None:
    stride = StrideConfig(finest=1024).build({})
    assert [stride.known(2.0**-k * (1 - 1e-12)) for k in range(10)] == [2.0**-k for k in range(10)]


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "far", (0.5, 0.5), [0.5]])
def test_what_is_no_length_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="stride is how long a step is, a number from 0 to 1"):
        StrideConfig().build({})([value])


@pytest.mark.parametrize(("fields", "words"), [({"finest": 24}, "power of two"), ({"dropout": 0.1}, "less than or eq")])
def test_it_is_halved_and_never_dropped(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StrideConfig.model_validate(fields)
