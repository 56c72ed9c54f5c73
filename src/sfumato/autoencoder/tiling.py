"""Encoding and decoding in parts: pictures of any size in the memory of a small one.

Convolutions look only so far. `reach` adds up how far, from the network itself, and each tile is worked out with that
much margin around it, which is then cut away: for a network of convolutions alone the parts are those of the whole, up
to rounding. What is left to differ are statistics over the whole picture: group norm's means and variances, and attention
in the middle. Tiles therefore fade into one another; `share` gives group norms the statistics of the picture made small
(`docs/first-stage.md` says what that gains). A coder with `groups: null` and no attention has neither.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.autoencoder.base import Autoencoder
from sfumato.nn.norm import GroupNorm
from sfumato.windows import Window, blend

LARGE = 1024 * 1024  # pixels of a picture above which it is done in tiles without being asked
SIDE = 512  # pixels a side of a tile, its margin apart


@torch.no_grad()
def reach(work: Callable[[Tensor], Tensor], x: Tensor, network: nn.Module) -> int:
    """How many places of `x` (1, C, H, W) to each side an output of `work(x)` may depend on through convolutions.

    An upper bound: every convolution of the `network` counts, at the resolution at which it ran.
    """
    height, found = x.shape[2], 0.0

    def note(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        nonlocal found
        assert isinstance(module, nn.Conv2d)
        found += (module.kernel_size[0] - 1) / 2 * height / given[0].shape[2]

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    try:
        work(x)
    finally:
        for hook in hooks:
            hook.remove()
    return math.ceil(found) + 1


def decode(autoencoder: Autoencoder, latent: Tensor, tile: int = SIDE, share: bool = False) -> Tensor:
    """As `autoencoder.decode`, picture by picture in tiles of `tile` pixels; latents (B, C, h, w) -> (B, K, H, W).

    Raises `ValueError` for a tile smaller than a place of the latent.
    """
    factor = autoencoder.factor
    size = _places(tile, factor)
    small = latent.new_zeros(1, *latent.shape[1:2], 8, 8)
    margin = reach(autoencoder.decode, small, autoencoder)
    return torch.cat(
        [_tiled(autoencoder, autoencoder.decode, one[None], size, margin, factor, 1, share) for one in latent]
    )


def moments(autoencoder: Autoencoder, images: Tensor, tile: int = SIDE, share: bool = False) -> Tensor:
    """What is stored of pictures (B, K, H, W), in tiles of `tile` pixels: (B, M, H/factor, W/factor).

    Raises `ValueError` for a tile smaller than a place of the latent, and as `Autoencoder.check`.
    """
    autoencoder.check(images)
    factor = autoencoder.factor

    def work(part: Tensor) -> Tensor:
        encoded = autoencoder.encode(part)
        return encoded.latent if encoded.moments is None else encoded.moments

    small = images.new_zeros(1, images.shape[1], 8 * factor, 8 * factor)
    margin = math.ceil(reach(work, small, autoencoder) / factor)
    size = _places(tile, factor)
    return torch.cat([_tiled(autoencoder, work, one[None], size, margin, 1, factor, share) for one in images])


def _places(tile: int, factor: int) -> int:
    if tile < factor:
        raise ValueError(f"a tile has at least the autoencoder's factor, {factor} pixels a side; got {tile}")
    return tile // factor


def _tiled(
    network: nn.Module,
    work: Callable[[Tensor], Tensor],
    x: Tensor,
    size: int,
    margin: int,
    up: int,
    down: int,
    share: bool,
) -> Tensor:
    """`work` over x (1, C, down h, down w) in windows of `size` latent places: (1, K, up h, up w)."""
    height, width = x.shape[2] // down, x.shape[3] // down
    places = x.new_zeros(1, 1, height, width)
    feather = max(size // 8, 1)

    def part(window: Window, _: Tensor) -> Tensor:
        outer = grown(window, margin, height, width)
        made = work(outer.times(down).crop(x))
        inner = Window(window.top - outer.top, window.left - outer.left, window.height, window.width)
        return inner.times(up).crop(made).float()

    with shared(network, lambda: work(_small(x, size, down)), share):
        return blend(places, size, max(size - feather, 1), part, up)


def grown(window: Window, margin: int, height: int, width: int) -> Window:
    """The window with its margin, as far as the canvas goes."""
    top, left = max(window.top - margin, 0), max(window.left - margin, 0)
    bottom = min(window.top + window.height + margin, height)
    right = min(window.left + window.width + margin, width)
    return Window(top, left, bottom - top, right - left)


def _small(x: Tensor, size: int, down: int) -> Tensor:
    """x shrunk to fit a tile, with the contrast that it had: averaging takes some away."""
    scale = min(1.0, size * down / max(x.shape[2:]))
    sides = [max(round(n * scale / down), 1) * down for n in x.shape[2:]]
    made = F.interpolate(x.float(), sides, mode="bicubic", antialias=True, align_corners=False).to(x.dtype)
    if down > 1:  # pixels keep their range; latents, which are nearly noise, lose most of theirs
        return made
    mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    return (made - made.mean((2, 3), keepdim=True)) / made.std((2, 3), keepdim=True).clamp(min=1e-6) * std + mean


@contextmanager
def shared(network: nn.Module, look: Callable[[], object], wanted: bool) -> Iterator[None]:
    """Within this context the group norms of a network use the statistics that they saw while `look` ran."""
    norms = [m for m in network.modules() if isinstance(m, GroupNorm)] if wanted else []
    try:
        for norm in norms:
            norm.keep()
        if norms:
            look()
        for norm in norms:
            norm.hold()
        yield
    finally:
        for norm in norms:
            norm.release()
