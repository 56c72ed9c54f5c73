"""CLIP, DINOv2 and their like, from a folder as `transformers` writes it; the library is imported when one is opened.

Nothing is fetched: the folder holds `config.json` and `model.safetensors`, whose SHA-256 stands in protocols, and where
captions are read the tokenizer's files. Preparation follows `preprocessor_config.json` as far as means and deviations
go; pictures are resized whole (bicubic, antialiased) to the network's side, not cropped.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import files
from sfumato.features.network import Description

WEIGHTS, CONFIG = "model.safetensors", "config.json"
NAMES = {"clip": "CLIP", "dinov2": "DINOv2", "dinov2_with_registers": "DINOv2 with registers", "dinov3_vit": "DINOv3"}
# means and deviations of their published preparation, where a folder does not tell its own
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
WEB = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
VISION = "CLIP and DINOv2"


class Seen(nn.Module):
    """A vision transformer's picture of the whole: CLIP's projection, else the class token after the last norm."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S), normalised -> (B, D)."""
        model: Any = self.model
        if hasattr(model, "visual_projection"):
            seen: Tensor = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
            return seen
        token: Tensor = model(pixel_values=pixels).last_hidden_state[:, 0]
        return token


class Read(nn.Module):
    """CLIP's text side: captions -> (B, D), in the space of its pictures. What is too long for it is cut."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Tensor:
        """(B, D) of the captions, on the CPU."""
        model: Any = self.model
        words = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt").to(model.device)
        found = model.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        projected: Tensor = model.text_projection(found.pooler_output)
        return projected.float().cpu()


def opened(folder: Path, sha256: str | None = None) -> tuple[nn.Module, Description]:
    """The network of a folder and its description. Raises `ValueError` where something is missing or not expected."""
    config = _json(folder / CONFIG)
    kind = str(config.get("model_type"))
    if kind not in NAMES:
        raise ValueError(f"{folder} holds a model of type {kind!r}; known as feature networks: {', '.join(NAMES)}")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder / WEIGHTS} is missing; copy the model's folder whole, with weights in safetensors")
    found = files.sha256(folder / WEIGHTS)
    if sha256 is not None and found != sha256.lower():
        raise ValueError(f"{folder / WEIGHTS} has SHA-256 {found}, expected was {sha256}; get the file again")
    shape = config.get("vision_config", config)
    facts = _json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
    usual = WEB if kind == "clip" else IMAGENET
    mean, std = facts.get("image_mean", usual[0]), facts.get("image_std", usual[1])
    crop = facts.get(
        "crop_size"
    )  # DINOv2's config.json tells the side of its last training, 518; published use is the crop
    size = crop["height"] if isinstance(crop, dict) else crop or shape["image_size"]
    name = f"{NAMES[kind]} ({folder.resolve().name})"
    return Seen(_model(folder)), Description(name=name, sha256=found, size=size, mean=mean, std=std)


def reader(folder: Path) -> Read:
    """The text side of a CLIP folder. Raises `ValueError` where it is none."""
    if _json(folder / CONFIG).get("model_type") != "clip":
        raise ValueError(f"{folder} is not a CLIP folder; a CLIP score reads captions, and only CLIP does")
    model = _model(folder)
    return Read(model, library(VISION).AutoTokenizer.from_pretrained(str(folder), local_files_only=True))


def _model(folder: Path) -> nn.Module:
    found: nn.Module = library(VISION).AutoModel.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True
    )
    return found.float().eval()


def library(who: str) -> Any:
    """The package transformers, without progress bars. Raises `ValueError` where it is not installed, `who` wants it."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ValueError(f"{who} need the package transformers; pip install transformers") from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} is no folder of transformers: it has no {path.name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy the folder again, whole") from None
    return found if isinstance(found, dict) else {}
