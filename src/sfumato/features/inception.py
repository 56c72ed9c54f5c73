"""The published Inception network, from whose one pass FID, sFID and Inception score are told.

The file is `inception-2015-12-05.pt`, the TensorFlow graph of that day as TorchScript, known by its SHA-256. It takes
bytes (B, 3, H, W) of any size and resizes them itself to 299 pixels: bilinear, not antialiased, corners as TensorFlow 1
laid them. Hooks do not fire inside a script, so the map that sFID looks at (Nash et al., 2021: the output of
`mixed_6/conv`) is worked out by the file's own layers in turn, and the logits by its last weights without their bias, as
published. Whether that is the same network is tried once: where it is not, there is the pooled output alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
SIDE = 299
MAP = "mixed_6"  # the block whose first convolution gives the map


class Inception(nn.Module):
    """Bytes (B, 3, H, W) -> pooled (B, 2048), the map (B, C, 17, 17), logits (B, classes)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor, return_features: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        script: Any = self.network
        pooled: Tensor = script(pictures, return_features=True)
        return pooled, self._run(resized(pictures), MAP), pooled @ script.output.weight.to(pooled).T

    def _run(self, values: Tensor, to: str | None = None) -> Tensor:
        """What the layers make of prepared pictures, all of them or up to the first convolution of the block `to`."""
        layers: Any = self.network.layers
        for name, layer in layers.named_children():
            values = layer.conv(values) if name == to else layer(values)
            if name == to:
                return values
        if to is not None:
            raise AttributeError(f"the network has no block {to}")
        return values

    def holds(self) -> bool:
        """Whether the layers, one after the other, give what the whole network gives."""
        made = torch.Generator().manual_seed(0)
        pictures = torch.randint(0, 256, (2, 3, 40, 56), generator=made, dtype=torch.uint8)
        try:
            pooled, _, _ = self(pictures)
            near = torch.isclose(self._run(resized(pictures)).reshape(pooled.shape), pooled, rtol=1e-2, atol=1e-3)
        except (AttributeError, RuntimeError, TypeError):
            return False
        return bool(near.all())


@torch.no_grad()
def whole(network: nn.Module) -> Inception | None:
    """The network with all three outputs; None where it is not built as the published one."""
    made = Inception(network)
    return made if made.holds() else None


def resized(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 255] -> (B, 3, 299, 299) in [-1, 1), as the graph does it: place k is read at k H / 299."""
    values = pictures.float()
    for axis in (2, 3):
        count = values.shape[axis]
        at = torch.arange(SIDE, dtype=torch.float64) * count / SIDE  # on the host: not every device has doubles
        part = (at - at.floor()).to(values).reshape([SIDE if k == axis else 1 for k in range(4)])
        low = at.long().to(values.device)
        high = values.index_select(axis, (low + 1).clamp(max=count - 1))
        values = torch.lerp(values.index_select(axis, low), high, part)
    return (values - 128.0) / 128.0
