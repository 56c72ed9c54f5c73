"""Windows cover every canvas, and blends are exact where windows agree."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.windows import Window, blend, fade, starts, windows


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 20), st.data())
def test_windows_cover_the_canvas_and_stay_inside(height: int, width: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size))
    seen = torch.zeros(height, width)
    for window in windows(height, width, size, stride):
        part = window.crop(seen)
        assert part.shape == (window.height, window.width) == (min(size, height), min(size, width))
        part += 1
    assert (seen > 0).all()


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.data())
def test_a_blend_of_parts_that_agree_is_exact(height: int, width: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size))
    x = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blend(x, size, stride, lambda window, part: 2 * part), 2 * x)


def test_a_finer_result_is_laid_at_its_own_places() -> None:
    x = torch.arange(2 * 7 * 9).reshape(2, 1, 7, 9).double()
    fine = blend(x, 4, 3, lambda w, part: part.repeat_interleave(2, -1).repeat_interleave(2, -2), factor=2)
    torch.testing.assert_close(fine, x.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_neighbours_fade_into_one_another() -> None:
    """Two windows that disagree by 1: the step between neighbouring places is far smaller."""
    row = blend(torch.zeros(1, 1, 8, 24), 16, 8, lambda w, part: part + (w.left > 0))[0, 0, 4]
    assert float(row[0]) == 0
    assert float(row[-1]) == 1
    assert float(row.diff().max()) < 0.2
    assert (row.diff() >= 0).all()


def test_weights_are_positive_and_one_inside() -> None:
    weight = fade(9, 12, 3)
    assert float(weight.min()) > 0
    assert float(weight[4, 6]) == 1


def test_a_window_over_the_right_edge_sees_the_left_one() -> None:
    x = torch.arange(20.0).reshape(2, 10)
    assert Window(0, 8, 2, 4).crop(x).tolist() == [[8, 9, 0, 1], [18, 19, 10, 11]]
    assert Window(0, 6, 2, 4).crop(x).data_ptr() == x[:, 6:].data_ptr()  # inside it is a view
    assert Window(0, 0, 2, 4).crop(x[..., :1]).tolist() == [[0], [10]]  # what is one wide goes for every place


def test_windows_in_finer_units() -> None:
    assert Window(1, 2, 3, 4).times(8) == Window(8, 16, 24, 32)


@pytest.mark.parametrize("stride", [0, -1, 5])
def test_strides_that_leave_gaps_are_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 4 .*got {stride}"):
        starts(10, 4, stride)


def test_windows_that_wrap_see_the_other_edge_and_agree_with_a_turned_canvas() -> None:
    x = torch.randn(1, 2, 6, 20, generator=torch.Generator().manual_seed(0))

    def near(_: Window, part: torch.Tensor) -> torch.Tensor:
        return part + part.mean(-1, keepdim=True)

    around = blend(x, 8, 4, near, wrap=True)
    turned = blend(x.roll(4, -1), 8, 4, near, wrap=True).roll(-4, -1)
    assert torch.allclose(around, turned, atol=1e-5)
    assert torch.allclose(blend(x, 8, 4, lambda _, part: 2 * part, wrap=True), 2 * x, atol=1e-5)
    assert not torch.allclose(around, blend(x, 8, 4, near), atol=1e-3)
