"""Copies of training pictures are told from pictures of the same kind."""

import itertools

import pytest
import torch

from sfumato.evaluation.memorising import chance, listed, memorising, nearest


def kind(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))


def test_honest_samples_are_as_far_as_held_out_pictures() -> None:
    train = kind(400, 0)
    found = memorising(kind(500, 1), kind(500, 2), train)
    assert found["suspicious"] < found["expected"] + 4 * found["± by chance"]
    assert abs(found["samples"]["median"] - found["held_out"]["median"]) < 0.02


@pytest.mark.parametrize("held_out", [3, 10, 25, 60, 120, 260])
def test_honest_samples_are_not_accused_where_few_pictures_are_held_out(held_out: int) -> None:
    """Over many sets: the mean, its spread and the tail are those that the report says."""
    train, runs = kind(60, 0), 300
    found = [memorising(kind(40, 2 * k + 1), kind(held_out, 2 * k + 2), train) for k in range(runs)]
    shares = torch.tensor([f["suspicious"] for f in found])
    expected, spread = found[0]["expected"], found[0]["± by chance"]
    assert expected == pytest.approx(max(1, round(0.01 * (held_out + 1))) / (held_out + 1))
    assert float(shares.mean()) == pytest.approx(expected, abs=4 * spread / runs**0.5)
    assert float(shares.std()) == pytest.approx(spread, rel=0.35)
    for level in (0.05, 0.2):
        assert sum(f["chance"] <= level for f in found) / runs < level + 4 * (level * (1 - level) / runs) ** 0.5


def test_the_tail_is_that_of_all_orders() -> None:
    """Three samples and two held-out values: of the ten orders, in so many so many samples are below the first or second."""
    orders = list(itertools.combinations(range(5), 2))  # places of the held-out values
    for k in (1, 2):
        below = [held[k - 1] - (k - 1) for held in orders]
        for nearer in range(4):
            assert chance(nearer, 3, k, 2) == pytest.approx(sum(b >= nearer for b in below) / len(orders))
    assert chance(50_000, 50_000, 50, 5000) < 1e-9


def test_copies_are_found_where_a_held_out_picture_is_one_too() -> None:
    train = kind(50, 0)
    found = memorising(train[:20], torch.cat([train[:1], kind(9, 1)]), train)
    assert found["suspicious"] == 1
    assert found["chance"] < 0.01


def test_every_sample_has_its_nearest_training_picture() -> None:
    train = kind(30, 0)
    found = listed(nearest(train.flip(0), train))
    assert sorted((r["index"], r["nearest"]) for r in found) == [(k, 29 - k) for k in range(30)]
    far = [r["distance"] for r in listed(nearest(kind(40, 1), train))]
    assert far == sorted(far)
    assert len(far) == 40


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_copies_are_found_and_named(share: float) -> None:
    train, samples = kind(400, 0), kind(300, 1)
    copies = int(300 * share)
    samples[:copies] = 3 * train[50 : 50 + copies] + 0.01 * kind(copies, 3)
    found = memorising(samples, kind(500, 2), train)
    assert found["suspicious"] >= share
    assert all(k < copies and index == 50 + k for k, index, _ in found["pairs"])


def test_distances_are_of_directions() -> None:
    bank = torch.eye(3)
    found = nearest(torch.tensor([[5.0, 0, 0], [0, -1.0, 0]]), bank)
    assert found.distances.tolist() == pytest.approx([0.0, 2**0.5])
    assert int(found.indices[0]) == 0
    with pytest.raises(ValueError, match="nothing to compare"):
        nearest(torch.zeros(0, 3), bank)
