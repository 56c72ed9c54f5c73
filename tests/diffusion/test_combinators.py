"""Combinators: what is kept is kept to the bit, windows are exact where they can be, and the rest composes freely."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import gaussian, mixture
from torch import Tensor

from sfumato.diffusion import grid, names
from sfumato.diffusion.combinators import clamped, keeping, quantised, tiled, within
from sfumato.diffusion.guidance import Branches, apg, autoguided, cfg_zero, cfgpp, guided, weighted
from sfumato.diffusion.samplers import Denoise, ddim, dpmpp_2m, last, sampler
from sfumato.diffusion.schedule import Betas, Cosine, Linear
from sfumato.streams import Stream
from sfumato.windows import Window


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("schedule", [Linear(), Betas()], ids=repr)
@pytest.mark.parametrize("name", list(names.SAMPLERS))
def test_the_known_part_is_bit_equal_at_the_end(name: str, schedule: Any) -> None:
    x, known, mask = noise(2, 2, 7, 5), noise(1, 2, 7, 5) * 3, torch.zeros(1, 1, 7, 5)
    mask[..., :3] = 1
    mask[..., 3] = 0.5
    options = {"noise": Stream([1, 2])} if names.SAMPLERS[name].stochastic else {}
    y = last(sampler(name)(keeping(mixture(schedule), known, mask), x, grid.even(schedule, 7), **options))
    assert torch.equal(y[..., :3], known.expand(2, -1, -1, -1)[..., :3])
    assert not torch.isclose(y[..., 4], known[..., 4]).any()


def test_a_mask_of_one_is_the_picture_and_of_nothing_is_sampling() -> None:
    x, known, g = noise(2, 2, 3, 5), noise(2, 2, 3, 5) * 2, grid.even(Linear(), 5)
    assert torch.equal(last(ddim(keeping(mixture(Linear()), known, torch.ones(1, 1, 1, 1)), x, g)), known)
    plain = last(ddim(mixture(Linear()), x, g))
    assert torch.equal(last(ddim(keeping(mixture(Linear()), known, torch.zeros(1, 1, 1, 1)), x, g)), plain)


def test_what_is_kept_steers_the_rest() -> None:
    """A denoiser that averages two places: keeping one of them draws the other."""

    def pair(x_t: Tensor, t: Tensor) -> Tensor:
        return gaussian(Linear())(x_t, t).mean(-1, keepdim=True).expand_as(x_t)

    known = torch.full((1, 1, 1, 2), 9.0)
    y = last(ddim(keeping(pair, known, torch.tensor([1.0, 0.0])), noise(1, 1, 1, 2), grid.even(Linear(), 50)))
    assert float(y[..., 1]) > 2.5


def test_half_a_mask_is_half_of_each() -> None:
    known, x, t = noise(1, 2, 3, 5), noise(2, 2, 3, 5), torch.full((2,), 0.6)
    plain = gaussian(Linear())(x, t)
    for share in (0.25, 0.5):
        out = keeping(gaussian(Linear()), known, torch.full((1, 1, 3, 5), share))(x, t)
        torch.testing.assert_close(out, share * known + (1 - share) * plain)


def test_masks_outside_of_the_unit_interval_are_refused() -> None:
    with pytest.raises(ValueError, match="a mask lies between 0 and 1; got -1 to 1"):
        keeping(gaussian(Linear()), noise(1, 1, 2, 2), torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: clamped(d),
        lambda d: tiled(d, 4, 2),
        lambda d: tiled(None, 4, 2, at=lambda w: d)(noise(1, 2, 7, 5), torch.ones(1)),
        lambda d: within(d, gaussian(Linear()), 0, 1),
        lambda d: within(gaussian(Linear()), d, 0, 1),
        lambda d: quantised(d, torch.round),
        lambda d: autoguided(gaussian(Linear()), d, 2.0),
        lambda d: keeping(d, noise(1, 2, 7, 5), torch.ones(1)),
        lambda d: Branches(d, [None], lambda c: c[0]),
    ],
)
def test_keeping_is_outermost_or_refused(wrap: Callable[[Denoise], Any]) -> None:
    with pytest.raises(ValueError, match="`keeping` must be outermost: apply it last"):
        wrap(keeping(gaussian(Linear()), noise(1, 2, 7, 5), torch.ones(1)))


@given(st.integers(1, 17), st.integers(1, 17), st.integers(1, 8), st.data())
@settings(deadline=None, max_examples=40)
def test_tiling_is_exact_for_a_local_denoiser_at_any_size(
    height: int, width: int, size: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, size))
    x, g = noise(2, 2, height, width, dtype=torch.float64), grid.even(Cosine(), 3)
    whole = last(dpmpp_2m(mixture(Cosine()), x, g))
    torch.testing.assert_close(last(dpmpp_2m(tiled(mixture(Cosine()), size, stride), x, g)), whole)


def test_tiles_crop_the_conditions_that_are_pictures() -> None:
    """A network that must see the part of its condition that lies under its window."""
    x = noise(1, 1, 6, 11, dtype=torch.float64)
    pictures = [torch.arange(66.0).reshape(1, 1, 6, 11).double(), torch.ones(1, 1, 6, 11).double()]

    def network(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return cond + 0 * x_t

    branches = Branches(network, pictures, torch.cat, crop=lambda cond, window: window.crop(cond))
    denoise = tiled(None, 4, 3, at=lambda window: guided(branches.at(window), 2.0))
    torch.testing.assert_close(denoise(x, torch.ones(1).double()), 2 * pictures[0] - pictures[1])
    around = tiled(None, 4, 3, at=lambda window: guided(branches.at(window), 2.0), wrap=True)
    torch.testing.assert_close(around(x, torch.ones(1).double()), 2 * pictures[0] - pictures[1])
    uncropped = Branches(network, pictures, torch.cat)
    assert uncropped.at(Window(0, 0, 2, 2)) is uncropped


def test_tiles_that_disagree_fade_into_one_another() -> None:
    denoise = tiled(None, 16, 8, at=lambda window: lambda x_t, t: torch.full_like(x_t, float(window.left > 0)))
    row = denoise(torch.zeros(1, 1, 16, 24), torch.ones(1))[0, 0, 8]
    assert (float(row[0]), float(row[-1])) == (0, 1)
    assert float(row.diff().max()) < 0.2


def test_tiles_are_of_one_denoise_or_of_many() -> None:
    for both in ({}, {"at": lambda w: gaussian(Linear())}):
        with pytest.raises(ValueError, match="tiled takes one denoise"):
            tiled(gaussian(Linear()) if both else None, 4, 2, **both)


def test_clamped_and_quantised_ends() -> None:
    x, g = noise(2, 2, 3, 5) * 3, grid.even(Linear(), 8)
    y = last(dpmpp_2m(clamped(lambda x_t, t: 3 * x_t, -0.5, 0.25), x, g))
    assert -0.5 <= float(y.min()) <= float(y.max()) <= 0.25
    codes = last(dpmpp_2m(quantised(gaussian(Linear()), torch.round), x, g))
    assert torch.equal(codes, codes.round())
    asked: list[float] = []

    def nearest(x_0: Tensor) -> Tensor:
        asked.append(0)
        return x_0.round()

    last(dpmpp_2m(quantised(gaussian(Linear()), nearest, below=0.5), x, g))
    assert len(asked) == 4
    with pytest.raises(ValueError, match="the range goes up"):
        clamped(gaussian(Linear()), 1.0, -1.0)
    with pytest.raises(ValueError, match="an interval of times goes up"):
        within(gaussian(Linear()), gaussian(Linear()), 0.7, 0.3)


SCHEDULE = Linear()
GRID = grid.even(SCHEDULE, 4)
PLACES = (7, 5)


def network(x_t: Tensor, t: Tensor, mean: Tensor) -> Tensor:
    return gaussian(SCHEDULE, mean.to(x_t), 0.5)(x_t, t)  # type: ignore[arg-type]


def branches(count: int, rows: int, pictures: bool = False) -> Branches:
    """Conditions that are means, one an example, or pictures, where every place has its own."""
    ramp = torch.linspace(-1, 1, PLACES[0] * PLACES[1]).reshape(1, 1, *PLACES) if pictures else torch.ones(1, 1, 1, 1)
    means = [m.expand(rows, -1, -1, -1) for m in (1.0 + ramp, -0.5 * ramp, 0.2 + 0 * ramp)]
    return Branches(network, means[:count], torch.cat, crop=lambda cond, window: window.crop(cond))


PAIRED: dict[str, Callable[[Branches], Denoise]] = {
    "guided": lambda b: guided(b, 3.0, rescale=0.3),
    "apg": lambda b: apg(b, 3.0, limit=4.0),
    "apg_still": lambda b: apg(b, 3.0, momentum=0.0),
    "cfgpp": lambda b: cfgpp(b, 0.6, GRID),
    "cfg_zero": lambda b: cfg_zero(b, 2.0, SCHEDULE, still=0.9),
}
LEAVES: dict[str, Callable[[int], Denoise]] = {
    "gaussian": lambda rows: gaussian(SCHEDULE),
    "mixture": lambda rows: mixture(SCHEDULE),
    "weighted": lambda rows: weighted(branches(3, rows), [2.0, -0.5]),
    **{name: lambda rows, make=make: make(branches(2, rows)) for name, make in PAIRED.items()},  # type: ignore[misc]
    **{
        f"{name}, cropped": lambda rows, make=make: tiled(None, 4, 3, at=lambda w: make(branches(2, rows, True).at(w)))  # type: ignore[misc]
        for name, make in PAIRED.items()
    },
    "apg, around": lambda rows: tiled(None, 4, 3, at=lambda w: apg(branches(2, rows, True).at(w), 3.0), wrap=True),
}
WRAPS: dict[str, Callable[[Denoise], Denoise]] = {
    "clamped": lambda d: clamped(d, -2, 2),
    "tiled": lambda d: tiled(d, 4, 3),
    "tiled at": lambda d: tiled(None, 3, 2, at=lambda w: d),
    "within": lambda d: within(d, gaussian(SCHEDULE), 0.2, 0.8),
    "without": lambda d: within(gaussian(SCHEDULE), d, 0.2, 0.8),
    "quantised": lambda d: quantised(d, lambda x: (x * 4).round() / 4),
    "autoguided": lambda d: autoguided(d, gaussian(SCHEDULE), 1.5),
}


@given(
    st.sampled_from(list(LEAVES)),
    st.lists(st.sampled_from(list(WRAPS)), max_size=4),
    st.booleans(),
    st.sampled_from(list(names.SAMPLERS)),
)
@settings(deadline=None, max_examples=150)
def test_random_compositions(leaf: str, wraps: list[str], kept: bool, name: str) -> None:
    """They end finite, keep what is kept, and give a batch the pictures of its singles; or say why they do not go."""
    if leaf.endswith(("cropped", "around")):  # bound to the whole canvas, of which a part is no part
        wraps = [w for w in wraps if not w.startswith("tiled")]
    x, known, mask = noise(2, 2, *PLACES).double(), noise(1, 2, *PLACES), torch.zeros(1, 1, *PLACES)
    mask[..., 0] = 1

    def drawn(rows: slice) -> Tensor:
        part = x[rows]
        denoise = LEAVES[leaf](len(part))
        for wrap in wraps:
            denoise = WRAPS[wrap](denoise)
        if kept:
            denoise = keeping(denoise, known, mask)
        options = {"noise": Stream([1, 2][rows])} if names.SAMPLERS[name].stochastic else {}
        if name == "adaptive":
            options = {"tolerance": 0.5, "limit": 2000}
        return last(sampler(name)(denoise, part, GRID, **options))

    timed = leaf.startswith(("apg", "cfgpp")) and not leaf.startswith("apg_still")
    if (leaf == "apg" and any(w.startswith("tiled") for w in wraps)) or (name == "adaptive" and timed):
        with pytest.raises(ValueError, match=r"remembers a run's steps|`adaptive` does not"):
            drawn(slice(0, 2))
        return
    y = drawn(slice(0, 2))
    assert y.isfinite().all()
    assert y.shape == x.shape
    torch.testing.assert_close(drawn(slice(1, 2)), y[1:], rtol=1e-6, atol=1e-6)
    if kept:
        assert torch.equal(y[..., 0], known.expand(2, -1, -1, -1).to(y)[..., 0])
