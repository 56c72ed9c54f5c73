"""Holes are filled from what is around them, and what lay in them is gone."""

import pytest
import torch

from sfumato.nn.fill import smooth


def test_a_hole_is_filled_from_what_is_around_it() -> None:
    picture = torch.full((1, 3, 40, 40), 0.5)
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 4:36, 4:36] = 1
    broken = torch.where(mask > 0, torch.tensor(9.0), picture)
    torch.testing.assert_close(smooth(broken, mask), picture, atol=1e-4, rtol=0)


def test_what_is_kept_stays_and_rows_are_filled_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    pictures, mask = torch.rand(3, 3, 24, 17, generator=rng), torch.zeros(3, 1, 24, 17)
    mask[0, :, :9], mask[1, :, :, 5:] = 1, 1
    found = smooth(pictures, mask)
    assert torch.equal(found[2], pictures[2])
    assert torch.equal(torch.where(mask > 0, 0.0, found), torch.where(mask > 0, 0.0, pictures))
    for k in range(3):
        torch.testing.assert_close(smooth(pictures[k : k + 1], mask[k : k + 1])[0], found[k])
    assert float(found[0, :, :9].std()) < float(pictures[0, :, 9:].std())  # smooth, and no darker than what is kept
    assert abs(float(found[0, :, :9].mean() - pictures[0, :, 9:].mean())) < 0.1


def test_soft_places_are_mixtures() -> None:
    picture = torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)], -1)
    mask = torch.zeros(1, 1, 8, 16)
    mask[..., 8:10] = 0.5
    found = smooth(picture, mask)
    assert 0.5 < float(found[0, 0, 4, 8]) < 1.0
    assert torch.equal(found[..., 10:], picture[..., 10:])


@pytest.mark.parametrize("sides", [(64, 96), (64, 1024), (1, 64), (48, 16)])
def test_pictures_that_are_not_square_are_filled_whole(sides: tuple[int, int]) -> None:
    picture, mask = torch.full((1, 1, *sides), 0.7), torch.zeros(1, 1, *sides)
    mask[..., sides[1] // 3 : sides[1] - 1 if sides[0] == 64 else sides[1]] = 1
    torch.testing.assert_close(smooth(picture, mask), picture, atol=1e-4, rtol=0)
