"""`kind: torchscript`. Any scripted network (B, 3, H, W) -> (B, N): the squared Euclidean distance of its outputs."""

from torch import Tensor, nn

from sfumato.features.files import script
from sfumato.features.perceptual import Perceptual, PerceptualConfig, frozen


class ScriptConfig(PerceptualConfig):
    """A TorchScript file; it is opened only after its SHA-256 was compared, where one is given."""

    def build(self) -> "ScriptPerceptual":
        return ScriptPerceptual(script(self.network, self.sha256))


class ScriptPerceptual(Perceptual):
    """Squared Euclidean distance of the outputs of a scripted network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = frozen(network)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        difference: Tensor = self.network(a) - self.network(b)
        return difference.flatten(1).square().sum(1)
