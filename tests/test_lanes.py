"""Lanes: in order, on their own threads, and errors come out."""

import pytest
import torch

from sfumato.lanes import lanes, side_by_side


def test_results_keep_their_order_and_each_lane_has_its_share_of_the_threads() -> None:
    def work(number: int) -> tuple[int, int]:
        torch.ones(1 << 16).add_(1.0)
        return number, torch.get_num_threads()

    before = torch.get_num_threads()
    assert side_by_side(work, range(5), 2) == [(n, max(before // 2, 1)) for n in range(5)]
    assert torch.get_num_threads() == before
    assert side_by_side(work, range(2), 1) == [(0, before), (1, before)]


def test_an_error_in_a_lane_is_raised() -> None:
    def fail(number: int) -> int:
        raise ValueError(f"no {number}")

    with pytest.raises(ValueError, match="no 3"):
        side_by_side(fail, [3, 4], 2)


def test_only_the_cpu_has_several_up_to_four_of_equal_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, count in {1: 1, 2: 2, 3: 3, 4: 4, 5: 1, 6: 3, 16: 4}.items():
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert lanes(torch.device("cuda")) == 1
        assert lanes(torch.device("cpu")) == count
