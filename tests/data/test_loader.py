"""What is shown when is a function of the seed and the position alone."""

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data import loader
from sfumato.data.emoji import EmojiData

PART = EmojiData(size=8).open("train")


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
