"""Perceptual distances: gradients that arrive, numbers that do not depend on chance, files that are checked."""

import hashlib
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.features import files
from sfumato.features.lpips import NETWORKS, Lpips, Name, published
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


def other_files(name: Name, folder: Path) -> Path:
    """AlexNet or SqueezeNet with random weights, under the names and of the shapes of the published file."""
    torch.manual_seed(0)
    if name == "AlexNet":
        sizes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
        shapes = {f"features.{n}": (o, i, k, k) for n, (o, i, k) in sizes.items()}
    else:
        fires = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128), 9: (256, 48, 192)}
        fires |= {10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}
        shapes = {"features.0": (64, 3, 3, 3)}
        for n, (i, s, e) in fires.items():
            shapes |= {f"features.{n}.squeeze": (s, i, 1, 1), f"features.{n}.expand1x1": (e, s, 1, 1)}
            shapes |= {f"features.{n}.expand3x3": (e, s, 3, 3)}
    network = {f"{n}.weight": torch.randn(s) * (2 / (s[1] * s[2] * s[3])) ** 0.5 for n, s in shapes.items()}
    network |= {f"{n}.bias": 0.1 * torch.randn(s[0]) for n, s in shapes.items()}
    torch.save({**network, "classifier.1.weight": torch.zeros(2)}, folder / f"{name}.pth")
    return folder / f"{name}.pth"


def published_maps(name: Name, weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The maps that LPIPS compares, written out layer by layer as the networks were published."""
    f = nn.functional

    def conv(x: Tensor, of: str, **how: Any) -> Tensor:
        return f.conv2d(x, weights[f"features.{of}.weight"], weights[f"features.{of}.bias"], **how).relu()

    def fire(x: Tensor, n: int) -> Tensor:
        s = conv(x, f"{n}.squeeze")
        return torch.cat([conv(s, f"{n}.expand1x1"), conv(s, f"{n}.expand3x3", padding=1)], 1)

    if name == "AlexNet":
        a = conv(x, "0", stride=4, padding=2)
        b = conv(f.max_pool2d(a, 3, 2), "3", padding=2)
        c = conv(f.max_pool2d(b, 3, 2), "6", padding=1)
        d = conv(c, "8", padding=1)
        return [a, b, c, d, conv(d, "10", padding=1)]
    pool = partial(f.max_pool2d, kernel_size=3, stride=2, ceil_mode=True)
    a = conv(x, "0", stride=2)
    b = fire(fire(pool(a), 3), 4)
    c = fire(fire(pool(b), 6), 7)
    d = fire(pool(c), 9)
    e, g = fire(d, 10), fire(fire(d, 10), 11)
    return [a, b, c, d, e, g, fire(g, 12)]


@pytest.mark.parametrize("name", ["AlexNet", "SqueezeNet"])
def test_lpips_over_the_lighter_networks_is_its_formula_with_the_heads_that_are_installed(
    name: Name, tmp_path: Path
) -> None:
    file = other_files(name, tmp_path)
    made = PerceptualConfig.model_validate({"kind": "lpips", "network": file}).build()
    heads = torch.load(published(name), map_location="cpu", weights_only=True)
    assert hashlib.sha256(published(name).read_bytes()).hexdigest() == NETWORKS[name].sha256
    a, b = torch.rand(2, 2, 3, 40, 56) * 2 - 1
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1)
    weights = torch.load(file, weights_only=True)
    one, other = (published_maps(name, weights, (x - shift) / scale) for x in (a, b))
    total = torch.zeros(2)
    for k, (u, v) in enumerate(zip(one, other, strict=True)):
        u, v = (m / m.square().sum(1, keepdim=True).sqrt().clamp(min=1e-10) for m in (u, v))
        total = total + ((u - v).square() * heads[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2))
    torch.testing.assert_close(made(a, b), total, rtol=1e-4, atol=1e-5)
    least = torch.rand(2, 1, 3, made.smallest, made.smallest)
    assert float(made(*least)) > 0
    with pytest.raises(ValueError, match=f"needs pictures of {made.smallest} pixels"):
        made(*least[..., 1:, 1:])
    made.smallest -= 1
    with pytest.raises(RuntimeError, match="too small"):
        made(*least[..., 1:, 1:])


@pytest.mark.skipif(not SQUEEZENET.is_file(), reason="the real feature networks are not here")
def test_squeezenet_s_layers_are_those_of_a_real_one(tmp_path: Path) -> None:
    """The scripted network is a SqueezeNet 1.1 too, whose outputs' squared distance is LPIPS; its pictures are prepared otherwise."""
    script = files.script(SQUEEZENET, None)
    theirs = script.state_dict()
    names = {
        "conv1": "0",
        **{f"fire{k}": str(n) for k, n in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True)},
    }
    network = {}
    for name, value in theirs.items():
        first, *rest = name.removesuffix("_0").replace("squeeze1x1", "squeeze").split("_")
        if first in names:
            kind = {"w": "weight", "b": "bias"}[rest[-1]]
            network[".".join(["features", names[first], *rest[:-1], kind])] = value
    made = Lpips("SqueezeNet")
    made.take(network, {f"lin{k}.model.1.weight": theirs[f"lin{k}"].square().reshape(1, -1, 1, 1) for k in range(7)})
    a, b = torch.rand(2, 2, 3, 40, 48) * 2 - 1
    seen = [
        ((x + 1) * 127.5).flip(1) - theirs["mean"] for x in (a, b)
    ]  # channels from blue to red, of 255, less their means
    made.shift.zero_()
    made.scale.fill_(1)
    with torch.no_grad():
        wanted = (script(a) - script(b)).square().sum(1)
        found = made.distance(*seen)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


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
        ({"network": tmp_path / "absent.pth"}, "there are no weights .*absent.pth; give the path"),
        (
            {"network": tmp_path / "vgg16-397923af.pth"},
            f"`sfumato fetch vgg16 --out {tmp_path}` gets it, or give the path",
        ),
        ({"network": Path("weights/vgg16-397923af.pth")}, "`sfumato fetch vgg16` gets it, or give the path"),
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
