"""The published Inception network, from whose one pass FID, sFID and Inception score are told.

The file is `inception-2015-12-05.pt`, the TensorFlow graph of that day as TorchScript, known by its SHA-256. It takes
bytes (B, 3, H, W) of any size and resizes them itself to 299 pixels: bilinear, not antialiased, corners as TensorFlow 1
laid them. Hooks do not fire inside a script, so the map that sFID looks at (Nash et al., 2021: the output of
`mixed_6/conv`) is worked out by the file's own layers in turn, and the logits by its last weights without their bias, as
published. Whether that is the same network is tried once: where it is not, there is the pooled output alone.
"""

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
        pooled, last = self.network(pictures, return_features=True), self.network.output
        assert isinstance(last, nn.Module)
        weight = last.weight
        assert isinstance(weight, Tensor)
        return pooled, self._map(resized(pictures)), pooled @ weight.to(pooled).T

    def _map(self, values: Tensor) -> Tensor:
        layers = self.network.layers
        assert isinstance(layers, nn.Module)
        for name, layer in layers.named_children():
            if name == MAP:
                found: Tensor = layer.conv(values)  # type: ignore[operator]
                return found
            values = layer(values)
        raise AttributeError(f"the network has no block {MAP}")

    def holds(self) -> bool:
        """Whether the layers, one after the other, give what the whole network gives."""
        made = torch.Generator().manual_seed(0)
        pictures = torch.randint(0, 256, (2, 3, 40, 56), generator=made, dtype=torch.uint8)
        try:
            pooled, _, _ = self(pictures)
            values = resized(pictures)
            for _, layer in self.network.layers.named_children():  # type: ignore[union-attr, operator]
                values = layer(values)
            near = torch.isclose(values.reshape(pooled.shape), pooled, rtol=1e-2, atol=1e-3)
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
        at = torch.arange(SIDE, device=values.device, dtype=torch.float64) * count / SIDE
        low = at.floor().long()
        part = (at - low).float().reshape([SIDE if k == axis else 1 for k in range(4)])
        high = values.index_select(axis, (low + 1).clamp(max=count - 1))
        values = torch.lerp(values.index_select(axis, low), high, part)
    return (values - 128.0) / 128.0
