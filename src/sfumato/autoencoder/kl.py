"""`kind: kl`. The first stage regularised towards a standard normal (Kingma & Welling, 2014; Rombach et al., 2022)."""

from torch import Tensor, nn

from sfumato.autoencoder.base import Autoencoder, Encoded, FirstStage
from sfumato.autoencoder.coder import CoderConfig, Decoder, Encoder
from sfumato.device import at_least_single
from sfumato.nn.conv import Conv2d


class KLConfig(FirstStage):
    """Encoder and decoder of `coder`; `bottleneck` adds the published 1x1 convolutions around the latent."""

    coder: CoderConfig = CoderConfig()
    bottleneck: bool = True

    def build(self) -> "KLAutoencoder":
        return KLAutoencoder(self)


class KLAutoencoder(Autoencoder):
    """A Gaussian posterior a latent value; moments are mean and log-variance, (B, 2 * channels, h, w)."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        coder, c = config.coder, config.coder.channels
        self.factor, self.channels, self.image_channels = coder.factor, c, coder.image_channels
        self.encoder, self.decoder = Encoder(coder, 2 * c), Decoder(coder)
        self.into = Conv2d(2 * c, 2 * c, 1) if config.bottleneck else nn.Identity()
        self.out = Conv2d(c, c, 1) if config.bottleneck else nn.Identity()

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance, (B, 2 * channels, h, w), in float32: a posterior needs its small variances."""
        self.check(images)
        result: Tensor = self.into(self.encoder(images))
        return at_least_single(result)

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, log_variance = moments.chunk(2, 1)
        if noise is None:
            return mean
        return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """KL[q(z|x) || N(0, 1)] in nats over the number of image values.

        With a reconstruction error that is a mean over image values, the penalty's weight then means what it means
        in the published loss, which sums both (Rombach et al., 2022: 1e-6), at every size of picture.
        """
        moments = self.moments(images)
        mean, log_variance = moments.chunk(2, 1)
        log_variance = log_variance.clamp(-30, 20)
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
        return Encoded(self.sample(moments, noise), nats / images[0].numel(), moments, None)

    def decode(self, latent: Tensor) -> Tensor:
        result: Tensor = self.decoder(self.out(latent))
        return at_least_single(result)
