"""`kind: vq`. The first stage whose latents are vectors of a codebook (van den Oord et al., 2017; Esser et al., 2021).

A denoiser sees the latent *before* it is quantised; the decoder quantises first (Rombach et al., 2022, section 3.1: the
quantisation layer is absorbed by the decoder). So `moments` is the raw latent, and `decode` takes raw latents as well
as vectors of the codebook, which it leaves as they are.
"""

import torch
from torch import Tensor, nn

from sfumato.autoencoder.base import Autoencoder, Encoded, FirstStage
from sfumato.autoencoder.codebook import Codebook, CodebookConfig
from sfumato.autoencoder.coder import CoderConfig, Decoder, Encoder
from sfumato.device import at_least_single
from sfumato.nn.conv import Conv2d


class VQConfig(FirstStage):
    """Encoder and decoder of `coder` around a codebook; `bottleneck` adds the published 1x1 convolutions around it."""

    coder: CoderConfig = CoderConfig()
    codebook: CodebookConfig = CodebookConfig()
    bottleneck: bool = True

    def build(self) -> "VQAutoencoder":
        return VQAutoencoder(self)


class VQAutoencoder(Autoencoder):
    """The latent is one of the codebook's vectors at every place."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        coder, c = config.coder, config.coder.channels
        self.factor, self.channels, self.image_channels = coder.factor, c, coder.image_channels
        self.encoder, self.decoder = Encoder(coder, c), Decoder(coder)
        self.codebook = Codebook(config.codebook, c)
        self.into = Conv2d(c, c, 1) if config.bottleneck else nn.Identity()
        self.out = Conv2d(c, c, 1) if config.bottleneck else nn.Identity()

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """The raw latent as it is: there is no posterior to draw from."""
        return moments

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """The chosen vectors, the codebook's penalty, the raw latent, the codes."""
        self.check(images)
        raw: Tensor = at_least_single(self.into(self.encoder(images)))
        latent, codes, penalty = self.codebook(raw)
        return Encoded(latent, penalty, raw, codes)

    def decode(self, latent: Tensor) -> Tensor:
        return self._decode(self.codebook(latent).latent)

    def rebuild(self, images: Tensor, noise: Tensor | None = None) -> tuple[Encoded, Tensor]:
        encoded = self.encode(images, noise)
        return encoded, self._decode(encoded.latent)

    def codes(self, images: Tensor) -> Tensor:
        """Pictures as indices into the codebook, (B, h, w)."""
        codes = self.encode(images).codes
        assert codes is not None
        return codes

    def pictures(self, codes: Tensor) -> Tensor:
        """Indices (B, h, w) -> pictures (B, image_channels, H, W), near [-1, 1]. Raises `ValueError` on unknown codes."""
        if codes.min() < 0 or codes.max() >= self.codebook.size:
            raise ValueError(
                f"codes lie in 0 to {self.codebook.size - 1}; got {int(codes.min())} to {int(codes.max())}"
            )
        return self._decode(self.codebook.embedding(codes).movedim(-1, 1))

    def _decode(self, latent: Tensor) -> Tensor:
        dtype = next(self.decoder.parameters()).dtype
        latent = latent if torch.is_autocast_enabled(latent.device.type) else latent.to(dtype)
        result: Tensor = self.decoder(self.out(latent))
        return at_least_single(result)
