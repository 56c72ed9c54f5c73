"""`kind: lpips`. Learned perceptual image patch similarity (Zhang et al., 2018, eq. 1) over VGG16, AlexNet or SqueezeNet.

The network is the user's file, in the names of its published form (`features.0.weight`, ...), as safetensors or as a
checkpoint that is read without unpickling code; which of the three it is, its names tell. The calibrated heads
(`lin0.model.1.weight`, ...), version 0.1, come with torchmetrics, which is installed beside this package.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import files
from sfumato.features.fetch import remedy
from sfumato.features.perceptual import Perceptual, PerceptualConfig, frozen

EPS = 1e-10  # inside the root: a map of zeros has a length whose gradient is finite

Name = Literal["VGG16", "AlexNet", "SqueezeNet"]


class Fire(nn.Module):
    """Squeeze by 1 x 1, expand by 1 x 1 and 3 x 3 (Iandola et al., 2016, section 3.2): (B, width, H, W) -> (B, 2 wide, H, W)."""

    def __init__(self, width: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, wide, 1)
        self.expand3x3 = nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Both halves, rectified."""
        narrow = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(narrow), self.expand3x3(narrow)], 1).relu()


def vgg16() -> list[nn.Module]:
    """The convolutions of configuration D (Simonyan & Zisserman, 2015)."""
    layers, width = list[nn.Module](), 3
    for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()] if wide else [nn.MaxPool2d(2)]
        width = wide or width
    return layers


def alexnet() -> list[nn.Module]:
    """The convolutions of the one-column AlexNet (Krizhevsky, 2014)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
    ]
    layers += [nn.ReLU(), nn.MaxPool2d(3, 2)]
    for width, wide in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()]
    return layers


def squeezenet() -> list[nn.Module]:
    """SqueezeNet 1.1 (Iandola et al., 2016), up to its classifier."""
    pools = [nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(3)]
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pools[0], Fire(64, 16, 64), Fire(128, 16, 64)]
    layers += [pools[1], Fire(128, 32, 128), Fire(256, 32, 128), pools[2], Fire(256, 48, 192), Fire(384, 48, 192)]
    return [*layers, Fire(384, 64, 256), Fire(512, 64, 256)]


class Network(NamedTuple):
    """One of the networks that heads are published for."""

    layers: Callable[[], list[nn.Module]]
    taps: dict[int, int]  # the layers whose maps are compared, with their channels
    heads: str  # torchmetrics' file of its heads
    sha256: str  # of that file
    smallest: int  # pixels a side below which its maps vanish


NETWORKS: dict[Name, Network] = {
    "VGG16": Network(
        vgg16,
        {3: 64, 8: 128, 15: 256, 22: 512, 29: 512},
        "vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        16,
    ),
    "AlexNet": Network(
        alexnet,
        {1: 64, 4: 192, 7: 384, 9: 256, 11: 256},
        "alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        31,
    ),
    "SqueezeNet": Network(
        squeezenet,
        {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512},
        "squeeze.pth",
        "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
        17,
    ),
}


class LpipsConfig(PerceptualConfig):
    """The files of the network and of the heads."""

    heads: Path | None = Field(None, description="the file with the heads; null: those that come with torchmetrics")
    heads_sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="what that file must be")

    def build(self) -> "Lpips":
        network = weights(self.network, self.sha256)
        lpips = Lpips(told(network))
        heads, sha256 = self.heads, self.heads_sha256
        if heads is None:
            heads, sha256 = published(lpips.name), sha256 or NETWORKS[lpips.name].sha256
        lpips.take(network, weights(heads, sha256))
        return lpips


class Lpips(Perceptual):
    """Distances of unit-length feature vectors at several depths, weighted channel by channel, averaged over places."""

    shift: Tensor
    scale: Tensor

    def __init__(self, name: Name = "VGG16") -> None:
        super().__init__()
        # the published preparation: ImageNet's means and deviations, for values in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1))
        self.name, network = name, NETWORKS[name]
        self.smallest, self.taps = network.smallest, network.taps
        self.features = nn.Sequential(*network.layers()[: max(self.taps) + 1])
        self.heads = nn.ParameterList([torch.zeros(channels) for channels in self.taps.values()])
        frozen(self)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        count = len(a)
        maps = (torch.cat([a, b]) - self.shift) / self.scale
        total, heads = maps.new_zeros(count), iter(self.heads)
        for number, layer in enumerate(self.features):
            maps = layer(maps)
            if number in self.taps:
                unit = maps / (maps.square().sum(1, keepdim=True) + EPS).sqrt()
                difference = (unit[:count] - unit[count:]).square()
                total = total + F.conv2d(difference, next(heads)[None, :, None, None]).mean((1, 2, 3))
        return total

    @torch.no_grad()
    def take(self, network: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Load network and heads under their published names. Raises `ValueError` where one is missing or unfit."""
        for name, held in self.features.named_parameters():
            held.copy_(_found(network, f"features.{name}", held.shape))
        for k, head in enumerate(self.heads):
            head.copy_(_found(heads, f"lin{k}.model.1.weight", (1, len(head), 1, 1)).reshape(-1))


def told(network: Mapping[str, Tensor]) -> Name:
    """Which network a file's names are of; VGG16 where they are of none, whose first missing one is then told."""
    if "features.3.squeeze.weight" in network:
        return "SqueezeNet"
    first = network.get("features.0.weight")
    return "AlexNet" if first is not None and first.shape == (64, 3, 11, 11) else "VGG16"


def published(name: Name) -> Path:
    """The heads of this network that come with torchmetrics. Raises `ValueError` where they do not."""
    found = importlib.util.find_spec("torchmetrics")
    places = [] if found is None else found.submodule_search_locations or []
    for place in places:
        path = Path(place) / "functional" / "image" / "lpips_models" / NETWORKS[name].heads
        if path.is_file():
            return path
    raise ValueError(
        f"the installed torchmetrics has no heads of LPIPS over {name}; name their file (perceptual.heads, or "
        "--perceptual-heads)"
    )


def as_published(path: Path) -> bool:
    """Whether a file holds the heads of one of the networks as they come with torchmetrics."""
    return path.is_file() and files.sha256(path) in {network.sha256 for network in NETWORKS.values()}


def weights(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a published checkpoint, which is read without running code in it.

    Raises `ValueError` where the file is missing, is not the expected one, or is neither.
    """
    if not path.is_file():
        raise ValueError(f"there are no weights {path}; {remedy(path)}give the path of the file")
    found = files.sha256(path)
    if sha256 is not None and found != sha256.lower():
        raise ValueError(f"{path} has SHA-256 {found}, expected was {sha256}; get the file again, or mend the number")
    if path.suffix == ".safetensors":
        return files.load_tensors(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        raise ValueError(f"{path} is not a checkpoint of tensors ({str(error).splitlines()[0]})") from None
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds no named tensors; give the published file, or safetensors of it")
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def _found(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in tensors or tensors[name].shape != shape:
        has = f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
        raise ValueError(f"the weight {name} is {has}, wanted is {tuple(shape)}; give the published file")
    return tensors[name]
