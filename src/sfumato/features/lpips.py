"""`kind: lpips`. Learned perceptual image patch similarity over VGG16 (Zhang et al., 2018, eq. 1).

The weights are the user's files: VGG16 in the names of its published file (`features.0.weight`, ...) and the five
calibrated heads (`lin0.model.1.weight`, ...), as safetensors or as a checkpoint that is read without unpickling code.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import files
from sfumato.features.perceptual import Perceptual, PerceptualConfig, frozen

# Convolutions of VGG16 (Simonyan & Zisserman, 2015, configuration D) up to each of the five maps that are compared.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
EPS = 1e-10  # inside the root: a map of zeros has a length whose gradient is finite


class LpipsConfig(PerceptualConfig):
    """The files of VGG16 and of the heads."""

    heads: Path = Field(description="the file with the five heads")
    heads_sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="what that file must be")

    def build(self) -> "Lpips":
        lpips = Lpips()
        lpips.take(weights(self.network, self.sha256), weights(self.heads, self.heads_sha256))
        return lpips


class Lpips(Perceptual):
    """Distances of unit-length feature vectors at five depths, weighted channel by channel, averaged over places."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        # the published preparation: ImageNet's means and deviations, for values in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1))
        width, stages = 3, list[nn.Module]()
        for widths in STAGES:
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
            for wide in widths:
                layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()]
                width = wide
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ParameterList([torch.zeros(widths[-1]) for widths in STAGES])
        frozen(self)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        count = len(a)
        maps = (torch.cat([a, b]) - self.shift) / self.scale
        total = maps.new_zeros(count)
        for stage, head in zip(self.stages, self.heads, strict=True):
            maps = stage(maps)
            unit = maps / (maps.square().sum(1, keepdim=True) + EPS).sqrt()
            difference = (unit[:count] - unit[count:]).square()
            total = total + F.conv2d(difference, head[None, :, None, None]).mean((1, 2, 3))
        return total

    @torch.no_grad()
    def take(self, network: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Load VGG16 and the heads under their published names. Raises `ValueError` where one is missing or unfit."""
        number = 0
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential)
            for layer in stage:
                if isinstance(layer, nn.Conv2d):
                    for name, held in (("weight", layer.weight), ("bias", layer.bias)):
                        assert held is not None
                        held.copy_(_found(network, f"features.{number}.{name}", held.shape))
                number += 1
        for k, head in enumerate(self.heads):
            head.copy_(_found(heads, f"lin{k}.model.1.weight", (1, len(head), 1, 1)).reshape(-1))


def weights(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a published checkpoint, which is read without running code in it.

    Raises `ValueError` where the file is missing, is not the expected one, or is neither.
    """
    if not path.is_file():
        raise ValueError(f"there are no weights {path}; give the path of the file")
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
