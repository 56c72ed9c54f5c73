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
    tally, widths = (torch.zeros(n, codec.channels, dtype=torch.float64) for n in (3, 1))
    low: Tensor | None = None
    high: Tensor | None = None
    counts: Tensor | None = None
    for indices in batches(len(source)):
        for images in equal(source.pictures(indices)):
            moments = codec.moments(images.to(codec.shift.device))
            latent = codec.autoencoder.sample(moments)
            flat = latent.cpu().double().transpose(0, 1).flatten(1)
            tally += torch.stack([torch.full_like(flat[:, 0], flat.shape[1]), flat.sum(1), flat.square().sum(1)])
            low = flat.amin(1) if low is None else torch.minimum(low, flat.amin(1))
            high = flat.amax(1) if high is None else torch.maximum(high, flat.amax(1))
            spread = codec.autoencoder.sample(moments, torch.ones_like(latent)) - latent
            widths += spread.cpu().double().sum((0, 2, 3))
            if (book := _book(codec)) is not None:
                counts = _counted(counts, book(latent).codes.cpu())
    if low is None or high is None:
        raise ValueError("there are no images to encode; give a folder or a data set that has some")
    mean = tally[1] / tally[0]
    std = (tally[2] / tally[0] - mean.square()).clamp(min=0).sqrt()
    columns = {"mean": mean, "std": std, "min": low, "max": high, "posterior_std": widths[0] / tally[0]}
    channels = [{name: float(v[k]) for name, v in columns.items()} for k in range(codec.channels)]
    return {"channels": channels} | ({} if counts is None else {"codes": used(counts, size(codec))})


def _book(codec: Codec) -> Codebook | None:
    book = getattr(codec.autoencoder, "codebook", None)
    return book if isinstance(book, Codebook) else None


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
    book = _book(codec)
    return None if book is None else book.size


def used(counts: Tensor, whole: int | None) -> dict[str, Any]:
    """Use of a codebook from how often each code came: `used`, `size`, `share`, `perplexity` (2 to the entropy in bits)."""
    shares = counts.cpu().double() / int(counts.sum())
    kept = shares[shares > 0]
    found: dict[str, Any] = {
        "used": int((counts > 0).sum()),
        "perplexity": float((-(kept * kept.log()).sum()).exp()),
        "drawn": int(counts.sum()),
    }
    if whole is not None:
        found |= {"size": whole, "share": found["used"] / whole}
    return found
