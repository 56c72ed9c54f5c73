"""Area averages are exact for any two grids, and the rescaler arrives where it is told."""

import pytest
import torch
from torch.nn import functional as F

from sfumato.nn.position import stretched
from sfumato.nn.rescale import Rescaler, area, shares


@pytest.mark.parametrize("size", [(4, 3), (8, 12), (1, 1)])
def test_area_is_the_mean_of_whole_blocks(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(area(x, size), F.adaptive_avg_pool2d(x, size))


@pytest.mark.parametrize("out", [1, 3, 5, 7, 20])
def test_shares_count_every_place_once(out: int) -> None:
    found = shares(7, out)
    torch.testing.assert_close(found.sum(1), torch.ones(out))
    torch.testing.assert_close(found.sum(0), torch.full((7,), out / 7))
    assert (found > 0).sum(1).max() <= -(-7 // out) + 1


def test_a_finer_grid_repeats_places() -> None:
    x = torch.tensor([[1.0, 2.0]])[None, None]
    assert area(x, (2, 4))[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


@pytest.mark.parametrize("stages", [0, 1, 3])
def test_the_rescaler_arrives_at_the_grid(stages: int) -> None:
    rescale = Rescaler(3, 5, stages)
    assert rescale(torch.zeros(1, 3, *rescale.before((5, 7)))).shape == (1, 5, 5, 7)


def test_a_learned_table_is_itself_on_its_own_grid() -> None:
    table = torch.randn(6, 3, 3)
    assert torch.equal(stretched(table, (3, 3)), table.flatten(1).T)
    assert stretched(table, (2, 5)).shape == (10, 6)


def test_areas_are_as_exact_while_networks_run_in_half_precision() -> None:
    x = torch.rand(1, 2, 10, 14)
    whole = area(x, (4, 6))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(area(x, (4, 6)), whole)
