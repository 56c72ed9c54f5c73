"""How much of a picture survives the first stage: PSNR and SSIM over held-out pictures."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato import image
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Part


def pictures(part: Part, at_once: int = 64) -> Iterator[tuple[list[int], Tensor]]:
    """Indices and pictures (B, C, H, W) in [-1, 1], batch by batch."""
    for begin in range(0, len(part), at_once):
        indices = list(range(begin, min(begin + at_once, len(part))))
        yield indices, torch.stack([part.image(k) for k in indices]).float() / 127.5 - 1.0


@torch.no_grad()
def rebuilt(codec: Codec, images: Tensor) -> Tensor:
    """Encode (the posterior's mode) and decode, in [-1, 1], on the CPU."""
    return codec.decode(codec.encode(images.to(codec.shift.device))).cpu()


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair, (B,), after rounding both to 8 bits; 100 where they are equal."""
    a, b = image.to_uint8(images).double(), image.to_uint8(others).double()
    error = (a - b).square().flatten(1).mean(1)
    return (10 * torch.log10(255.0**2 / error.clamp(min=255.0**2 * 1e-10))).float()


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) of each pair, (B,), after rounding both to 8 bits."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (image.to_uint8(x).float() / 255.0 for x in (images, others))
    result = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    assert isinstance(result, Tensor)
    return result.reshape(-1)


def reconstruction(codec: Codec, part: Part) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM over a part, with the standard error of the PSNR. Raises `ValueError` for an empty part."""
    if not len(part):
        raise ValueError("there are no held-out pictures to reconstruct; hold some out, or add a `val` folder")
    ratios, similarities = [], []
    for _, images in pictures(part):
        again = rebuilt(codec, images)
        ratios.append(psnr(images, again))
        similarities.append(ssim(images, again))
    values = torch.cat(ratios)
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    mean = float(values.mean())
    return {
        "psnr": mean,
        "psnr_error": error,
        "ssim": float(torch.cat(similarities).mean()),
        "count": len(values),
    }
