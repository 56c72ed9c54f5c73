"""A latent diffusion model: a codec, a denoiser in its latent space and the conditions that steer it.

The three meet only here. The model is what is published: `save` writes a folder without pickle, `load` opens one,
`sample` turns noise and conditions into pictures.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, ValidationError
from torch import Tensor, nn

from sfumato import files
from sfumato.autoencoder.codec import Codec, together
from sfumato.backbones.base import BackboneConfig
from sfumato.conditioning.base import ConditionerConfig, Conditions, crop, join
from sfumato.conditioning.bundle import Bundle
from sfumato.config import Config, explain, trusting
from sfumato.diffusion.denoiser import Denoiser, row, thousand
from sfumato.diffusion.guidance import Branches, guided
from sfumato.diffusion.prediction import blind, prediction
from sfumato.diffusion.samplers import Denoise
from sfumato.diffusion.schedule import ScheduleConfig
from sfumato.nn import draws
from sfumato.nn.compiled import BACKEND, Compile, compile_, wanted

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")  # of a conditioner
PredictionName = Literal["clean", "noise", "v", "flow", "edm"]


class DistilledConfig(Config):
    """How a model is sampled that was distilled into few steps: on even rows, its guidance baked in.

    With a `plain` flow the model is its teacher too, in many steps and with any guidance (`tasks/few.py`).
    """

    how: Literal["consistency", "shortcut"] = "consistency"
    steps: PositiveInt = 4
    guidance: float = Field(3.0, ge=0, description="that of the teacher, baked in")
    flow: Literal["guided", "plain"] = Field("guided", description="what a shortcut is where it is told no stride")

    @property
    def sampler(self) -> str:
        """The sampler that it was distilled for: a consistency model jumps to x_0 and is noised again, a shortcut steps."""
        return "lcm" if self.how == "consistency" else "ddim"


class DiffusionConfig(Config):
    """What a denoiser is made of; the part of a recipe that a model folder keeps."""

    backbone: BackboneConfig
    schedule: ScheduleConfig = ScheduleConfig()
    prediction: PredictionName = "flow"
    data_std: float = Field(
        0.5, gt=0, description="standard deviation of what is denoised, for edm; whitened latents have 1"
    )
    conditioners: dict[str, ConditionerConfig] = {}
    distilled: DistilledConfig | None = None
    steps: int | None = Field(
        None, ge=1, le=1000, description="of sampling where a request says none, of a model that wants few"
    )

    def sighted(self) -> Self:
        """This configuration. Raises `ValueError` where the prediction says nothing of the picture where sampling begins."""
        if blind(prediction(self.prediction, self.data_std), self.schedule.build()):
            raise ValueError(
                f"prediction {self.prediction} says nothing of the picture where this schedule ends, in noise alone, and "
                "sampling begins there; choose prediction flow or v, or a schedule of betas without zero_terminal and of "
                "another form than cosine"
            )
        if self.schedule.kind == "exploding" and self.prediction == "v":
            raise ValueError(
                "prediction v of an exploding schedule is as large as its noise, 80 times the picture, and its loss is of little "
                "else; choose prediction edm, whose network sees and gives numbers around 1"
            )
        return self

    def called(self) -> Self:
        """This configuration. Raises `ValueError` for names of conditioners that modules or folders cannot have."""
        for name in self.conditioners:
            if not NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name):
                raise ValueError(
                    f"a conditioner cannot be called {name!r}; its name is of letters, digits, - and _, and another than "
                    "those of PyTorch's modules, such as `type` or `half`"
                )
        return self


class LatentDiffusion(nn.Module):
    """The whole model. `size` is the side in pixels that it was trained at; `files` are its conditioners' texts."""

    def __init__(
        self, codec: Codec, config: DiffusionConfig, size: int, texts: Mapping[str, Mapping[str, str]]
    ) -> None:
        super().__init__()
        self.codec, self.config, self.size = codec.requires_grad_(False), config, size
        self.texts = {name: dict(texts.get(name, {})) for name in config.conditioners}
        built = {n: c.build(self.texts[n], self.codec) for n, c in config.conditioners.items()}
        for name, conditioner in config.conditioners.items():
            built[name].always = bool(conditioner.always) and not conditioner.dropout
        self.conditions = Bundle(built, self.latent_shape()[1:])
        network = config.backbone.build(codec.channels, self.conditions.sizes)
        schedule = config.schedule.build()
        clock = row if config.schedule.kind == "betas" else thousand
        self.denoiser = Denoiser(network, schedule, prediction(config.prediction, config.data_std), clock)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.codec.shift.device

    def for_sampling(
        self, dtype: torch.dtype = torch.float32, compile: Compile = "off", backend: str = BACKEND
    ) -> Self:
        """Make the network ready to sample only: its weights in `dtype`, laid out as this device runs them fastest.

        `compile` takes minutes at the first call of every size and number of pictures, and pays for many of them on
        CUDA, where the network is captured into graphs; `auto` compiles there only.

        Without casts at every operation and with channels-last maps a sampling takes 10 to 30 % less time than the
        same network under autocast (`docs/performance.md`).
        """
        self.denoiser.network.to(dtype)
        self.denoiser.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if wanted(compile, self.device):
            compile_(self.denoiser.network, captured=self.device.type == "cuda", backend=backend)
        return self

    def latent_shape(self, width: int | None = None, height: int | None = None) -> tuple[int, int, int]:
        """(channels, h, w) of the latents of a picture. Raises `ValueError` for sides the factor does not divide."""
        w, h, f = width or self.size, height or self.size, self.codec.factor
        if w % f or h % f or w < f or h < f:
            near = [max(round(n / f), 1) * f for n in (w, h)]
            raise ValueError(f"sizes must be multiples of {f} for this model; got {w}x{h}, try {near[0]}x{near[1]}")
        return self.codec.channels, h // f, w // f

    def denoise(
        self,
        given: Conditions,
        negative: Conditions | None = None,
        scale: float = 1.0,
    ) -> Denoise:
        """`denoise(x_t, t)` with conditions and guidance bound, one batched forward a call.

        `given` and `negative` (the null where None) are conditions of B examples. A scale of 1 needs only the first.
        """
        if scale == 1.0:
            return lambda x_t, t: self.denoiser(x_t, t, given)
        count = next((len(p) for p in given.parts() if p is not None), 0)
        other = negative
        if other is None:
            other = self.conditions.null(count, None if given.image is None else _sides(given.image))
        return guided(Branches(self.denoiser, [given, other], join, crop), scale)

    @torch.no_grad()
    def pictures(self, latents: Tensor, at_once: int = 64) -> Tensor:
        """Whitened latents (B, c, h, w) -> pictures (B, C, H, W) in [-1, 1], up to `at_once` at a time, fewer large ones."""
        pixels = latents.shape[-2] * latents.shape[-1] * self.codec.factor**2
        rows = min(at_once, together(pixels))
        return torch.cat([self.codec.decode(part) for part in torch.split(latents, rows)])

    def save(self, folder: Path, card: str = "", half: bool = False) -> None:
        """Write the model folder, the autoencoder's inside it; with `half`, what half precision holds exactly is written
        in it."""
        self.codec.save(folder / "autoencoder", half)
        files.save_tensors(folder / "denoiser.safetensors", self.denoiser.state_dict(), half)
        files.save_tensors(folder / "conditioners.safetensors", self.conditions.state_dict(), half)
        for name, texts in self.texts.items():
            for file, text in texts.items():
                files.write(folder / "conditioners" / name / file, text)
        if card:
            files.write(folder / "README.md", card)
        fields = {"stage": "diffusion", "size": self.size, **self.config.model_dump(mode="json")}
        files.seal(folder, {**fields, "autoencoder": self.codec.fingerprint()})

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        trust: bool = False,
    ) -> Self:
        """Open a model folder. Raises `ValueError` where a file is missing, damaged, foreign or does not belong."""
        fields = files.opened(folder, "diffusion")
        codec = Codec.load(folder / "autoencoder", trust)
        belongs(codec, fields["autoencoder"], str(folder))
        kept = {k: v for k, v in fields.items() if k in DiffusionConfig.model_fields}
        try:
            with trusting(trust):
                config = DiffusionConfig.model_validate(kept)
        except ValidationError as error:
            raise ValueError(explain(error, str(folder / "model.yaml"))) from None
        with draws.skipped():
            model = cls(codec, config, fields["size"], _texts(folder / "conditioners"))
        try:
            model.denoiser.load_state_dict(files.load_tensors(folder / "denoiser.safetensors"))
            model.conditions.load_state_dict(files.load_tensors(folder / "conditioners.safetensors"))
        except RuntimeError as error:
            raise ValueError(
                f"the weights in {folder} do not fit its model.yaml: {str(error).splitlines()[-1]}"
            ) from None
        return model.eval().to(device=device, dtype=dtype)


def belongs(codec: Codec, expected: str, owner: str) -> None:
    """Raise `ValueError` where the autoencoder is not the one whose latents a denoiser was trained on."""
    if not codec.known(expected):
        raise ValueError(
            f"{owner} was trained on the latents of autoencoder {expected}, this one is {codec.fingerprint()}; "
            "use the autoencoder folder inside the model, or encode and train again with this one"
        )


def _sides(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _texts(folder: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for path in sorted(p for p in folder.glob("*/*") if p.is_file() and not p.name.startswith(".")):
        found.setdefault(path.parent.name, {})[path.name] = path.read_text(encoding="utf-8")
    return found
