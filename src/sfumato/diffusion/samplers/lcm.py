"""Multistep consistency sampling (Song et al., 2023, algorithm 1; Luo et al., 2023): estimate, and noise it again."""

from collections.abc import Iterator

from torch import Tensor

from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers.base import Denoise, Step, ask, done, needed, sampling
from sfumato.streams import Stream


@sampling
def lcm(denoise: Denoise, x: Tensor, grid: Grid, *, noise: Stream | None = None) -> Iterator[Step]:
    """x' = alpha' x_0 + sigma' eps, all noise fresh: Song et al. (2023), algorithm 1; stochastic, one evaluation a step.

    For networks distilled to jump to x_0 at once. x (B, C, h, w) starts at the grid's first row. With an ordinary denoiser the estimates are means and the samples too smooth.
    """
    stream = needed(noise, "lcm")
    for k, (here, there) in enumerate(grid.pairs()):
        x_0 = ask(denoise, x, here)
        x = x_0
        if there.sigma:
            x = there.alpha * x_0 + there.sigma * stream.normal(x.shape[1:], k + 1, x)
        yield done(there, x, x_0)
