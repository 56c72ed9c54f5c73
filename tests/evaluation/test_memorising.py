"""Copies of training pictures are told from pictures of the same kind."""

import pytest
import torch

from sfumato.evaluation.memorising import memorising, nearest


def kind(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))


def test_honest_samples_are_as_far_as_held_out_pictures() -> None:
    train = kind(400, 0)
    found = memorising(kind(500, 1), kind(500, 2), train)
    assert found["suspicious"] < found["expected"] + 4 * found["± by chance"]
    assert abs(found["samples"]["median"] - found["held_out"]["median"]) < 0.02


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
