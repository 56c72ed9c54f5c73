"""What the latents of a first stage look like: channel by channel, and which codes of a codebook are used."""

from typing import Any

import torch
from torch import Tensor

from sfumato.autoencoder.codebook import Codebook
from sfumato.autoencoder.codec import Codec
from sfumato.evaluation.source import Source, batches, equal

Channels = list[dict[str, float]]


@torch.no_grad()
def statistics(codec: Codec, source: Source) -> dict[str, Any]:
    """`channels`: mean, standard deviation, extremes of each channel of the raw latents (modes), and the mean width of
    their posterior; `codes`: how many are used, their perplexity, where the first stage has codes.

    The standard deviation of a latent that a denoiser sees has the posterior's width in it; this one does not.
    """
    moments, widths, low, high = (
        torch.zeros(3, codec.channels).double(),
        torch.zeros(codec.channels).double(),
        None,
        None,
    )
    counts: Tensor | None = None
    for indices in batches(len(source)):
        for images in equal(source.pictures(indices)):
            encoded = codec.autoencoder.encode(images.to(codec.shift.device))
            latent = encoded.latent if encoded.moments is None else codec.autoencoder.sample(encoded.moments)
            flat = latent.double().transpose(0, 1).flatten(1).cpu()
            moments += torch.stack(
                [torch.full((len(flat),), float(flat.shape[1])).double(), flat.sum(1), flat.square().sum(1)]
            )
            low = flat.amin(1) if low is None else torch.minimum(low, flat.amin(1))
            high = flat.amax(1) if high is None else torch.maximum(high, flat.amax(1))
            widths += _widths(codec, latent, encoded.moments)
            if encoded.codes is not None:
                counts = _counted(counts, encoded.codes.cpu())
    if low is None or high is None:
        raise ValueError("there are no images to encode; give a folder or a data set that has some")
    mean = moments[1] / moments[0]
    std = (moments[2] / moments[0] - mean.square()).clamp(min=0).sqrt()
    columns = {"mean": mean, "std": std, "min": low, "max": high, "posterior_std": widths / moments[0]}
    channels = [{name: float(v[k]) for name, v in columns.items()} for k in range(codec.channels)]
    return {"channels": channels} | ({} if counts is None else {"codes": used(counts, size(codec))})


def _widths(codec: Codec, latent: Tensor, moments: Tensor | None) -> Tensor:
    """The sum of the posterior's standard deviations, channel by channel; zeros where it has none."""
    if moments is None:
        return torch.zeros(codec.channels).double()
    spread = codec.autoencoder.sample(moments, torch.ones_like(latent)) - codec.autoencoder.sample(moments)
    return spread.double().sum((0, 2, 3)).cpu()


def _counted(counts: Tensor | None, codes: Tensor) -> Tensor:
    found = torch.bincount(codes.flatten())
    if counts is None:
        return found
    longer, shorter = (found, counts) if len(found) > len(counts) else (counts, found)
    longer = longer.clone()
    longer[: len(shorter)] += shorter
    return longer


def size(codec: Codec) -> int | None:
    """The number of codes of a codebook; None where the first stage has none."""
    book = getattr(codec.autoencoder, "codebook", None)
    return book.size if isinstance(book, Codebook) else None


def used(counts: Tensor, whole: int | None) -> dict[str, Any]:
    """Use of a codebook from how often each code came: `used`, `size`, `share`, `perplexity` (2 to the entropy in bits)."""
    shares = counts.double() / counts.sum()
    kept = shares[shares > 0]
    found: dict[str, Any] = {
        "used": int((counts > 0).sum()),
        "perplexity": float((-(kept * kept.log()).sum()).exp()),
        "drawn": int(counts.sum()),
    }
    if whole is not None:
        found |= {"size": whole, "share": found["used"] / whole}
    return found
