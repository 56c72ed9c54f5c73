"""Perceptual distances: gradients that arrive, numbers that do not depend on chance, files that are checked."""

import hashlib
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.features.lpips import Lpips
from sfumato.features.perceptual import Perceptual, PerceptualConfig
from sfumato.features.torchscript import ScriptPerceptual
from tests.outside import DATA

SQUEEZENET = DATA / "weights" / "squeezenet_perceptual.pt"


class Small(nn.Module):
    """(B, 3, H, W) -> (B, 8), with the dropout that made published losses random."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.drop = nn.Conv2d(3, 8, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.conv(x)).mean((2, 3))


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Small()).save(str(tmp_path / "small.pt"))
    return tmp_path / "small.pt"


def vgg_files(folder: Path) -> tuple[Path, Path]:
    """VGG16 and the heads with random weights, under the names of the published files."""
    torch.manual_seed(0)
    layers: list[tuple[int, int, int]] = []
    number, width = 0, 3
    for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if wide:
            layers.append((number, width, wide))
            width = wide
        number += 2 if wide else 1
    network = {f"features.{n}.weight": torch.randn(o, i, 3, 3) * (2 / (9 * i)) ** 0.5 for n, i, o in layers}
    network |= {f"features.{n}.bias": 0.1 * torch.randn(o) for n, _, o in layers}
    heads = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 128, 256, 512, 512))}
    torch.save(network, folder / "vgg16.pth")
    save_file(heads, folder / "heads.safetensors")
    return folder / "vgg16.pth", folder / "heads.safetensors"


def lpips(folder: Path) -> Perceptual:
    network, heads = vgg_files(folder)
    return PerceptualConfig.model_validate({"kind": "lpips", "network": network, "heads": heads}).build()


def test_lpips_is_its_formula(tmp_path: Path) -> None:
    made = lpips(tmp_path)
    network, heads = torch.load(tmp_path / "vgg16.pth", weights_only=True), made.state_dict()
    a, b = torch.rand(2, 2, 3, 32, 48) * 2 - 1
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1)
    x, y, total, depth = (a - shift) / scale, (b - shift) / scale, torch.zeros(2), 0
    for number in range(31):
        if f"features.{number}.weight" in network:
            w, c = network[f"features.{number}.weight"], network[f"features.{number}.bias"]
            x, y = (nn.functional.conv2d(v, w, c, padding=1).relu() for v in (x, y))
        elif number in (4, 9, 16, 23, 30):  # the published network's pools
            u, v = (m / m.square().sum(1, keepdim=True).sqrt().clamp(min=1e-10) for m in (x, y))
            head = heads[f"heads.{depth}"].reshape(1, -1, 1, 1)
            total, depth = total + ((u - v).square() * head).sum(1).mean((1, 2)), depth + 1
            x, y = nn.functional.max_pool2d(x, 2), nn.functional.max_pool2d(y, 2)
    torch.testing.assert_close(made(a, b), total, rtol=1e-4, atol=1e-5)
    assert torch.equal(made(a, a), torch.zeros(2))


@pytest.mark.parametrize("bias", [0.0, 1e-30])  # of which the square is 0, and which a ReLU lets gradients through
def test_maps_of_next_to_nothing_are_finite_and_so_are_their_gradients(bias: float) -> None:
    made = Lpips()
    for name, weight in made.named_parameters():
        weight.fill_(bias if name.endswith("bias") else 0.0)
    made.heads[0].fill_(1)
    picture = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance = made(picture, torch.ones(1, 3, 32, 32))
    assert float(distance.detach()) == 0
    distance.sum().backward()
    assert picture.grad is not None
    assert picture.grad.isfinite().all()


def test_gradients_reach_pictures_and_not_the_network(scripted: Path, tmp_path: Path) -> None:
    for made in (lpips(tmp_path), ScriptPerceptual(torch.nn.Sequential(Small()))):
        picture = torch.rand(1, 3, 32, 32, requires_grad=True)
        made(picture, torch.zeros(1, 3, 32, 32)).sum().backward()
        assert picture.grad is not None
        assert picture.grad.abs().max() > 0
        assert all(not p.requires_grad for p in made.parameters())


def test_dropout_inside_the_network_stays_off_in_training(scripted: Path) -> None:
    made = PerceptualConfig.model_validate({"kind": "torchscript", "network": scripted}).build()
    holder = nn.Sequential(made).train()
    a, b = torch.rand(2, 2, 3, 16, 16)
    assert torch.equal(holder[0](a, b), holder[0](a, b))
    expected = Small().eval()
    torch.testing.assert_close(made(a, b), (expected(a) - expected(b)).square().sum(1).detach())


def test_a_file_must_be_the_expected_one(scripted: Path, tmp_path: Path) -> None:
    right = hashlib.sha256(scripted.read_bytes()).hexdigest()
    fields = {"kind": "torchscript", "network": scripted}
    PerceptualConfig.model_validate({**fields, "sha256": right.upper()}).build()
    with pytest.raises(ValueError, match="get the file again"):
        PerceptualConfig.model_validate({**fields, "sha256": "0" * 64}).build()
    with pytest.raises(ValueError, match="there is no feature network"):
        PerceptualConfig.model_validate({**fields, "network": tmp_path / "absent.pt"}).build()
    network, heads = vgg_files(tmp_path)
    of_vgg = {"kind": "lpips", "network": network, "heads": heads}
    for changed, words in [
        ({"heads_sha256": "0" * 64}, "heads.safetensors has SHA-256"),
        ({"heads": network}, r"lin0.model.1.weight is missing"),
        ({"network": heads}, r"features.0.weight is missing"),
        ({"network": tmp_path / "absent.pth"}, "there are no weights"),
        ({"network": scripted}, "is not a checkpoint of tensors|features.0.weight is missing"),
    ]:
        with pytest.raises(ValueError, match=words):
            PerceptualConfig.model_validate({**of_vgg, **changed}).build()


def test_pictures_of_any_channels_or_a_sentence(scripted: Path) -> None:
    made = PerceptualConfig.model_validate({"kind": "torchscript", "network": scripted}).build()
    gray = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(made(gray, -gray), made(gray.expand(-1, 3, -1, -1), -gray.expand(-1, 3, -1, -1)))
    assert made(torch.rand(1, 4, 16, 16), torch.rand(1, 4, 16, 16)).shape == (1,)
    with pytest.raises(ValueError, match="1, 3 or more channels"):
        made(torch.rand(1, 2, 16, 16), torch.rand(1, 2, 16, 16))
    with pytest.raises(ValueError, match="needs pictures of 16 pixels"):
        made(torch.rand(1, 3, 8, 16), torch.rand(1, 3, 8, 16))


@pytest.mark.skipif(not SQUEEZENET.is_file(), reason="the real feature networks are not here")
def test_a_real_network_ranks_damage() -> None:
    made = PerceptualConfig.model_validate({"kind": "torchscript", "network": SQUEEZENET}).build()
    torch.manual_seed(0)
    picture = nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=64, mode="bicubic") * 2 - 1
    little, much = (made(picture, picture + s * torch.randn_like(picture)) for s in (0.02, 0.2))
    assert 0 < float(little) < float(much)
