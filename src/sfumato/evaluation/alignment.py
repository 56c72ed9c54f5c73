"""Whether pictures show what their captions say: CLIP score (Hessel et al., 2021), as a percentage.

100 max(cos(picture, caption), 0) a pair, without the paper's factor of 2.5: the form in which it is reported today.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.evaluation.frechet import Distance

Read = Callable[[Sequence[str]], Tensor]  # captions -> (B, D)


def clip_score(pictures: Tensor, captions: Tensor) -> Tensor:
    """(B, D) and (B, D), in one space -> (B,) in [0, 100]. Raises `ValueError` for other shapes."""
    if pictures.shape != captions.shape or pictures.ndim != 2:
        raise ValueError(
            f"a CLIP score needs a caption a picture, both (B, D); got {tuple(pictures.shape)} and {tuple(captions.shape)}"
        )
    return 100 * F.cosine_similarity(pictures.double(), captions.double(), dim=1).clamp(min=0)


def alignment(pictures: Tensor, captions: Sequence[str], read: Read, at_once: int = 256) -> Distance:
    """Mean CLIP score over pictures' features (N, D) and their captions, and its standard deviation over them."""
    texts = [read(captions[k : k + at_once]) for k in range(0, len(captions), at_once)]
    scores = clip_score(pictures, torch.cat(texts))
    return Distance(float(scores.mean()), float(scores.std()) if len(scores) > 1 else 0.0)
