"""The optimisers of a turn and the learning rate along a run: Muon for matrices and kernels, AdamW for the rest."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sfumato.lanes import side_by_side
from sfumato.training.muon import Muon
from sfumato.training.settings import TrainingConfig

SMALLEST = 16  # rows or columns; thinner matrices (first and last layers) have no spectrum worth levelling


class Optimizer:
    """One turn's optimisers, stepped together; on `lanes` sides at once, each with a share of the parameters."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        config: TrainingConfig,
        dtype: torch.dtype = torch.float32,
        lanes: int = 1,
    ) -> None:
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        tables = {id(e.weight) for m in modules for e in m.modules() if isinstance(e, nn.Embedding)}
        spectral = [p for p in self.parameters if config.optimizer == "muon" and matrix(p) and id(p) not in tables]
        taken = {id(p) for p in spectral}
        rest = [p for p in self.parameters if id(p) not in taken]
        spectral.sort(key=lambda p: (p.numel(), tuple(p.shape)))  # so that every lane gets its share of each shape
        self.lanes = [_parts(spectral[k::lanes], rest[k::lanes], config, dtype) for k in range(lanes)]

    @property
    def parts(self) -> list[torch.optim.Optimizer]:
        """Every optimiser of every lane."""
        return [part for several in self.lanes for part in several]

    def step(self, rate: float) -> None:
        """One step at this learning rate; the gradients are then gone."""

        def advance(parts: list[torch.optim.Optimizer]) -> None:
            for part in parts:
                for group in part.param_groups:
                    group["lr"] = rate
                part.step()
                part.zero_grad(set_to_none=True)

        side_by_side(advance, self.lanes, len(self.lanes))

    def _slots(self) -> list[tuple[torch.optim.Optimizer, nn.Parameter]]:
        """Who steps each parameter, in the modules' order: the state's names do not depend on the number of lanes."""
        place = {id(p): k for k, p in enumerate(self.parameters)}
        slots = [(part, p) for part in self.parts for group in part.param_groups for p in group["params"]]
        return sorted(slots, key=lambda slot: place[id(slot[1])])

    def state(self) -> dict[str, Tensor]:
        """The optimisers' tensors under flat names."""
        slots = enumerate(self._slots())
        return {f"{k}.{name}": value for k, (part, p) in slots for name, value in part.state[p].items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. Raises `KeyError` where it is of other optimisers than these."""
        slots = self._slots()
        for key, value in tensors.items():
            number, name = key.split(".")
            part, parameter = slots[int(number)]
            if (name == "momentum") != isinstance(part, Muon):
                raise KeyError(f"{name} of another optimiser")
            # a copy: what a file was mapped to need not be aligned, and other alignments round otherwise
            part.state[parameter][name] = value.to(parameter.device, copy=True)


def _parts(
    spectral: list[nn.Parameter], rest: list[nn.Parameter], config: TrainingConfig, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Muon for the spectral parameters and AdamW (Loshchilov & Hutter, 2019) for the rest."""
    parts: list[torch.optim.Optimizer] = []
    if spectral:
        parts.append(Muon(spectral, config.rate, weight_decay=config.weight_decay, dtype=dtype))
    # norms and biases do not decay
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if groups:
        parts.append(torch.optim.AdamW(groups, lr=config.rate, betas=config.betas, fused=True))
    return parts


def matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix, or a kernel to be read as one, of some size."""
    return parameter.ndim > 1 and min(parameter.shape[0], parameter[0].numel()) >= SMALLEST and parameter.shape[0] > 1


def rate_at(images: int, config: TrainingConfig) -> float:
    """The learning rate after `images` images: a linear rise, a plateau, a half cosine down to `floor`."""
    done = images / config.images
    rise = min(1.0, done / config.warmup) if config.warmup else 1.0
    into = 0.0 if not config.decay else max(0.0, (done - (1.0 - config.decay)) / config.decay)
    fall = config.floor + (1.0 - config.floor) * 0.5 * (1.0 + math.cos(math.pi * min(into, 1.0)))
    return config.rate * min(max(rise, 1e-3), fall)  # the first step of a warm-up moves something
