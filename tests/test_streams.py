"""Noise depends on what it is for, not on the batch it is drawn in."""

import os

import pytest
import torch

from sfumato import streams
from sfumato.diffusion import grid
from sfumato.diffusion.samplers.base import snr
from sfumato.diffusion.schedule import Betas


def test_a_batch_is_its_singles() -> None:
    whole = streams.normal((4, 3), 7, "eps", [5, 9, 2])
    singles = torch.cat([streams.normal((4, 3), 7, "eps", [k]) for k in (5, 9, 2)])
    assert torch.equal(whole, singles)


def test_seed_purpose_image_and_step_all_matter() -> None:
    draws = {
        tuple(streams.normal((2,), seed, purpose, [image], step)[0].tolist())
        for seed in (0, 1)
        for purpose in ("eps", "posterior")
        for image in (0, 1)
        for step in (0, 1)
    }
    assert len(draws) == 16


def test_a_purpose_may_be_a_file_name_of_any_bytes() -> None:
    odd, other = (streams.generator(0, f"crop/{os.fsdecode(name)}").random() for name in (b"caf\xe9", b"caf\xe8"))
    assert odd != other


def test_the_moments_are_those_of_a_standard_normal() -> None:
    x = streams.normal((100,), 3, "eps", range(500))
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02


def test_uniform_draws_lie_in_the_unit_interval() -> None:
    x = streams.uniform((), 3, "drop", range(2000))
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    assert abs(float(x.mean()) - 0.5) < 0.03


def test_image_k_of_a_request_is_the_request_for_k_alone() -> None:
    many, alone = streams.Stream([10, 11, 12]), streams.Stream([11])
    for step in (0, 1, 5):
        assert torch.equal(many.normal((4, 2, 2), step)[1:2], alone.normal((4, 2, 2), step))


def test_an_increment_is_the_sum_of_its_parts() -> None:
    """One path, however it is cut: octaves, halves, uneven parts, from its very beginning."""
    stream = streams.Stream([3, 4])
    for cuts in ([0.5, 1.0, 2.0], [0.0, 1e-6, 0.013, 0.7, 0.71, 3.3, 900.0], [5.0, 5.1, 5.2]):
        parts = [(stream.between((4, 3), a, b), b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
        total = torch.stack([part * width**0.5 for part, width in parts]).sum(0)
        whole = stream.between((4, 3), cuts[0], cuts[-1]) * (cuts[-1] - cuts[0]) ** 0.5
        torch.testing.assert_close(total, whole, atol=1e-5 * cuts[-1] ** 0.5, rtol=1e-4)


def test_increments_are_normal_and_independent() -> None:
    stream = streams.Stream([3])
    cuts = [0.0, 1e-9, 0.3, 0.31, 1.0, 1.9, 2.0, 2.5, 40.0]
    draws = torch.stack([stream.between((40_000,), a, b)[0] for a, b in zip(cuts, cuts[1:], strict=False)])
    torch.testing.assert_close(draws.mean(1), torch.zeros(8), atol=0.025, rtol=0)
    torch.testing.assert_close(draws.cov(), torch.eye(8), atol=0.03, rtol=0)
    assert abs(float((draws**4).mean()) - 3) < 0.1


def test_a_path_belongs_to_its_image() -> None:
    many, alone = streams.Stream([10, 11, 12]), streams.Stream([11])
    assert torch.equal(many.between((4, 2), 0.2, 3.0)[1:2], alone.between((4, 2), 0.2, 3.0))
    assert not torch.equal(many.between((4, 2), 0.2, 3.0)[:1], alone.between((4, 2), 0.2, 3.0))
    like = torch.zeros(1, dtype=torch.float64)
    assert alone.between((4, 2), 0.2, 3.0, like).dtype == torch.float64


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (0.0, float("inf"))])
def test_an_increment_goes_forward_in_time(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 <= low < high < infinity"):
        streams.Stream([1]).between((1,), *ends)


def test_increments_keep_their_size_in_a_thousand_steps() -> None:
    """Steps of Stable Diffusion's table below t = 0.3: some are a five-hundredth of an octave."""
    rows = [row for row in grid.even(Betas(), 1000, 0.3).rows() if row.sigma]
    stream, pairs = streams.Stream([3]), [*zip(rows[:-1], rows[1:], strict=True)][400:700]
    spread = torch.tensor([float(stream.between((1500,), snr(a), snr(b)).std()) for a, b in pairs])
    assert float(spread.min()) > 0.92
    assert abs(float(spread.square().mean().sqrt()) - 1) < 0.003
