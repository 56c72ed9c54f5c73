"""Which family is shown when: every one once an epoch, whatever their number, and without a list of many."""

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import streams
from sfumato.data import loader
from sfumato.data.base import Part
from sfumato.data.table import Singles


class Many(Part):
    """So many pictures as there are never."""

    channels, size, fingerprint, labels = 3, 8, "many", ()

    def __init__(self, count: int) -> None:
        self.families = Singles(count)

    def __len__(self) -> int:
        return len(self.families)

    def image(self, index: int) -> Tensor:
        return torch.full((3, 8, 8), index % 256, dtype=torch.uint8)

    def fields(self, index: int) -> dict[str, Any]:
        return {"name": str(index)}


def test_orders_of_few_are_those_of_a_shuffled_list() -> None:
    expected = streams.generator(3, "order", 2).permutation(1000).tolist()
    assert [loader.ordered(1000, 3, 2, k) for k in range(1000)] == expected
    assert loader._order(1000, 3, 2).nbytes == 4000


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 1000, 4097])
def test_scattering_shows_everything_once_an_epoch_in_another_order(count: int) -> None:
    epochs = [[loader.scattered(count, 7, epoch, k) for k in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 5 or epochs[0] != epochs[1] != epochs[2]


def test_scattering_is_as_even_as_a_shuffle() -> None:
    """Where one place goes over many epochs, and how far apart neighbours go within one: chi squared over 32 bins."""
    count = 3000
    epochs = [loader.scattered(count, 1, epoch, 17) for epoch in range(6400)]
    order = np.array([loader.scattered(count, 1, 0, k) for k in range(count)])
    apart = np.diff(order) % count
    for values in (np.array(epochs), apart):
        found = np.histogram(values, 32, (0, count))[0]
        wanted = len(values) / 32
        assert float(((found - wanted) ** 2 / wanted).sum()) < 70  # 31 on average; beyond 65 once in 3,000


def test_drawing_from_a_thousand_million_takes_no_memory_and_no_time() -> None:
    part = Many(10**9)
    tracemalloc.start()
    begin = time.perf_counter()
    batch = loader.batch(part, 0, range(10**9 - 50, 10**9 + 50))  # the end of an epoch and the beginning of the next
    seconds = time.perf_counter() - begin
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(batch.indices)) == 100
    assert min(batch.indices) >= 0
    assert max(batch.indices) < 10**9
    assert most < 4 << 20
    assert seconds < 5
