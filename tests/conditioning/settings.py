"""What the tests of conditioners share: settings, and a first stage that averages."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.conditioning.base import Draws, Setting
from sfumato.windows import Window


def setting(
    size: tuple[int, int] = (4, 6),
    positions: Sequence[int] = (0, 1),
    *,
    augment: bool = False,
    window: Window | None = None,
) -> Setting:
    """A setting of latents (h, w) for the examples at these positions of a run of seed 0."""
    return Setting(size, Draws.training(0, positions), augment, window)


class Averaging:
    """A first stage of factor 4 whose latents are means of the channels."""

    factor, channels, image_channels = 4, 3, 3

    def encode(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled(), "the first stage is not trained with the denoiser"
        return F.avg_pool2d(images, self.factor)
