"""Latent diffusion of the study `families` in latents of another factor, trained on so many images, by its protocol.

    python benchmarks/families_factor.py --features mobilenet_v2_features.pt --factor 2 --first 169728 --images 187008

The numbers of images are what the study's minutes give at the rates that `compression` measured for that factor.
"""

import argparse
from pathlib import Path

import torch

from sfumato.features import network
from sfumato.studies import recipes
from sfumato.studies.desk import Desk
from sfumato.studies.measure import distance, floor, generated, rebuilt


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="feature network")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--first", type=int, default=169_728, help="images of the first stage")
    parser.add_argument("--images", type=int, default=187_008, help="images of the denoiser")
    parser.add_argument("--count", type=int, default=512, help="images generated a sampling seed")
    parser.add_argument("--out", type=Path, default=Path("runs/families-factor"))
    asked = parser.parse_args()
    looks = network.opened(asked.features)
    data = {"kind": "emoji", "size": 32}
    desk = Desk(asked.out, data, looks, torch.device("cpu"), 1.8, images=asked.count)
    stage = desk.trained("first", recipes.first("kl", asked.factor), asked.first)
    model = desk.trained("denoiser", recipes.denoiser(stage, recipes.by_class()), asked.images)
    row = generated(desk, "denoiser", model, guidance=1.0, judge=desk.judge, dtype=torch.float32)
    for name, value in row.measures.items():
        print(f"{name}: {value.told()}")
    again = rebuilt(desk, "first", stage)
    print(f"pictures a second: {row.rate.told()}; as many real pictures: {floor(desk)[distance(desk)].value:.0f}")
    print(f"rebuilt: {again['psnr']:.1f} dB, {again[distance(desk)]:.0f}; sheet: {row.sheet}")


if __name__ == "__main__":
    main()
