"""`kind: torchscript`. Any scripted network (B, 3, H, W) -> (B, N): the squared Euclidean distance of its outputs.

Of a network that gives several outputs the first counts.
"""

from torch import Tensor, nn

from sfumato.features.files import script
from sfumato.features.network import unfit
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
        return (self._seen(a) - self._seen(b)).square().sum(1)

    def _seen(self, pictures: Tensor) -> Tensor:
        try:
            made = self.network(pictures)
        except RuntimeError as error:
            raise unfit("the perceptual network", pictures, error) from None
        first: Tensor = made[0] if isinstance(made, tuple | list) else made
        return first.flatten(1)
