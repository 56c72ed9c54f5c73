"""An adaptive sampler: Bogacki & Shampine's 3(2) pair with a PI controller, every image at its own pace.

With z = x / sigma and m = alpha / sigma the flow is dz/dm = x_0 (see `base`), regular from pure noise, where m = 0, to
any noisy row. An image's steps depend on that image alone: a batch gives the pictures of its singles.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.device import fine
from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers.base import Denoise, Step, checked, memories, sampling

SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0


class _Path:
    """The flow in (z, m) for a batch; m (B,) is kept on the host in float64."""

    def __init__(self, denoise: Denoise, grid: Grid) -> None:
        self.denoise, self.grid = denoise, grid

    def rows(self, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.grid.over(-m.log())

    def x_0(self, z: Tensor, m: Tensor) -> Tensor:
        t, _, sigma = self.rows(m)
        time = t.to(z.device, torch.float64 if z.dtype == torch.float64 else torch.float32)
        x_0 = self.denoise(z * _like(sigma, z), time)
        if memories(self.denoise):
            raise ValueError("guidance that remembers a run's steps (`apg` with momentum) does not go with `adaptive`")
        return x_0


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x).reshape(-1, *[1] * (x.ndim - 1))


@sampling
def adaptive(
    denoise: Denoise, x: Tensor, grid: Grid, *, tolerance: float = 1e-2, limit: int = 10_000
) -> Iterator[Step]:
    """Bogacki & Shampine (1989), 3(2); order 3, three evaluations a try and as many tries as it takes. x (B, C, h, w).

    With k_i the estimates of x_0 at m, m + h/2, m + 3h/4 and m + h: z' = z + h/9 (2 k_1 + 3 k_2 + 4 k_3), its error is
    h (-5/72 k_1 + k_2/12 + k_3/9 - k_4/8), and h grows by 0.9 e^(-0.7/3) e_before^(0.4/3), e the error over `tolerance`.
    Of the grid it takes the first row and the last noisy one, and goes from there to the clean end. `tolerance` bounds
    each step's root mean square error of alpha x_0 + sigma eps, an image.

    Raises `ValueError` after `limit` tries and for guidance that remembers earlier steps, `FloatingPointError` where an
    estimate is not finite.
    """
    checked("tolerance", tolerance, 1e-12, 1.0)
    path, rows = _Path(denoise, grid), grid.rows()
    noisy = [r for r in rows if r.sigma]
    first, final = noisy[0], noisy[-1]
    m = torch.full((len(x),), first.alpha / first.sigma, dtype=torch.float64)
    end = torch.full_like(m, final.alpha / final.sigma)
    # a first step of a hundredth of the way in angle
    angle = torch.atan(m)
    h = torch.tan(angle + (torch.atan(end) - angle) / 100) - m
    z, before = x / first.sigma, torch.ones_like(m)
    k_1 = path.x_0(z, m)
    for _ in range(limit):
        h = torch.minimum(h, end - m)
        if bool((m >= end).all()):
            break
        step = _like(h, z)
        k_2 = path.x_0(z + step / 2 * k_1, m + h / 2)
        k_3 = path.x_0(z + step * 0.75 * k_2, m + h * 0.75)
        new = z + step / 9 * (2 * k_1 + 3 * k_2 + 4 * k_3)
        k_4 = path.x_0(new, m + h)
        gap = step * (-5 / 72 * k_1 + k_2 / 12 + k_3 / 9 - k_4 / 8) * _like(path.rows(m + h)[2], z)
        error = fine(gap).square().flatten(1).mean(1).sqrt().cpu() / tolerance
        if bool((lost := ~(error + h).isfinite()).any()):
            raise FloatingPointError(f"images {lost.nonzero().flatten().tolist()}: x_0 is not finite; try float32")
        taken = (error <= 1) & (h > 0)
        keep = _like(taken, z).bool()
        z, k_1, m = torch.where(keep, new, z), torch.where(keep, k_4, k_1), torch.where(taken, m + h, m)
        m = torch.where((end - m) < 1e-12 * end, end, m)
        error = error.clamp(min=1e-10)
        factor = SAFETY * error ** (-0.7 / 3) * torch.where(taken, before ** (0.4 / 3), torch.ones_like(before))
        before = torch.where(taken, error, before)
        h = h * factor.clamp(SHRINK, GROW)
        t, _, sigma = path.rows(m)
        if bool((m < end).any()):
            yield Step(t.max(), z * _like(sigma, z), k_1)
    else:
        raise ValueError(f"the adaptive sampler took {limit} steps without arriving; raise its tolerance {tolerance}")
    closing = rows[-1]
    x = k_1 if not closing.sigma else z * final.sigma
    yield Step(torch.tensor(closing.t, dtype=torch.float64), x, k_1)
