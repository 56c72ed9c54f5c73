"""Recipes: what `sfumato train` reads. YAML and overrides become one validated, frozen description of a run."""

import datetime
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError, model_validator

from sfumato.autoencoder.base import FirstStage
from sfumato.config import Config, explain
from sfumato.data import beside
from sfumato.data.base import Data
from sfumato.families.base import FamilyConfig
from sfumato.features.perceptual import PerceptualConfig
from sfumato.model import DiffusionConfig
from sfumato.training.critic import CriticConfig, EstimateCriticConfig
from sfumato.training.settings import TrainingConfig

WRITTEN = ("sfumato", "format")  # keys of a resolved recipe that say who wrote it
PATHS = ("path", "autoencoder", "teacher", "start", "network", "folder", "decodes")  # keys of files and folders
PLACES = (*PATHS, "cache", "heads", "font")  # and those that are numbers, or yes and no, elsewhere


class ReconstructionConfig(Config):
    """Weights of the first stage's losses; all are means over image values, so they hold at every size.

    The published KL losses are sums over a picture: divide their weights, other than that of `kl`, by its number of
    values (3 x 256 x 256) to compare; the published VQ losses are means as here.
    """

    l1: float = Field(1.0, ge=0)
    l2: float = Field(1.0, ge=0)
    kl: float = Field(1e-6, ge=0, description="the published sum's weight: 1e-6 for the paper's KL first stages")
    codebook: float = Field(1.0, ge=0, description="of the codebook's penalty, a mean over latent values")
    perceptual: PerceptualConfig | None = Field(None, description="a distance by a network that looks at pictures")
    perceptual_weight: float = Field(1.0, ge=0)
    equivariance: float = Field(
        0.0, ge=0, description="of the error of pictures decoded from latents that were made smaller and turned"
    )
    smooth: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the pictures whose latents are mixed with their blur before they are decoded, and that are held "
        "against the picture so mixed: estimates of a denoiser are smooth, and decoders that never saw such weave patterns",
    )
    variance: bool = Field(False, description="learn the output's log-variance, one number for all pixels")
    critic: CriticConfig | None = None


class AutoencoderRecipe(Config):
    """A first stage."""

    stage: Literal["autoencoder"]
    autoencoder: FirstStage
    objective: ReconstructionConfig = ReconstructionConfig()
    data: Data
    training: TrainingConfig


class DecoderRecipe(Config):
    """The decoder of a trained model that goes on learning; its encoder stays, and with it all latents and the denoiser."""

    stage: Literal["decoder"]
    start: Path = Field(description="model folder, of a first stage or of a model on one, whose decoder learns on")
    objective: ReconstructionConfig = ReconstructionConfig()
    data: Data
    training: TrainingConfig


class TimesConfig(Config):
    """How training times are drawn: t from 0, clean, to 1, noise. See `sfumato.diffusion.loss` for the formulas.

    Large or redundant latents need more noise before it hides anything: raise `mean` (`docs/experiments.md`).
    """

    density: Literal["uniform", "logit_normal", "log_normal", "cosine_interpolated"] = "logit_normal"
    mean: float | None = Field(None, description="of logit(t), or of log(sigma / alpha) where log-normal")
    std: PositiveFloat | None = Field(None, description="likewise")
    stratified: bool = Field(False, description="each batch covers all times evenly")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.options and not self.density.endswith("normal"):
            raise ValueError(f"density {self.density} takes no {' and no '.join(self.options)}; leave it out")
        return self

    @property
    def options(self) -> dict[str, float]:
        """What the density is called with."""
        return {name: value for name, value in (("mean", self.mean), ("std", self.std)) if value is not None}


Weight = Literal["simple", "min_snr", "soft_min_snr", "edm", "sigmoid"]


class DecodedConfig(Config):
    """How alike what the denoiser's estimate decodes to looks, and how real, beside the loss on latents, whose weight is 1."""

    perceptual: PerceptualConfig | None = Field(None, description="a distance by a network that looks at pictures")
    weight: PositiveFloat = Field(1.0, description="of that distance")
    critic: EstimateCriticConfig | None = None
    places: PositiveInt = Field(16, description="side of the crop that is decoded, in places of the latent")
    every: PositiveInt = Field(1, description="one of so many examples is decoded")

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if self.perceptual is None and self.critic is None:
            raise ValueError(
                "decoded has neither perceptual nor critic, and nothing to compare by; give one, or leave it out"
            )
        if self.critic is not None and self.every != 1:
            raise ValueError(f"decoded.critic judges every example, and decoded.every is {self.every}; leave it at 1")
        return self


class DiffusionRecipe(DiffusionConfig):
    """A denoiser in the latent space of a trained first stage, whose model folder `autoencoder` names."""

    stage: Literal["diffusion"]
    autoencoder: Path
    data_std: float = Field(
        1.0, gt=0, description="standard deviation of what is denoised, for edm; whitened latents have 1"
    )
    times: TimesConfig = TimesConfig()
    weighting: Weight = Field("simple", description="factor on the loss over t; simple: none, the prediction's own")
    decoded: DecodedConfig | None = None
    unsaid: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the examples of which nothing is said, beside each condition's own dropout: guidance moves "
        "away from what the model makes then, and several conditions are hardly ever dropped together by chance; 0.1 "
        "where there are several",
    )
    cache: bool = Field(
        True, description="encode every picture once, before training, in half precision; false: when it is shown"
    )
    prompts: tuple[str, ...] = Field(
        (), description="texts of the preview grids; () takes captions of the training data"
    )
    data: Data
    training: TrainingConfig
    _sighted = model_validator(mode="after")(DiffusionConfig.sighted)
    _called = model_validator(mode="after")(DiffusionConfig.called)


class FinetuningRecipe(Config):
    """A trained model that goes on learning, on other pictures; what it is made of stays as it is."""

    stage: Literal["finetuning"]
    start: Path = Field(
        description="model folder, or name of a model that ships, from whose weights the training begins"
    )
    times: TimesConfig | None = Field(
        None, description="null: uniform where the model's schedule is a table of betas, else logit-normal around 0"
    )
    weighting: Weight = "simple"
    decoded: DecodedConfig | None = None
    unsaid: float | None = Field(None, ge=0, le=1, description="as of `stage: diffusion`")
    cache: bool = True
    prompts: tuple[str, ...] = ()
    data: Data
    training: TrainingConfig


class DistillationRecipe(Config):
    """A trained denoiser taught to sample in a few steps; everything else of the model is the teacher's."""

    stage: Literal["distillation"]
    how: Literal["consistency", "shortcut"] = Field(
        "consistency", description="consistency: jump to the picture; shortcut: take steps of any length that is told"
    )
    teacher: Path = Field(description="model folder of the trained denoiser")
    guidance: float = Field(3.0, ge=0, description="of the teacher, baked in")
    steps: int = Field(
        32, ge=2, le=1000, description="rows of the grid whose neighbours must agree; of a shortcut's finest grid"
    )
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="shortcut: of a batch that learns the teacher's flow, 0.75; the rest, longer steps",
    )
    flow: Literal["guided", "plain"] = Field(
        "guided",
        description="what a shortcut is where it is told no step. guided: the teacher with its guidance; "
        "plain: the teacher as it is, so that one model samples in few steps, and in many with any guidance",
    )
    sample: PositiveInt = Field(4, description="steps in sampling where none are asked for")
    cache: bool = True
    prompts: tuple[str, ...] = ()
    data: Data
    training: TrainingConfig

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.how == "consistency" and self.share is not None:
            raise ValueError("share is of a shortcut's batches; leave it out, or set how to shortcut")
        if self.how == "consistency" and self.flow == "plain":
            raise ValueError("a consistency model keeps no flow; leave flow out, or set how to shortcut")
        if self.how == "shortcut" and self.steps & (self.steps - 1):
            raise ValueError(f"a shortcut halves its steps, so steps is a power of two, such as 32; got {self.steps}")
        if self.flow == "plain" and 2 * self.sample > self.steps:
            raise ValueError(
                f"with a plain flow {self.sample} of {self.steps} steps would not be guided; "
                f"sample in {self.steps // 2} or fewer"
            )
        return self


class FamilyRecipe(Config):
    """A model of another family, on the same data and by the same loop."""

    stage: Literal["family"]
    family: FamilyConfig
    autoencoder: Path | None = Field(None, description="model folder of the first stage, for families of codes")
    labelled: bool = Field(True, description="learn the data's classes, where there are any")
    data: Data
    training: TrainingConfig


Recipe = AutoencoderRecipe | DecoderRecipe | DiffusionRecipe | FinetuningRecipe | DistillationRecipe | FamilyRecipe
_either: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="stage")])


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("sfumato") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_yaml(source: str) -> dict[str, Any]:
    """The mapping in a YAML file, or in a shipped recipe of that name. Raises `ValueError` where there is neither."""
    if source in shipped():
        text = (resources.files("sfumato") / "recipes" / f"{source}.yaml").read_text(encoding="utf-8")
    elif Path(source).is_file():
        try:
            text = beside.text(Path(source))
        except ValueError:
            raise ValueError(f"{source} is not text, so it is no recipe; give a YAML file") from None
    else:
        raise ValueError(f"there is no recipe {source!r}: give a YAML file or one of {', '.join(shipped())}")
    try:
        fields = yaml.load(text, Once)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{source} must be a mapping with a `stage`; it is {type(fields).__name__}")
    homed(fields)
    return fields


class Once(yaml.SafeLoader):
    """Reads YAML, and refuses a key that stands twice in a mapping: the last one alone would count."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)  # as it stands, before others are merged into it
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[1]!r} stands twice", node.start_mark)
        return node


def homed(fields: dict[str, Any]) -> None:
    """Put the home folder for `~/` at the beginning of all paths."""
    for key, value in fields.items():
        if isinstance(value, dict):
            homed(value)
        elif isinstance(value, str) and key in PLACES and value.startswith("~/"):
            fields[key] = str(Path(value).expanduser())


def override(fields: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The fields with each `key.sub=value` set; values are read as YAML. Raises `ValueError` for another form."""
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals or not path:
            raise ValueError(f"an override has the form key.sub=value; got {change!r}")
        *places, last = path.split(".")
        inner = fields
        for place in places:
            step = inner.setdefault(place, {})
            if isinstance(step, str):  # `data: emoji` is short for `data: {kind: emoji}`
                step = inner[place] = {"kind": step}
            if not isinstance(step, dict):
                raise ValueError(f"{change!r}: {place} is not a mapping in this recipe, so nothing in it can be set")
            inner = step
        try:
            inner[last] = meant(last, value)
        except yaml.YAMLError:
            raise ValueError(f"{change!r}: the value is not YAML; put it in quotes") from None
    return fields


def meant(key: str, value: str) -> Any:
    """What the value of an override says: YAML, but paths are taken as they are written, with `~` for the home folder, and
    nothing is a comment or a date. Raises `yaml.YAMLError` for what is not YAML."""
    place = key in PATHS or (key in PLACES and value.strip().startswith("~/"))
    if place and value.strip() and value.strip()[0] not in "'\"{[":
        try:
            return None if value.strip().lower() in ("null", "none") else str(Path(value).expanduser())
        except RuntimeError:  # «~somebody», whom the machine does not know
            return value
    found = yaml.safe_load(value)
    if found is None and value.strip().lower() not in ("", "~", "null"):
        return value.strip()
    text = isinstance(found, str) and value.strip()[:1] not in ("'", '"', "|", ">", "!", "&")
    return value.strip() if text or isinstance(found, datetime.date) else found


def read(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file or of a shipped name, with overrides. Raises `ValueError`, one line a fault."""
    return parse(override(load_yaml(source), overrides), Path(source).name)


def parse(fields: dict[str, Any], name: str = "recipe") -> Recipe:
    """A recipe from its mapping. Raises `ValueError`, one line a fault, with the known keys."""
    fields = {k: v for k, v in fields.items() if k not in WRITTEN}
    try:
        return _either.validate_python(fields)
    except ValidationError as error:
        raise ValueError(explain(error, name, skip=1)) from None  # the stage, which is no key


def dump(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain values, with the version of the package that resolved it."""
    from sfumato import __version__

    return {"sfumato": __version__, **recipe.model_dump(mode="json")}


def schema() -> dict[str, Any]:
    """The JSON schema of recipes, with every kind of every family spelled out."""
    from pydantic.json_schema import models_json_schema

    from sfumato.backbones.base import BackboneConfig
    from sfumato.conditioning.base import ConditionerConfig
    from sfumato.config import Choice, known

    families: list[type[Choice]] = [FirstStage, BackboneConfig, ConditionerConfig, Data, PerceptualConfig, FamilyConfig]
    kinds = {family: [family.of(name) for name in known(family)] for family in families}
    recipes: list[type[Config]] = list(get_args(Recipe))
    models = [*recipes, *(k for several in kinds.values() for k in several)]
    _, whole = models_json_schema([(m, "validation") for m in models], title="Sfumato recipe")
    parts = whole["$defs"]
    for family, several in kinds.items():
        for kind in several:
            body = parts[kind.__name__]
            body["properties"] = {"kind": {"const": kind.kind_name()}, **body.get("properties", {})}
            body["required"] = ["kind", *body.get("required", [])]
        short = {"enum": [kind.kind_name() for kind in several]}  # `data: emoji` is short for `data: {kind: emoji}`
        parts[family.__name__] = {"anyOf": [*({"$ref": f"#/$defs/{k.__name__}"} for k in several), short]}
    for one in recipes:
        parts[one.__name__]["properties"] |= {key: {} for key in WRITTEN}
    return {**whole, "anyOf": [{"$ref": f"#/$defs/{one.__name__}"} for one in recipes]}
