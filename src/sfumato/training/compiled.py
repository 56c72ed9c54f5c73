"""Turns made ready for an accelerator: their networks compiled, captured where shapes are fixed, and channels-last.

The networks, and not the turns around them, since a turn reads texts and draws times. A decoder that a critic judges is
gone back through several times a step, for the adaptive weight, which a compiled network cannot do in parts; critics need
gradients of gradients. One that decodes moved latents meets another size at most steps, and would be compiled anew for
each. They stay eager.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from sfumato import distributed
from sfumato.autoencoder.coder import Decoder, Encoder
from sfumato.backbones.base import Backbone
from sfumato.families.autoregressive import Transformer
from sfumato.nn.compiled import BACKEND, channels_last_, compile_, wanted
from sfumato.training.autoencoder import Coder
from sfumato.training.settings import TrainingConfig


def networks(turns: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The networks that some turns train, each once, and that are gone through forwards and backwards as a whole."""
    seen: set[int] = set()
    for turn in turns:
        eager = isinstance(turn, Coder) and (turn.critic is not None or turn.weights.equivariance > 0)
        for module in turn.modules():
            whole = isinstance(module, Backbone | Encoder | Transformer) or (isinstance(module, Decoder) and not eager)
            if whole and id(module) not in seen and any(p.requires_grad for p in module.parameters()):
                seen.add(id(module))
                yield module


def ready(turns: Iterable[nn.Module], config: TrainingConfig, device: torch.device, backend: str = BACKEND) -> None:
    """Make the turns' networks ready to be trained on this device, in place; before they are wrapped for many processes.

    A denoiser is captured into CUDA graphs where its gradients are not added up, over parts or processes: they lie in the
    graph's own memory until the next call.
    """
    alone = config.accumulate == 1 and distributed.place()[1] == 1
    for network in networks(turns):
        if device.type == "cuda":
            channels_last_(network)
        if wanted(config.compile, device):
            captured = device.type == "cuda" and alone and isinstance(network, Backbone)
            compile_(network, captured=captured, backend=backend)
