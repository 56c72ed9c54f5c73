"""Steps taken again: the forward process between two rows, and an exact denoiser whose kept half says what the rest is."""

import torch
from torch import Tensor

from sfumato.diffusion.combinators import keeping
from sfumato.diffusion.grid import Row, even
from sfumato.diffusion.repaint import noised, repaint
from sfumato.diffusion.samplers import ddim, last
from sfumato.diffusion.schedule import Linear
from sfumato.streams import Stream


def test_noise_between_two_rows_is_what_the_forward_process_says() -> None:
    low, high = Row(0.2, 0.8, 0.2), Row(0.7, 0.3, 0.7)
    x_0 = torch.full((100_000,), 2.0)
    x = low.alpha * x_0 + low.sigma * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    up = noised(x, low, high, torch.randn(100_000, generator=torch.Generator().manual_seed(1)))
    assert abs(float(up.mean()) - 0.6) < 0.01
    assert abs(float(up.std()) - 0.7) < 0.01


def test_one_repetition_is_ddim() -> None:
    x, rows = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)), even(Linear(), 6)
    plain = last(ddim(lambda x_t, t: 0.5 * x_t, x, rows))
    assert torch.equal(last(repaint(lambda x_t, t: 0.5 * x_t, x, rows, repeats=1, noise=Stream([0, 1, 2]))), plain)


def twins(x_t: Tensor, t: Tensor) -> Tensor:
    """The exact denoiser of pairs (a, a), a from N(0, 1), on the linear schedule: both places tell of one a."""
    sigma = t.clamp(min=1e-4)[:, None, None, None]
    alpha = 1 - sigma
    mean = alpha * x_t.sum(-1, keepdim=True) / (2 * alpha**2 + sigma**2)
    return mean.expand_as(x_t)


def test_what_is_filled_agrees_with_what_is_kept_the_better_the_oftener_steps_are_taken() -> None:
    count, rows = 256, even(Linear(), 12)
    stream = Stream(range(count))
    known = torch.cat([torch.linspace(-2, 2, count)[:, None, None, None], torch.zeros(count, 1, 1, 1)], -1)
    mask = torch.tensor([[[[1.0, 0.0]]]])
    off = []
    for repeats in (1, 4, 12):
        made = last(
            repaint(keeping(twins, known, mask), stream.normal((1, 1, 2), 0), rows, repeats=repeats, noise=stream)
        )
        assert torch.equal(made[..., 0], known[..., 0])
        off.append(float((made[..., 1] - known[..., 0]).square().mean().sqrt()))
    assert off[2] < 0.6 * off[0]
    assert off[1] < off[0]
