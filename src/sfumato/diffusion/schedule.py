"""Noise schedules: from a time t in [0, 1] to the scales of x_t = alpha x_0 + sigma eps, and back.

t runs from (nearly) clean at 0 to (nearly) noise at 1 in every schedule. What a schedule does to the signal is its
direction (alpha, sigma), an angle between 0 and 90 degrees that only grows with t; so the inverse reads both scales
and not their ratio, which is infinite at the end of a flow, and is finite at both ends. Tables are computed once in
float64 and kept on every device that asked for them.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import torch
from pydantic import Field, model_serializer, model_validator
from torch import Tensor

from sfumato.config import Config
from sfumato.device import fine, finest

Form = Literal["scaled", "linear", "sqrt", "cosine"]


class Scales(NamedTuple):
    """The two factors of x_t = alpha x_0 + sigma eps."""

    alpha: Tensor
    sigma: Tensor

    def like(self, x: Tensor) -> "Scales":
        """(B,) or () scales reshaped so that they broadcast against x (B, ...), in its type and on its device."""
        shape = (-1,) + (1,) * (x.ndim - 1) if self.alpha.ndim else ()
        return Scales(self.alpha.reshape(shape).to(x), self.sigma.reshape(shape).to(x))

    @classmethod
    def of(cls, log_ratio: Tensor) -> "Scales":
        """The scales with alpha² + sigma² = 1 and log(sigma / alpha) as given, (...); infinities are the two ends."""
        return cls(torch.sigmoid(-2 * log_ratio).sqrt(), torch.sigmoid(2 * log_ratio).sqrt())


class Schedule(Protocol):
    """t (...) in [0, 1] -> scales (...), and back from their direction alone."""

    def __call__(self, t: Tensor) -> Scales: ...
    def time(self, scales: Scales) -> Tensor: ...


@dataclass(frozen=True)
class Linear:
    """Rectified flow (Liu et al., 2023; Lipman et al., 2023): alpha = 1 - t, sigma = t.

    `shift` s replaces t by s t / (1 + (s - 1) t): larger pictures need more noise for the same loss of detail (Esser et
    al., 2024, eq. 23; s = sqrt(pixels / pixels of the reference)).
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        _positive("shift", self.shift)

    def __call__(self, t: Tensor) -> Scales:
        if self.shift == 1.0:
            return Scales(1 - t, t)
        u = fine(t)
        whole = 1 + (self.shift - 1) * u
        return Scales(((1 - u) / whole).to(t), (self.shift * u / whole).to(t))

    def time(self, scales: Scales) -> Tensor:
        return scales.sigma / (self.shift * scales.alpha + scales.sigma)


@dataclass(frozen=True)
class Cosine:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): Nichol & Dhariwal (2021), eq. 17, without its offset and clipping.

    `shift` s multiplies sigma / alpha (Hoogeboom et al., 2023, eq. 4: log SNR falls by 2 log s).
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        _positive("shift", self.shift)

    def __call__(self, t: Tensor) -> Scales:
        u = fine(t)
        alpha, sigma = torch.sin(math.pi / 2 * (1 - u)), self.shift * torch.sin(math.pi / 2 * u)
        length = torch.hypot(alpha, sigma)
        return Scales((alpha / length).to(t), (sigma / length).to(t))

    def time(self, scales: Scales) -> Tensor:
        return torch.atan2(scales.sigma / self.shift, scales.alpha) * (2 / math.pi)


@dataclass(frozen=True)
class Exploding:
    """EDM: alpha = 1, sigma log-linear from `sigma_min` to `sigma_max` (Karras et al., 2022, table 1)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"sigmas rise from above 0; got {self.sigma_min} and {self.sigma_max}")

    def __call__(self, t: Tensor) -> Scales:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return Scales(torch.ones_like(t), torch.exp(low + fine(t) * (high - low)).to(t))

    def time(self, scales: Scales) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        ratio = fine(scales.sigma).log() - fine(scales.alpha).log()
        return ((ratio - low) / (high - low)).clamp(0, 1).to(scales.alpha)


STEEPEST = 30.0  # 1 - sigmoid is 1e-13 there: double precision still tells levels apart


@dataclass(frozen=True)
class Sigmoid:
    """alpha² falls along a sigmoid from 1 to 0 (Jabri et al., 2022; Chen, 2023, section 2)."""

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _positive("temperature", self.temperature)
        if not self.start < self.end:
            raise ValueError(f"the sigmoid runs upwards from start to end; got {self.start} and {self.end}")
        if max(abs(self.start), abs(self.end)) > STEEPEST * self.temperature:
            raise ValueError(
                f"start and end are at most {STEEPEST:g} temperatures from 0, beyond which a sigmoid is flat; got "
                f"{self.start}, {self.end} and {self.temperature}"
            )

    def _ends(self) -> tuple[float, float]:
        low, high = (1 / (1 + math.exp(-e / self.temperature)) for e in (self.start, self.end))
        return low, high

    def __call__(self, t: Tensor) -> Scales:
        low, high = self._ends()
        level = torch.sigmoid((fine(t) * (self.end - self.start) + self.start) / self.temperature)
        share = ((level - low) / (high - low)).clamp(0, 1)
        # the ends exactly, which a sigmoid's last digit is not
        share = torch.where(t <= 0, 0.0, torch.where(t >= 1, 1.0, share))
        return Scales((1 - share).sqrt().to(t), share.sqrt().to(t))

    def time(self, scales: Scales) -> Tensor:
        low, high = self._ends()
        alpha, sigma = fine(scales.alpha), fine(scales.sigma)
        level = low + (high - low) * sigma**2 / (alpha**2 + sigma**2)
        t = (level.logit() * self.temperature - self.start) / (self.end - self.start)
        return t.clamp(0, 1).to(scales.alpha)


@dataclass(frozen=True)
class Betas:
    """Tables of the variance added a step, abar_k = prod (1 - beta_i): LDM, Stable Diffusion and DDPM.

    Row k of `steps` is at t = k / (steps - 1); between rows the scales follow the chord, at unit length. Published code
    calls the `scaled` form "linear" (it is linear in sqrt(beta)), and the `linear` one "sqrt_linear". LDM: 0.0015 to
    0.0195, with other ends for some models; Stable Diffusion: 0.00085 to 0.012, the default. `cosine` is the clipped
    table of Nichol & Dhariwal (2021), eq. 17, which needs no ends. `zero_terminal` moves sqrt(abar) so that the last row
    is pure noise and the first stays (Lin et al., 2024, algorithm 1).
    """

    start: float = 0.00085
    end: float = 0.012
    steps: int = 1000
    form: Form = "scaled"
    zero_terminal: bool = False
    _tables: dict[str, tuple[Tensor, Tensor, Tensor]] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if not 0 < self.start <= self.end < 1:
            raise ValueError(f"betas rise inside (0, 1); got {self.start} and {self.end}")
        if self.steps < 2:
            raise ValueError(f"a table has at least two rows; got {self.steps}")
        log_alpha = torch.log1p(-self.betas()).cumsum(0) / 2
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
        if self.zero_terminal:
            alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
            sigma = torch.cat([sigma[:1], (1 - alpha[1:] ** 2).sqrt()])
        object.__setattr__(self, "_tables", {"cpu": (alpha, sigma, torch.atan2(sigma, alpha))})

    def betas(self) -> Tensor:
        """The published table before any rescaling, (steps,) float64."""
        if self.form == "cosine":
            place = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps + 8e-3
            curve = torch.cos(place / (1 + 8e-3) * math.pi / 2).square()
            curve = curve / curve[0]
            return (1 - curve[1:] / curve[:-1]).clamp(0, 0.999)
        root = 0.5 if self.form == "scaled" else 1.0
        line = torch.linspace(self.start**root, self.end**root, self.steps, dtype=torch.float64)
        return line if self.form == "linear" else line.sqrt() if self.form == "sqrt" else line.square()

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        key = str(device)
        if key not in self._tables:  # a copy to a device makes the host wait, so it is made once
            a, o, angle = self._tables["cpu"]
            dtype = finest(device)
            self._tables[key] = (a.to(device, dtype), o.to(device, dtype), angle.to(device, dtype))
        return self._tables[key]

    def __call__(self, t: Tensor) -> Scales:
        alphas, sigmas, _ = self._on(t.device)
        position = (fine(t) * (self.steps - 1)).clamp(0, self.steps - 1)
        low = position.floor().long().clamp(max=self.steps - 2)
        share = position - low
        alpha = torch.lerp(alphas[low], alphas[low + 1], share)
        sigma = torch.lerp(sigmas[low], sigmas[low + 1], share)
        length = torch.hypot(alpha, sigma)
        return Scales((alpha / length).to(t), (sigma / length).to(t))

    def time(self, scales: Scales) -> Tensor:
        alphas, sigmas, angles = self._on(scales.alpha.device)
        alpha, sigma = fine(scales.alpha), fine(scales.sigma)
        high = torch.searchsorted(angles, torch.atan2(sigma, alpha)).clamp(1, self.steps - 1)
        before = alphas[high - 1] * sigma - sigmas[high - 1] * alpha  # cross products with the chord's two ends
        after = alphas[high] * sigma - sigmas[high] * alpha
        return ((high - 1 + before / (before - after)) / (self.steps - 1)).clamp(0, 1).to(scales.alpha)


KINDS: dict[str, type[Any]] = {
    "linear": Linear,
    "cosine": Cosine,
    "betas": Betas,
    "exploding": Exploding,
    "sigmoid": Sigmoid,
}


class ScheduleConfig(Config):
    """A schedule as recipes write it: `{kind: linear, shift: 2}`, `{kind: betas, start: 0.0015, end: 0.0195}`.

    A key belongs to the kinds that have it; another one is an error that lists the kind's own keys.
    """

    kind: Literal["linear", "cosine", "betas", "exploding", "sigmoid"] = "linear"
    shift: float | None = Field(None, description="linear, cosine: more noise at the same time, for larger pictures")
    start: float | None = Field(None, description="betas: the first; sigmoid: where it starts")
    end: float | None = Field(None, description="betas: the last; sigmoid: where it ends")
    steps: int | None = Field(None, description="betas: rows of the table")
    form: Form | None = Field(None, description="betas: `scaled` is what published code calls linear")
    zero_terminal: bool | None = Field(None, description="betas: rescale so that the last row is pure noise")
    sigma_min: float | None = Field(None, description="exploding: noise at the clean end")
    sigma_max: float | None = Field(None, description="exploding: noise at the noisy end")
    temperature: float | None = Field(None, description="sigmoid: larger is flatter")

    OLD: ClassVar[dict[str, float]] = {"start": 0.00085, "end": 0.012}

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return {"kind": value} if isinstance(value, str) else value
        kind = value.get("kind", "linear")
        if kind not in KINDS:
            raise ValueError(f"unknown schedule {kind!r}; known: {', '.join(KINDS)}")
        if kind == "linear":  # folders of the first days carry a table's ends, which a flow never read
            value = {k: v for k, v in value.items() if cls.OLD.get(k) != v}
        own = {f.name: f.default for f in fields(KINDS[kind]) if f.init}
        for key in value:
            if key in cls.model_fields and key not in (*own, "kind") and value[key] is not None:
                raise ValueError(f"the {kind} schedule has no {key}; it takes {', '.join(own)}")
        return {**own, **value, "kind": kind}

    @model_validator(mode="after")
    def _builds(self) -> Self:
        self.build()
        return self

    @model_serializer(mode="plain")
    def _tell(self) -> dict[str, Any]:
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}

    def build(self) -> Schedule:
        """The schedule itself. Raises `ValueError` where its numbers make none."""
        schedule: Schedule = KINDS[self.kind](**{k: v for k, v in self._tell().items() if k != "kind"})
        return schedule


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0; got {value}")
