"""Encoding and decoding in parts: pictures of any size in the memory of a small one.

Convolutions look only so far. `reach` follows how far back through the network itself, and each tile is worked out with
that margin around it, which is then cut away: for a network of convolutions alone the tiles agree with the whole, up to
rounding, and so does their feathered blend.

Two things look everywhere. Layers at the latent's resolution, attention in the middle among them, are cheap there: they
see the whole picture up to `WHOLE` places, and only the finer ones go by tiles. Group norms of the finer layers take the
statistics of the picture made small (`share=1`), or pool them over all tiles first, in `share - 1` passes: pass k makes
those of the first k norms exact and the later ones nearly so. With `share=0` each tile has its own, and seams may show
(`docs/first-stage.md` has the numbers).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from threading import Lock, get_ident
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.autoencoder.base import Autoencoder
from sfumato.nn.norm import GroupNorm, Statistics, sharing
from sfumato.windows import Window, blend

LARGE = 1024 * 1024  # pixels of a picture above which it is done in tiles without being asked
SIDE = 384  # pixels a side of a tile, its margin apart
WHOLE = 2**16  # latent places above which the layers at the latent's resolution go by tiles too
PROBE = 4  # latent places a side of the picture that tells how far a network looks
Work = Callable[[Tensor], Tensor]


def decode(autoencoder: Autoencoder, latent: Tensor, tile: int = SIDE, share: int = 1) -> Tensor:
    """As `autoencoder.decode`, picture by picture in tiles of `tile` pixels; latents (B, C, h, w) -> (B, K, H, W).

    Raises `ValueError` for a tile smaller than a place of the latent.
    """
    tiles = Tiles.of(autoencoder, tile, share)
    return _each([autoencoder], autoencoder.decode, latent, tiles, 1, autoencoder.factor)


def moments(autoencoder: Autoencoder, images: Tensor, tile: int = SIDE, share: int = 1) -> Tensor:
    """What is stored of pictures (B, K, H, W), in tiles of `tile` pixels: (B, M, H/factor, W/factor).

    Raises `ValueError` for a tile smaller than a place of the latent, and as `Autoencoder.check`.
    """
    autoencoder.check(images)

    def work(part: Tensor) -> Tensor:
        encoded = autoencoder.encode(part)
        return encoded.latent if encoded.moments is None else encoded.moments

    networks, tiles = [autoencoder, *autoencoder.borrowed()], Tiles.of(autoencoder, tile, share)
    return _each(networks, work, images, tiles, autoencoder.factor, 1)


def _each(networks: Sequence[nn.Module], work: Work, x: Tensor, tiles: "Tiles", before: int, after: int) -> Tensor:
    """`work(x)` picture by picture. A latent place is `before` places of x and `after` of the result."""
    split = any(isinstance(m, Contracting | Expanding) for network in networks for m in network.modules())
    if not split or x.shape[-2] * x.shape[-1] > WHOLE * before**2:
        return torch.cat([tiles.spread(work, one, networks, before, after) for one in torch.split(x, 1)])
    global _cutting
    token = _current.set(tiles)
    _cutting += 1
    try:
        return torch.cat([work(one) for one in torch.split(x, 1)])
    finally:
        _cutting -= 1
        _current.reset(token)


class Tiles(NamedTuple):
    """How a picture is cut."""

    size: int  # latent places a side, without the margin
    share: int  # 0: norms see their tile; 1: the picture made small; each more: a pass over all tiles that pools them

    @classmethod
    def of(cls, autoencoder: Autoencoder, tile: int, share: int) -> Self:
        """From a side in pixels. Raises `ValueError` where that cuts nothing."""
        if tile < autoencoder.factor or share < 0:
            raise ValueError(
                f"a tile has at least the autoencoder's factor, {autoencoder.factor} pixels a side, and passes that share "
                f"statistics are 0 or more; got {tile} and {share}"
            )
        return cls(tile // autoencoder.factor, int(share))

    def spread(self, work: Work, x: Tensor, layers: Sequence[nn.Module], before: int, after: int) -> Tensor:
        """`work(x)` tile by tile; `layers` are those that it goes through."""
        height, width = x.shape[-2] // before, x.shape[-1] // before
        if max(height, width) <= self.size:
            return work(x)
        margin = reach(work, x, layers, before)

        def part(window: Window, statistics: Statistics | None = None) -> Tensor:
            outer = grown(window, margin, height, width)
            inner = Window(window.top - outer.top, window.left - outer.left, window.height, window.width)
            if statistics is not None:
                statistics.seen = lambda h: inner.times(h.shape[-2] // outer.height).crop(h)
            return inner.times(after).crop(work(outer.times(before).crop(x)))

        normed = any(isinstance(m, GroupNorm) for layer in layers for m in layer.modules())
        shared = Statistics() if self.share and normed else None
        with sharing(shared):
            if shared is not None:
                shared.seen = lambda h: h
                work(shrunk(x, max(self.size, PROBE) * before, before))
                shared.settle()
                for _ in range(self.share - 1):
                    for window in disjoint(height, width, self.size):
                        part(window, shared)
                    shared.settle()
            stride = max(self.size - max(self.size // 8, 1), 1)
            return blend(x[..., ::before, ::before], self.size, stride, lambda window, _: part(window), after)


_current: ContextVar[Tiles | None] = ContextVar("tiles", default=None)
_cutting = 0  # cuts under way in all threads: compilers read a number as a constant, and no context variable


class Contracting(nn.Sequential):
    """`fine` layers, by tiles where `decode` or `moments` cuts, then `coarse` ones at the latent's resolution."""

    def __init__(self, factor: int, fine: Sequence[nn.Module], coarse: Sequence[nn.Module]) -> None:
        super().__init__(*fine, *coarse)
        self.factor, self.cut = factor, len(fine)

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        return chain(layers[self.cut :], local(layers[: self.cut], x, self.factor, 1))


class Expanding(nn.Sequential):
    """`coarse` layers at the latent's resolution, then `fine` ones, by tiles where `decode` or `moments` cuts."""

    def __init__(self, factor: int, coarse: Sequence[nn.Module], fine: Sequence[nn.Module]) -> None:
        super().__init__(*coarse, *fine)
        self.factor, self.cut = factor, len(coarse)

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        return local(layers[self.cut :], chain(layers[: self.cut], x), 1, self.factor)


def chain(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """x through the layers, one after the other."""
    for layer in layers:
        x = layer(x)
    return x


def local(layers: Sequence[nn.Module], x: Tensor, before: int, after: int) -> Tensor:
    """x through layers that look no further than their kernels, by tiles where `decode` or `moments` cuts."""
    tiles, work = _current.get() if _cutting else None, partial(chain, layers)
    return work(x) if tiles is None else tiles.spread(work, x, layers, before, after)


def shrunk(x: Tensor, largest: int, multiple: int) -> Tensor:
    """x made small, its sides multiples of `multiple`, with the mean and the deviation that its channels had."""
    scale = min(1.0, largest / max(x.shape[-2:]))
    sides = [max(round(n * scale / multiple), 1) * multiple for n in x.shape[-2:]]
    small = F.interpolate(x.float(), sides, mode="bilinear", antialias=True, align_corners=False)
    if multiple > 1:  # pixels keep their range; maps of features, nearly noise, lose most of theirs
        return small.to(x.dtype)
    deviation, mean = torch.std_mean(x.float(), (2, 3), correction=0, keepdim=True)
    away, middle = torch.std_mean(small, (2, 3), correction=0, keepdim=True)
    return ((small - middle) / away.clamp(min=1e-6) * deviation + mean).to(x.dtype)


def grown(window: Window, margin: int, height: int, width: int) -> Window:
    """The window with a margin on every side that is not the canvas's own."""
    top, left = max(window.top - margin, 0), max(window.left - margin, 0)
    bottom = min(window.top + window.height + margin, height)
    right = min(window.left + window.width + margin, width)
    return Window(top, left, bottom - top, right - left)


def disjoint(height: int, width: int, size: int) -> Iterator[Window]:
    """Windows of at most `size` that cover every place of the canvas once."""
    for top in range(0, height, size):
        for left in range(0, width, size):
            yield Window(top, left, min(size, height - top), min(size, width - left))


_probing = Lock()


@torch.no_grad()
def reach(work: Work, x: Tensor, layers: Sequence[nn.Module], before: int) -> int:
    """How far a place of `work`'s result sees through the convolutions of `layers`, in latent places, rounded up.

    A probe of x's channels goes through; then the need of one place is followed back from the last convolution to the
    first, in whole places at every resolution. Branches side by side are added up, so it is never too small for layers
    whose only neighbourhoods are convolutions'. Attention and norms see everything, and are not counted.
    """
    met: list[tuple[nn.Module, int]] = []
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    found = {m for layer in layers for m in layer.modules() if isinstance(m, kinds)}

    own = get_ident()

    def note(module: nn.Module, given: Any, made: Tensor) -> None:
        if get_ident() == own:  # lanes and requests share a first stage, and theirs are not the probe
            met.append((module, made.shape[-1]))

    with _probing:
        handles = [module.register_forward_hook(note) for module in found]
        try:
            with sharing(None):
                side = work(x.new_zeros(1, x.shape[1], PROBE * before, PROBE * before)).shape[-1]
        finally:
            for handle in handles:
                handle.remove()
    need = 0
    for module, after in reversed(met):
        need, side = math.ceil(need * after / side), after
        assert isinstance(module, kinds)
        stride, spread = module.stride[0], (module.kernel_size[0] - 1) * module.dilation[0]
        padding = module.padding[0] if isinstance(module.padding[0], int) else spread // 2
        if isinstance(module, nn.ConvTranspose2d):
            need, side = math.ceil((need + spread) / stride), max(after // stride, 1)
        else:
            need, side = need * stride + max(padding, spread - padding), after * stride
    return math.ceil(need * PROBE / side)


def padded(images: Tensor, factor: int) -> Tensor:
    """Pictures (B, C, H, W), reflected at the right and lower edge until the factor divides their sides."""
    for axis in (-2, -1):
        side = images.shape[axis]
        if side % factor:
            place = torch.arange(-(-side // factor) * factor, device=images.device)
            period = max(2 * side - 2, 1)
            place = place % period
            images = images.index_select(axis, torch.minimum(place, period - place) if side > 1 else 0 * place)
    return images


def cropped(pictures: Tensor, size: tuple[int, int] | None) -> Tensor:
    """The upper left `size` (height, width) of the pictures; all of them for None. Raises `ValueError` beyond them."""
    if size is None:
        return pictures
    height, width = pictures.shape[-2:]
    if not (0 < size[0] <= height and 0 < size[1] <= width):
        raise ValueError(f"the pictures are {width}x{height}, so {size[1]}x{size[0]} cannot be cut from them")
    return pictures[..., : size[0], : size[1]]
