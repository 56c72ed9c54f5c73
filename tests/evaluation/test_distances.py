"""Distances of sets whose answer is known in closed form or by hand."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sfumato.evaluation.frechet import frechet, kernel
from sfumato.evaluation.inception import inception_score
from sfumato.evaluation.manifold import manifold


def whitened(count: int, width: int, seed: int) -> Tensor:
    """Rows whose sample mean is 0 and whose sample covariance is the identity, exactly."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T


def test_frechet_distance_of_known_gaussians() -> None:
    a = whitened(400, 6, 0)
    scale, shift = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0]).double(), torch.arange(6).double()
    b = whitened(300, 6, 1) * scale + shift
    # commuting covariances: |m|^2 + sum (s_1 - s_2)^2
    assert frechet(a, b, at_once=64) == pytest.approx(55 + float((scale - 1).square().sum()), rel=1e-9)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a, a.clone()) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_where_covariances_do_not_commute() -> None:
    a, b = whitened(200, 2, 0), whitened(200, 2, 1)
    first, second = torch.tensor([[2.0, 0.0], [1.0, 1.0]]).double(), torch.tensor([[1.0, 0.0], [-1.0, 2.0]]).double()
    s, t = first @ first.T, second @ second.T
    # of a 2 x 2 matrix: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))
    m = s @ t
    root = (m.trace() + 2 * torch.linalg.det(m).sqrt()).sqrt()
    wanted = float(s.trace() + t.trace() - 2 * root)
    assert frechet(a @ first.T, b @ second.T) == pytest.approx(wanted, rel=1e-9)


def test_kernel_distance_is_the_double_sum() -> None:
    x, y = torch.randn(5, 3).double(), torch.randn(5, 3).double() + 1

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within = sum(k(z[i], z[j]) for z in (x, y) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(k(a, b) for a in x for b in y) / 25
    found = kernel(x, y)
    assert found.value == pytest.approx(within - 2 * across)
    assert found.spread > 0


def test_kernel_distance_over_subsets_is_repeatable_and_near_the_whole() -> None:
    x, y = torch.randn(300, 4), torch.randn(280, 4) + 0.5
    torch.manual_seed(1)
    found = kernel(x, y, subset=100)
    torch.manual_seed(2)
    assert kernel(x, y, subset=100) == found
    assert found.spread > 0
    assert found.value == pytest.approx(kernel(x[:280], y).value, rel=0.2)


def test_manifold_of_hand_made_sets() -> None:
    real = torch.arange(6).double()[:, None]  # balls of the first neighbour are [i - 1, i + 1]
    assert manifold(real, real + 0.0, k=1, dense=1)[:2] == (1.0, 1.0)
    far = manifold(real, real + 100, k=1, dense=1)
    assert far == (0.0, 0.0, 0.0, 0.0)
    # two of four inside; 0.5 lies in the balls of 0 and 1, 4.5 in those of 4 and 5, so four balls are reached
    fake = torch.tensor([0.5, 4.5, 50.0, 90.0]).double()[:, None]
    found = manifold(real, fake, k=1, dense=1, at_once=3)
    assert found.precision == 0.5
    assert found.density == 4 / 4
    assert found.coverage == 4 / 6
    assert found.recall == 1.0  # the ball of 0.5 reaches to 4.5
    with pytest.raises(ValueError, match="need more than 5 images"):
        manifold(real[:5], fake)


def test_inception_score_of_known_predictions() -> None:
    sure = torch.eye(4).repeat(25, 1) * 1000
    assert inception_score(sure, splits=1).value == pytest.approx(4.0)
    assert inception_score(torch.zeros(100, 4)).value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="10 splits"):
        inception_score(sure[:5])


def test_inception_score_is_that_of_torchmetrics() -> None:
    import warnings

    from torchmetrics.image.inception import InceptionScore

    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
    metric.update(logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = float(metric.compute()[0])
    assert inception_score(logits, splits=1).value == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [((3, 4), (3, 5), "one D"), ((1, 4), (3, 4), "two images"), ((3,), (3, 4), r"\(N, D\)")],
)
def test_bad_features_are_told(a: tuple[int, ...], b: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        frechet(torch.zeros(a), torch.zeros(b))
    with pytest.raises(ValueError, match="not finite"):
        kernel(torch.full((3, 2), float("nan")), torch.zeros(3, 2))


@pytest.mark.slow
def test_what_is_used_of_torchmetrics_needs_neither_of_its_networks() -> None:
    code = (
        "import sys, torch; from sfumato.evaluation.frechet import frechet, kernel; x = torch.randn(9, 3); frechet(x, x + 1); "
        "kernel(x, x + 1); assert not {'torch_fidelity', 'transformers.modeling_utils', 'torch' + 'vision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
