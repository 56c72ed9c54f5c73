"""Boxes: their forms, their errors, crops and windows, and masks that really mask."""

from typing import Any

import pytest
import torch

from sfumato.conditioning.boxes import Box, Boxes, BoxesConfig, cropped, mirrored
from sfumato.windows import Window
from tests.conditioning.settings import setting

DOG, CAT = ("dog", 0.1, 0.2, 0.5, 0.9), {"label": "cat", "box": [0.0, 0.0, 1.0, 0.5]}


def boxes(**fields: Any) -> Boxes:
    torch.manual_seed(0)
    config, files = BoxesConfig(width=16, heads=2, **fields).learn([[DOG, CAT]], ())
    assert files == {}
    assert isinstance(config, BoxesConfig)
    return config.build({}).eval()


def test_boxes_are_tokens_and_padding_changes_nothing() -> None:
    encoder = boxes(most=3)
    assert encoder.labels == ("cat", "dog")
    assert encoder.sizes == (0, 16, 0)
    alone, together = encoder([[DOG]]), encoder([[DOG], [CAT, DOG, CAT]])
    assert alone.tokens is not None
    assert together.tokens is not None
    assert together.mask is not None
    assert together.tokens.shape == (2, 3, 16)
    assert together.mask.tolist() == [[True, False, False], [True, True, True]]
    torch.testing.assert_close(together.tokens[0, :1], alone.tokens[0])
    assert not torch.allclose(together.tokens[1, 1], alone.tokens[0, 0])  # boxes of a picture see one another


def test_forms_names_and_numbers_say_the_same() -> None:
    encoder = boxes()
    for same in (("cat", 0, 0, 1, 0.5), [0, 0.0, 0.0, 1.0, 0.5], {"label": 0, "box": (0, 0, 1, 0.5)}):
        assert torch.equal(encoder([[same]]).tokens, encoder([[CAT]]).tokens)  # type: ignore[arg-type]
    a, b = encoder([[("cat", 0, 0, 1, 0.5)]]).tokens, encoder([[("cat", 0, 0, 1, 0.51)]]).tokens
    assert a is not None
    assert b is not None
    assert float((a - b).detach().abs().max()) > 1e-3  # as fine as they are given


def test_half_precision_keeps_boxes_apart_that_differ_by_less_than_its_numbers() -> None:
    encoder = boxes().bfloat16()
    near, far = 0.503, 0.505  # one number of bfloat16
    assert torch.tensor(near).bfloat16() == torch.tensor(far).bfloat16()
    a, b = (encoder([[("cat", left, 0, 1, 0.5)]]).tokens for left in (near, far))
    assert a is not None
    assert b is not None
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([("dog", 0.1, 0.1, 1.2, 0.5)], "outside the picture; corners are shares"),
        ([("dog", -0.1, 0.1, 0.2, 0.5)], "outside the picture"),
        ([("dog", float("nan"), 0.1, 0.2, 0.5)], "outside the picture"),
        ([("dog", 0.5, 0.1, 0.2, 0.5)], "reversed or empty; give the upper left"),
        ([("dog", 0.1, 0.5, 0.2, 0.5)], "reversed or empty"),
        ([("dgo", 0.1, 0.1, 0.2, 0.5)], "unknown class 'dgo'; nearest: dog; the model knows cat, dog"),
        ([(2, 0.1, 0.1, 0.2, 0.5)], "class 2 is out of range: numbers go from 0 to 1"),
        ([("dog", 0.1, 0.1, 0.2)], "a box is"),
        ([{"label": "dog"}], "a box is"),
        ([("dog", "a", 0.1, 0.2, 0.3)], "corners as numbers"),
        (DOG, "a box is"),
        ("dog", "is a list of boxes"),
        ([DOG] * 33, "33 boxes, this model reads 32; leave some out"),
    ],
)
def test_boxes_that_cannot_be_read_are_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        boxes()([value])


def test_boxes_of_data_without_names_ask_for_them() -> None:
    with pytest.raises(ValueError, match="name `labels`"):
        BoxesConfig().learn([[(0, 0, 0, 1, 1)]], ())
    config, _ = BoxesConfig().learn([], ["a", "b"])
    assert config.labels == ("a", "b")  # type: ignore[attr-defined]


def test_boxes_that_would_stop_training_are_told_before_it() -> None:
    with pytest.raises(
        ValueError, match=r"1 of 2 pictures have too many boxes, one has 4 .* reads 3; give it `most: 4`"
    ):
        BoxesConfig(most=3).learn([[DOG], None, [DOG, CAT] * 2], ())
    BoxesConfig(most=4).learn([[DOG], None, [DOG, CAT] * 2], ())
    for names in ({"labels": ("cat",)}, {}):
        with pytest.raises(ValueError, match="unknown class 'dog'"):
            BoxesConfig(**names).learn([[DOG, CAT]], ("cat",))


def test_crops_and_mirrors_move_boxes() -> None:
    assert cropped([DOG, CAT], (0.5, 0.5, 1.0, 1.0)) == []
    (left,) = cropped([("dog", 0.25, 0.25, 0.75, 0.75)], (0.5, 0.0, 1.0, 1.0))
    assert left == Box("dog", 0.0, 0.25, 0.5, 0.75)
    assert cropped([("dog", 0.25, 0.25, 0.75, 0.75)], (0.7, 0.0, 1.0, 1.0), least=0.2) == []
    assert mirrored([("dog", 0.25, 0.0, 0.5, 1.0)]) == [Box("dog", 0.5, 0.0, 0.75, 1.0)]


def test_a_window_sees_the_boxes_in_it_in_its_own_coordinates() -> None:
    encoder, whole = boxes(), [[("dog", 0.5, 0.0, 0.75, 1.0)]]
    seen = encoder(whole, setting((4, 8), window=Window(0, 4, 4, 4)))
    own = encoder([[("dog", 0.0, 0.0, 0.5, 1.0)]])
    assert torch.equal(seen.tokens, own.tokens)  # type: ignore[arg-type]
    empty, null = encoder(whole, setting((4, 8), window=Window(0, 0, 4, 4))), encoder.null(1)
    assert torch.equal(empty.tokens, null.tokens)  # type: ignore[arg-type]
    assert empty.mask is not None
    assert empty.mask.all()


def test_a_part_that_reaches_over_the_right_edge_sees_the_boxes_of_the_left() -> None:
    left, right = ("a", 0.0, 0.2, 0.1, 0.4), ("b", 0.8, 0.0, 0.9, 1.0)
    found = cropped([left, right], (0.75, 0.0, 1.25, 1.0))
    assert {b.label: b[1:] for b in found} == {
        "b": pytest.approx((0.1, 0.0, 0.3, 1.0)),
        "a": pytest.approx((0.5, 0.2, 0.7, 0.4)),
    }
    assert [b.label for b in cropped([left, right], (0.5, 0.0, 1.0, 1.0))] == ["b"]
