"""What an error in the latents costs in pixels: noise of some spread is added to whitened latents, which are decoded.

python benchmarks/latent_errors.py FLOWERS runs/photo-f4 --perceptual squeezenet_perceptual.pt
"""

import argparse
from pathlib import Path

import torch

from sfumato.autoencoder.codec import Codec
from sfumato.data.folder import FolderData
from sfumato.evaluation.reconstruction import psnr
from sfumato.features.torchscript import ScriptConfig
from sfumato.shipped import folder
from sfumato.streams import Stream

SPREADS = (0.0, 0.1, 0.2, 0.4)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path, nargs="+", help="first stages")
    parser.add_argument("--perceptual", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--every", type=int, default=12, help="one of so many held-out pictures")
    asked = parser.parse_args()
    look = ScriptConfig(network=asked.perceptual).build()
    part = FolderData(path=asked.data, size=asked.size).open("held_out")
    shown = torch.stack([part.image(k) for k in range(0, len(part), asked.every)]).float() / 127.5 - 1.0
    for path in asked.models:
        codec = Codec.load(folder(path)).eval()
        clean = codec.encode(shown)
        noise = Stream(list(range(len(shown)))).normal(tuple(clean.shape[1:]), 0)
        for spread in SPREADS:
            made = torch.cat([codec.decode(part) for part in (clean + spread * noise).split(16)]).clamp(-1, 1)
            near = torch.cat([look(a, b) for a, b in zip(shown.split(16), made.split(16), strict=True)])
            print(
                f"{path}  {spread:.1f}  {float(psnr(shown, made).mean()):.2f} dB  {float(near.mean()):.4f}", flush=True
            )


if __name__ == "__main__":
    main()
