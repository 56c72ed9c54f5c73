"""A decoder that goes on learning, on other pictures or by other losses, while its encoder stays.

Latents stay what they were, with their shift and scale, so that the denoiser of the model that it is taken from goes on with
it: how the later decoders of Stable Diffusion were made. A first stage trained on alone is another one to models on it, whose
fingerprint holds the decoder too: give the model as `start`.
"""

from pathlib import Path

import torch

from sfumato import files, shipped
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Part
from sfumato.model import LatentDiffusion
from sfumato.training.autoencoder import Reconstruction
from sfumato.training.card import redecoded
from sfumato.training.given import there
from sfumato.training.recipe import AutoencoderRecipe, DecoderRecipe

PARTS = ("decoder", "out")  # of an autoencoder, between its latents and pictures


def begun(recipe: DecoderRecipe) -> Codec | LatentDiffusion:
    """What a decoder is taken from, on the CPU. Raises `ValueError` where it is not there, or has no first stage of its own."""
    folder = there(shipped.folder(recipe.start), recipe.data)
    stage = files.mapping(folder / "model.yaml").get("stage")
    if stage == "family":
        raise ValueError(
            f"{recipe.start} is a model of another family; give a first stage, or a latent diffusion model"
        )
    return Codec.load(folder) if stage == "autoencoder" else LatentDiffusion.load(folder)


class Decoding(Reconstruction):
    """Trains the decoder of a codec, alone or inside a model."""

    def __init__(
        self,
        start: Codec | LatentDiffusion,
        recipe: DecoderRecipe,
        train: Part,
        held_out: Part | None,
        device: torch.device,
    ) -> None:
        """Raises `ValueError` where the first stage has no decoder."""
        self.start = start
        codec = start.codec if isinstance(start, LatentDiffusion) else start
        learning(codec)
        self.before = files.fingerprint(start.state_dict(), codec.fingerprint())
        card = there(shipped.folder(recipe.start), recipe.data) / "README.md"
        self.card = redecoded(card.read_text(encoding="utf-8"), recipe) if card.is_file() else ""
        whole = AutoencoderRecipe(
            stage="autoencoder", autoencoder=codec.config, objective=recipe.objective, data=recipe.data,
            training=recipe.training,
        )  # fmt: skip
        super().__init__(codec, whole, train, held_out, device)

    def of(self) -> dict[str, str]:
        return {**super().of(), "the model": self.before}

    @property
    def _book(self) -> None:  # which vectors codes stand for is the encoder's and the denoiser's
        return None

    def conclude(self) -> None:
        return

    def publish(self, folder: Path) -> None:
        if isinstance(self.start, LatentDiffusion):
            self.start.save(folder, self.card)
        else:
            self.start.save(folder)


def learning(codec: Codec) -> None:
    """Let the decoder learn and nothing else. Raises `ValueError` where it has none."""
    codec.requires_grad_(False)
    for name in PARTS:
        part = getattr(codec.autoencoder, name, None)
        if part is not None:
            part.requires_grad_(True)
    if not any(p.requires_grad for p in codec.parameters()):
        raise ValueError("this first stage has no decoder that could learn; give one of kind kl, vq or tiny")
    codec.train()
