"""Noise depends on what it is for, not on the batch it is drawn in."""

import torch

from sfumato import streams


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
