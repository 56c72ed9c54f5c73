"""Inception score: sharp and various at once, said by a classifier alone (Salimans et al., 2016).

exp(E[KL(p(y|x) || p(y))]) over splits of the images. It never looks at real images; memorised ones score well. The
splits of torchmetrics hang on the global random state, so these are ours: cut in the order in which a seed shuffles.
"""

import torch
from torch import Tensor

from sfumato import streams
from sfumato.evaluation.frechet import Distance

SPLITS = 10


def inception_score(logits: Tensor, *, splits: int = SPLITS, seed: int = 0) -> Distance:
    """Mean and standard deviation over the splits, of logits (N, classes). Raises `ValueError` for too few images."""
    if len(logits) < splits:
        raise ValueError(f"{splits} splits need as many images; got {len(logits)}")
    order = torch.from_numpy(streams.generator(seed, "inception score").permutation(len(logits)))
    scores = []
    for part in torch.tensor_split(logits.double()[order], splits):
        logs = part.log_softmax(1)
        marginal = logs.logsumexp(0) - torch.tensor(float(len(part)), dtype=torch.float64).log()
        scores.append((logs.exp() * (logs - marginal)).sum(1).mean().exp())
    values = torch.stack(scores)
    return Distance(float(values.mean()), float(values.std()) if splits > 1 else 0.0)
