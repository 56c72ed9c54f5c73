"""How a training goes: how long, how fast, how often it tells and saves. Everything is counted in images."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from sfumato.config import Config
from sfumato.nn.compiled import Compile
from sfumato.training.ema import lasting


def _count(value: Any) -> Any:
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([0-9.]+)\s*([kM]?)\s*", value)
        if not found:
            raise ValueError(f"expected a number of images such as 50000, 50k or 2M; got {value!r}")
        return round(float(found[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[found[2]])
    return value


def _auto(value: Any) -> Any:
    return 0 if value == "auto" else value


Counted = Annotated[str, Field(pattern=r"^\s*[0-9.]+\s*[kM]?\s*$")]
Images = Annotated[PositiveInt, BeforeValidator(_count, json_schema_input_type=PositiveInt | Counted)]
Natural = Annotated[int, Field(ge=0)]
Measured = Annotated[Natural, BeforeValidator(_auto, json_schema_input_type=Natural | Literal["auto"])]
Moment = Annotated[Natural, BeforeValidator(_count, json_schema_input_type=Natural | Counted)]


class TrainingConfig(Config):
    """How long and how fast. Everything is counted in images, so that a change of batch changes nothing else."""

    images: Images = Field(description="images to train on in all, 50k or 2M for short")
    batch: Measured = Field(64, description="images a step; `auto`, or 0, measures what fits and takes at most 32")
    accumulate: Measured = Field(
        1, description="parts in which a batch goes through the network; `auto`, or 0, as few as fit in memory"
    )
    optimizer: Literal["muon", "adamw"] = "muon"
    rate: PositiveFloat = Field(5e-3, description="peak learning rate; it is used as written, whatever the batch")
    warmup: float = Field(0.02, ge=0, le=1, description="share of the run in which the rate rises")
    decay: float = Field(
        1.0, ge=0, le=1, description="share of the run, at its end, in which the rate falls to `floor`"
    )
    floor: float = Field(0.02, ge=0, le=1, description="the last rate over the peak rate")
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.01, ge=0)
    clip: PositiveFloat | None = Field(
        1.0, description="largest norm of the gradient; longer ones are shortened; null: none is"
    )
    ema: tuple[PositiveFloat, ...] = Field(
        (0.05,),
        min_length=1,
        description="kept averages: widths relative to the run, below 0.28, or decays a step from 0.5",
    )
    precision: Literal["auto", "fp32", "bf16", "fp64"] = Field("auto", description="fp64 is for proofs")
    compile: Compile = Field(
        "auto", description="compile the networks (torch.compile); auto: on CUDA only, on a CPU it does not pay"
    )
    flip: float = Field(0.0, ge=0, le=1, description="share of the images shown mirrored")
    seed: int = Field(0, ge=-(2**63), lt=2**64)
    report: Images = Field(2_000, description="images between lines of metrics.jsonl")
    held_out: Images | None = Field(
        None, description="images between losses on held-out pictures, always the same, at the same times and noise"
    )
    best: bool = Field(False, description="also keep the model of the lowest held-out loss, in the run's folder `best`")
    preview: Images = Field(20_000, description="images between preview grids")
    checkpoint: Images = Field(50_000, description="images between checkpoints")
    keep: PositiveInt = Field(2, description="checkpoints kept")
    milestones: Images | None = Field(None, description="images between checkpoints that are never deleted")
    checkpointing: tuple[PositiveInt, ...] = Field(
        (), description="downsampling factors at whose levels activations are worked out again instead of kept"
    )
    snapshots: Images | None = Field(
        None, description="images between snapshots of the averages, from which `sfumato ema` rebuilds other widths"
    )
    workers: Natural | Literal["auto"] = Field(
        "auto", description="threads that make batches ahead; 0: in the step; auto: 0 on the CPU, else up to 8"
    )

    @field_validator("ema")
    @classmethod
    def _long(cls, found: tuple[float, ...]) -> tuple[float, ...]:
        for length in found:
            lasting(length)
        return found

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if self.best and not self.held_out:
            raise ValueError("best is told by the held-out loss: say how often as held_out, in images")
        return self
