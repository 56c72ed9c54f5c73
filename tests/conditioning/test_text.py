"""The text encoder hears the order of words, which no word says alone."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato.conditioning.text import TextConfig
from sfumato.training.muon import Muon

THINGS = ("cat", "dog", "sun", "moon", "star", "tree", "car", "boat", "fish", "bird", "apple", "pear")
FORMS = ("a {0} left of a {1}", "a {1} right of a {0}", "a {0} above a {1}", "a {1} below a {0}")
ROWS = [(f.format(a, b), THINGS.index(a)) for a, b in itertools.permutations(THINGS, 2) for f in FORMS]


@pytest.mark.parametrize("seed", range(3))
def test_which_thing_is_on_the_left_is_learned_in_forty_steps(seed: int) -> None:
    """Neither the order of the two things nor the relation tells alone. Positions a twenty-fifth as large as the words
    leave it at the half that guessing between the two gives: .54 to .62 with the last ten batches of 64."""
    torch.manual_seed(seed)
    config = TextConfig(width=64, layers=2)
    text = config.build(config.learn([caption for caption, _ in ROWS], ())[1])
    head = nn.Linear(64, len(THINGS))
    parameters = [*text.parameters(), *head.parameters()]
    optimizers: list[torch.optim.Optimizer] = [
        Muon([p for p in parameters if p.ndim > 1], 1e-2),
        torch.optim.AdamW([p for p in parameters if p.ndim <= 1], 1e-2),
    ]
    rng, right = torch.Generator().manual_seed(seed), []
    for _ in range(40):
        chosen = [ROWS[k] for k in torch.randint(0, len(ROWS), (64,), generator=rng).tolist()]
        wanted = torch.tensor([thing for _, thing in chosen])
        vector = text([caption for caption, _ in chosen]).vector
        assert vector is not None
        said = head(vector)
        F.cross_entropy(said, wanted).backward()
        right.append(float((said.argmax(1) == wanted).float().mean()))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert sum(right[-10:]) / 10 > 0.8
