"""A linear classifier on features of real pictures: does a sample look like its class, and how many classes are there?

It stands in for the classifier of the Inception score, whose classes are ImageNet's: its score here is the same formula,
exp E KL(p(y|x) || p(y)) (Salimans et al., 2016), over the data's own classes.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.data.base import Part

STEPS, PENALTY = 100, 1e-2  # of its fitting
FLOOR = 0.25  # a class counts as covered from this share of its real frequency
Classes = list[int | None]  # None where a picture has none


class Judge:
    """Logits of pooled features (N, D)."""

    def __init__(self, classes: int, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std, self.classes = mean, std, classes
        self.layer = nn.Linear(len(mean), classes)
        self.share = torch.zeros(classes)  # of real pictures

    @classmethod
    def trained(cls, features: Tensor, labels: Classes, classes: int) -> Self:
        """Logistic regression with a penalty on the weights' squares, on all features of real pictures; it is convex."""
        judge = cls(classes, features.mean(0), features.std(0) + 1e-3)
        wanted, known = sorted_out(labels)
        x = (features[known] - judge.mean) / judge.std
        judge.share = torch.bincount(wanted, minlength=classes).float() / len(wanted)
        for parameter in judge.layer.parameters():
            nn.init.zeros_(parameter)
        optimizer = torch.optim.LBFGS(judge.layer.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            found = F.cross_entropy(judge.layer(x), wanted) + 0.5 * PENALTY * judge.layer.weight.square().sum()
            found.backward()  # type: ignore[no-untyped-call]
            return found

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return judge

    @torch.no_grad()
    def score(self, features: Tensor, asked: Classes | None) -> dict[str, float]:
        """`class score` (1 to the number of classes), `classes covered`, and `agreement` with what was asked, if anything."""
        p = self.layer((features - self.mean) / self.std).double().softmax(1)
        marginal = p.mean(0, keepdim=True)
        found = {"class score": float((p * (p.clamp(min=1e-12) / marginal.clamp(min=1e-12)).log()).sum(1).mean().exp())}
        seen = torch.bincount(p.argmax(1), minlength=self.classes).float() / len(p)
        there = self.share > 0
        found["classes covered"] = float((seen[there] >= FLOOR * self.share[there]).float().mean())
        if asked is not None:
            wanted, known = sorted_out(asked)
        if asked is not None and len(wanted):
            found["agreement"] = float((p.argmax(1)[known] == wanted).float().mean())
        return found


def classes_of(part: Part) -> Classes:
    """The class of each picture of a part, the first of several."""
    return [first(part.field(k, "label")) for k in range(len(part))]


def first(label: Any) -> int | None:
    """The first of a picture's classes, None where it has none."""
    found = next(iter(label), None) if isinstance(label, list | tuple) else label
    return None if found is None else int(found)


def sorted_out(labels: Classes) -> tuple[Tensor, Tensor]:
    """The classes there are (M,), and which pictures have them (N,)."""
    known = torch.tensor([label is not None for label in labels])
    return torch.tensor([label for label in labels if label is not None], dtype=torch.long), known
