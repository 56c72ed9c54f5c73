"""Inversion: the noise that a deterministic sampler would turn into a given picture (Song et al., 2021, section 4.3)."""

from collections.abc import Iterator

from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers.base import Denoise, Step, ask, checked, done, move, noise_of, sampling


@sampling
def inversion(denoise: Denoise, x_0: Tensor, grid: Grid, *, refine: int = 0) -> Iterator[Step]:
    """`ddim` backwards: from x_0 (B, C, h, w) at the grid's last row up to its first; the last step's x is the noise.

    An upward step takes the estimate at its lower end, so coming back by `ddim` on the same grid is exact to first order.
    Each of `refine` further evaluations moves x towards the very point that `ddim` steps down from, x_t such that
    move(x_t, D(x_t)) = x_s (Pan et al., 2023), after which coming back is exact to rounding. 1 + `refine` evaluations a
    step. Do not use it with strong guidance: what it solves for then may not exist.
    """
    checked("refine", refine, 0, 1000)
    x = x_0
    for there, here in reversed(list(grid.pairs())):  # up, from here to there
        if here.sigma:
            estimate = ask(denoise, x, here)
            lifted = there.alpha * estimate + there.sigma * noise_of(x, estimate, here)
        else:  # no noise to read: what the picture would hold, were all of it signal
            estimate = ask(denoise, there.alpha * x, there)
            lifted = there.alpha * x + there.alpha * (x - estimate)
        gain = there.alpha / (there.alpha**2 + there.sigma**2)  # slope of D for data of unit variance: a first guess
        slope = here.alpha * here.ratio / there.sigma + here.alpha * (1 - here.ratio / there.ratio) * gain
        for _ in range(refine if slope else 0):  # 0 from pure noise to clean, where no x is better than another
            estimate = ask(denoise, lifted, there)
            lifted = lifted + (x - move(lifted, estimate, there, here)) / slope
        x = lifted
        yield done(there, x, estimate)
