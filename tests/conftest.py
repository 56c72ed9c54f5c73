"""Shared by all tests: quiet threads, no network, and tiny models that train in a second."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[name] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from sfumato.autoencoder.codec import Codec  # noqa: E402
from sfumato.autoencoder.kl import KLConfig  # noqa: E402
from sfumato.training import recipe, run  # noqa: E402

torch.set_num_threads(2)
# The same examples every time, so that a green commit stays green; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

CODER: dict[str, Any] = {
    "factor": 8,
    "channels": 4,
    "stem": 4,
    "width": 16,
    "multipliers": [1, 2],
    "blocks": 1,
    "decoder_blocks": 1,
    "middle_blocks": 1,
    "middle_attention": False,
    "refine": 4,
    "down": "unshuffle",
    "up": "shuffle",
    "groups": 8,
}
BACKBONE: dict[str, Any] = {
    "kind": "unet",
    "width": 16,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [2],
    "groups": 8,
}
SHORT: dict[str, Any] = {
    "images": 96,
    "batch": 16,
    "report": 32,
    "preview": 1_000_000,
    "checkpoint": 32,
    "precision": "fp32",
    "rate": 0.003,
}


def autoencoder_recipe(
    objective: dict[str, Any] | None = None, autoencoder: dict[str, Any] | None = None, **training: Any
) -> recipe.AutoencoderRecipe:
    """A first stage small enough to train in a test."""
    read = recipe.parse(
        {
            "stage": "autoencoder",
            "autoencoder": {"kind": "kl", "coder": CODER, **(autoencoder or {})},
            "objective": objective or {},
            "data": {"kind": "emoji", "size": 32},
            "training": {**SHORT, "flip": 0.5, **training},
        }
    )
    assert isinstance(read, recipe.AutoencoderRecipe)
    return read


def adversarial_recipe(**training: Any) -> recipe.AutoencoderRecipe:
    """A VQ first stage with a critic that begins early, and everything else that a first stage can learn."""
    critic = {"width": 8, "layers": 2, "start": 32, "ramp": 32, "rate": 0.002, "r1": 0.1}
    book = {"size": 32, "patience": 2}
    return autoencoder_recipe({"variance": True, "critic": critic}, {"kind": "vq", "codebook": book}, **training)


def diffusion_recipe(autoencoder: Path, **training: Any) -> recipe.DiffusionRecipe:
    """A denoiser with words and labels, small enough to train in a test."""
    read = recipe.parse(
        {
            "stage": "diffusion",
            "autoencoder": str(autoencoder),
            "backbone": BACKBONE,
            "conditioners": {
                "caption": {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 300},
                "group": {"kind": "label", "width": 8},
            },
            "data": {"kind": "emoji", "size": 32},
            "training": {**SHORT, "flip": 0.5, **training},
        }
    )
    assert isinstance(read, recipe.DiffusionRecipe)
    return read


def planned_recipe(
    autoencoder: Path, data: dict[str, Any] | None = None, dropout: float = 0.1, **training: Any
) -> recipe.DiffusionRecipe:
    """A denoiser with words, boxes and a planner, small enough to train in a test."""
    heads = {"width": 16, "heads": 2}
    read = recipe.parse(
        {
            "stage": "diffusion",
            "autoencoder": str(autoencoder),
            "backbone": BACKBONE,
            "conditioners": {
                "caption": {"kind": "text", "layers": 1, **heads},
                "layout": {"kind": "boxes", "most": 4, "dropout": dropout, "planner": heads, **heads},
            },
            "data": data or {"kind": "scenes", "size": 32, "count": 64},
            "training": {**SHORT, **training},
        }
    )
    assert isinstance(read, recipe.DiffusionRecipe)
    return read


@pytest.fixture
def codec() -> Codec:
    torch.manual_seed(0)
    return Codec(KLConfig.model_validate({"coder": CODER})).eval()


@pytest.fixture(scope="session")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained (briefly) first stage's model folder."""
    folder = tmp_path_factory.mktemp("first-stage")
    return run.train(autoencoder_recipe(images=320), folder, device="cpu", quiet=True)


@pytest.fixture(scope="session")
def model_folder(first_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained (briefly) model folder, with the recipe of its run beside it."""
    folder = tmp_path_factory.mktemp("runs") / "denoiser"
    return run.train(diffusion_recipe(first_stage), folder, device="cpu", quiet=True)
