"""AdamW and the learning rate along a run."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sfumato.training.recipe import TrainingConfig


def optimizer(modules: Sequence[nn.Module], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019), fused. Only matrices and kernels decay; norms and biases do not."""
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    wide = [p for p in parameters if p.ndim > 1]
    narrow = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": wide, "weight_decay": config.weight_decay}, {"params": narrow, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.rate, betas=config.betas, fused=True)


def rate_at(images: int, config: TrainingConfig) -> float:
    """The learning rate after `images` images: a linear rise, a plateau, a half cosine down to `floor`."""
    done = images / config.images
    rise = min(1.0, done / config.warmup) if config.warmup else 1.0
    into = 0.0 if not config.decay else max(0.0, (done - (1.0 - config.decay)) / config.decay)
    fall = config.floor + (1.0 - config.floor) * 0.5 * (1.0 + math.cos(math.pi * min(into, 1.0)))
    return config.rate * max(min(rise, fall), 1e-3)


def state(optimizers: dict[str, torch.optim.AdamW]) -> dict[str, Tensor]:
    """The moments and step counts of all optimisers as flat names."""
    tensors = {}
    for turn, adam in optimizers.items():
        for index, parameter in enumerate(_parameters(adam)):
            for key, value in adam.state[parameter].items():
                tensors[f"{turn}.{index}.{key}"] = value
    return tensors


def restore(optimizers: dict[str, torch.optim.AdamW], tensors: dict[str, Tensor]) -> None:
    """Take back what `state` gave."""
    for name, value in tensors.items():
        turn, index, key = name.split(".")
        parameter = _parameters(optimizers[turn])[int(index)]
        optimizers[turn].state[parameter][key] = value.to(parameter.device)


def _parameters(adam: torch.optim.AdamW) -> list[nn.Parameter]:
    return [p for group in adam.param_groups for p in group["params"]]
