"""Holes filled smoothly from what is around them, as a first guess."""

from torch import Tensor
from torch.nn import functional as F


def smooth(picture: Tensor, hole: Tensor) -> Tensor:
    """Pictures (B, C, H, W), their holes (B, 1, H, W) in [0, 1] filled with averages of ever coarser grids.

    What is kept stays as it is, to the bit where the mask is 0; what lies in the hole colours nothing.
    """
    kept = 1 - hole
    if not bool(hole.any()) or max(picture.shape[-2:]) == 1:
        return picture * kept
    shares = F.avg_pool2d(kept, 2, ceil_mode=True)
    small = F.avg_pool2d(picture * kept, 2, ceil_mode=True) / shares.clamp(min=1e-6)
    below = smooth(small, (shares <= 0).to(hole))
    wide = F.interpolate(below, picture.shape[-2:], mode="bilinear", align_corners=False)
    return picture * kept + wide * hole
