"""References: embeddings of a declared width, and their nearest neighbours."""

from typing import Any

import numpy as np
import pytest
import torch

from sfumato.conditioning.reference import Reference, ReferenceConfig
from sfumato.features.retrieval import neighbours


def reference(**fields: Any) -> Reference:
    torch.manual_seed(0)
    return ReferenceConfig(embedding=6, width=4, most=3, **fields).build({})


def test_embeddings_enter_by_the_door_that_is_asked() -> None:
    one, two = torch.randn(6), torch.randn(2, 6)
    encoder = reference()
    assert encoder.sizes == (4, 0, 0)
    c = encoder([one, two])
    assert c.vector is not None
    assert c.vector.shape == (2, 4)
    torch.testing.assert_close(c.vector[:1], encoder([5 * one]).vector)  # only the direction counts
    assert not torch.allclose(reference(unit=False)([one]).vector, reference(unit=False)([5 * one]).vector)  # type: ignore[arg-type]
    tokens = reference(door="tokens")
    c = tokens([one.tolist(), two.numpy()])
    assert tokens.sizes == (0, 4, 0)
    assert c.mask is not None
    assert c.mask.tolist() == [[True, False], [True, True]]
    assert tokens.null(3).tokens.shape == (3, 1, 4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(5), r"shape \(5,\), this model reads embeddings \(6,\)"),
        (torch.zeros(4, 6), "4 embeddings as reference, this model reads 3"),
        (torch.full((6,), torch.nan), "not finite"),
        (torch.zeros(0, 6), "shape"),
        ("a cat", "is an embedding"),
    ],
)
def test_embeddings_that_cannot_be_read_are_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        reference()([value])


def test_neighbours_are_those_of_the_whole_product_whatever_the_chunk() -> None:
    rng = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(5, 8, generator=rng), torch.randn(101, 8, generator=rng)
    bank[7] = 3 * bank[70]  # equal in direction: the bank's order decides
    queries[0] = bank[70]
    whole = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(bank, dim=1).T
    best, where = neighbours(queries, bank, 4, chunk=1000)
    torch.testing.assert_close(best, whole.topk(4, 1).values)
    torch.testing.assert_close(whole.gather(1, where), best)
    assert where[0, :2].sort().values.tolist() == [7, 70]
    for chunk in (1, 7, 64):
        assert np.array_equal(neighbours(queries, bank, 4, chunk=chunk)[1][1:], where[1:])
    apart = neighbours(bank[:3], bank, 2, chunk=10, apart=torch.arange(3))[1]
    assert not (apart == torch.arange(3)[:, None]).any()


def test_neighbours_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of one width"):
        neighbours(torch.zeros(1, 3), torch.zeros(4, 2), 1)
    with pytest.raises(ValueError, match="5 neighbours of a bank of 4"):
        neighbours(torch.zeros(1, 2), torch.zeros(4, 2), 5)
    with pytest.raises(ValueError, match="4 neighbours of a bank of 4"):
        neighbours(torch.zeros(1, 2), torch.zeros(4, 2), 4, apart=torch.zeros(1))
