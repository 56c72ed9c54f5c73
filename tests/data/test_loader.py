"""What is shown when is a function of the seed and the position alone."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato import image
from sfumato.data import loader
from sfumato.data.base import Part
from sfumato.data.emoji import EmojiData

PART = EmojiData(size=8).open("train")


class Worded(Part):
    """Black pictures with these captions."""

    def __init__(self, captions: list[str]) -> None:
        self.captions = [[c] for c in captions]
        self.channels, self.size, self.fingerprint, self.labels = 3, 4, "", ()
        self.families = [[k] for k in range(len(captions))]

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, index: int) -> torch.Tensor:
        return torch.zeros(3, 4, 4, dtype=torch.uint8)

    def fields(self, index: int) -> dict[str, Any]:
        return {"caption": self.captions[index]}


@given(st.integers(0, 2**40), st.integers(0, 3), st.integers(1, 9))
@settings(deadline=None, max_examples=20)
def test_a_batch_is_its_positions_one_by_one(begin: int, seed: int, count: int) -> None:
    positions = range(begin, begin + count)
    whole = loader.batch(PART, seed, positions, flip=0.5)
    singles = [loader.batch(PART, seed, [p], flip=0.5) for p in positions]
    assert torch.equal(whole.images, torch.cat([s.images for s in singles]))
    assert whole.fields["caption"] == [s.fields["caption"][0] for s in singles]


def test_an_epoch_shows_every_family_once() -> None:
    count = len(PART.families)
    family = {k: n for n, several in enumerate(PART.families) for k in several}
    for epoch in (0, 3):
        shown = Counter(family[loader.draw(PART, 1, epoch * count + p)] for p in range(count))
        assert set(shown.values()) == {1}
        assert len(shown) == count


def test_a_contact_sheet_shows_what_the_network_sees() -> None:
    sheet = np.asarray(loader.preview(PART, seed=3, count=12, flip=0.5, columns=4))
    assert sheet.shape == (3 * 10 - 2, 4 * 10 - 2, 3)
    seen = image.to_uint8(loader.batch(PART, 3, range(12), flip=0.5).images)
    assert (sheet[10:18, 20:28] == seen[6].permute(1, 2, 0).numpy()).all()


def test_captions_that_name_a_side_are_never_mirrored() -> None:
    part = Worded(
        ["a car", "a car on the left", "Right hand", "leftwards hand", "a bright leftover", "clockwise arrows"]
    )
    assert [part.mirrors(k) for k in range(6)] == [True, False, False, False, True, False]
    planned = loader.plan(part, 0, range(600), flip=1.0)
    assert planned.flips == [part.mirrors(k) for k in planned.indices]


def test_one_of_several_captions_is_drawn_by_position() -> None:
    part = Worded(["a"])
    part.captions = [["a", "b", "c"]]
    said = [loader.plan(part, 0, [p]).fields["caption"][0] for p in range(60)]
    assert set(said) == {"a", "b", "c"}
    assert said == loader.plan(part, 0, range(60)).fields["caption"]


def test_variants_of_a_family_are_drawn_alike() -> None:
    part = Worded(["a"] * 6)
    part.families = [[0], [1, 2, 3, 4, 5]]
    shown = Counter(loader.draw(part, 0, p) for p in range(2000))
    assert shown[0] == 1000  # each family once an epoch, however many variants it has
    assert all(150 < shown[k] < 250 for k in range(1, 6))


def test_an_empty_part_says_so() -> None:
    with pytest.raises(ValueError, match="is empty"):
        loader.batch(Worded([]), 0, [0])


def test_seeds_and_epochs_differ() -> None:
    orders = [
        [loader.draw(PART, seed, begin + p) for p in range(20)] for seed in (0, 1) for begin in (0, len(PART.families))
    ]
    assert len({tuple(o) for o in orders}) == 4


def test_mirroring_happens_as_often_as_asked_and_only_where_allowed() -> None:
    planned = loader.plan(PART, 0, range(1000), flip=0.5)
    assert all(PART.mirrors(k) for k, f in zip(planned.indices, planned.flips, strict=True) if f)
    allowed = [f for k, f in zip(planned.indices, planned.flips, strict=True) if PART.mirrors(k)]
    assert 0.4 < sum(allowed) / len(allowed) < 0.6
    assert not any(loader.plan(PART, 0, range(100)).flips)
    shown, plain = (loader.batch(PART, 0, range(100), flip).images for flip in (0.5, 0.0))
    for k, flipped in enumerate(planned.flips[:100]):
        assert torch.equal(shown[k], plain[k].flip(-1) if flipped else plain[k])
