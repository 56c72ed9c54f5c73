"""What a scenes model hears of its words: `python benchmarks/words.py runs/scenes-text/model`.

The loss on training scenes, by how noisy they are, with their own captions, and how much it rises with captions in which
the relation is reversed (left for right), turned (left for above), or in which other things stand in the same relation.
What a model does not hear costs it nothing: 0 within the standard error, and half of the scenes better either way.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch

from sfumato import streams
from sfumato.data.scenes import ScenesData
from sfumato.model import LatentDiffusion

REVERSED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TURNED = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}


def relation(caption: str) -> str | None:
    """The relation that a caption names, if any."""
    return next((r for r in REVERSED if f" {r} " in caption), None)


def said(caption: str, by: dict[str, str]) -> str:
    """The caption with another relation."""
    found = relation(caption)
    return caption if found is None else caption.replace(f" {found} ", f" {by[found]} ")


def others(captions: list[str]) -> list[str]:
    """For each caption the next that names the same relation between other things."""
    rows = list(captions)
    for k, caption in enumerate(captions):
        after = captions[k + 1 :] + captions[:k]
        rows[k] = next((c for c in after if relation(c) == relation(caption) and c != caption), caption)
    return rows


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--part", choices=("train", "held_out"), default="train")
    parser.add_argument("--count", type=int, default=256, help="scenes whose caption names a relation")
    parser.add_argument("--times", type=float, nargs="*", default=[0.99, 0.95, 0.9, 0.85, 0.8, 0.7])
    asked = parser.parse_args()
    model = LatentDiffusion.load(asked.model).for_sampling()
    part = ScenesData(size=model.size).open(asked.part)
    first = ((k, part.fields(k)["caption"][0]) for k in range(len(part)))
    chosen = list(islice(((k, caption) for k, caption in first if relation(caption)), asked.count))
    captions = [c for _, c in chosen]
    pictures = torch.stack([part.image(k) for k, _ in chosen]).float() / 127.5 - 1.0
    latents = torch.cat([model.codec.encode(b) for b in pictures.split(64)])
    noise = streams.normal(tuple(latents.shape[1:]), 0, "words", range(len(latents)))
    told = {
        "reversed": [said(c, REVERSED) for c in captions],
        "turned": [said(c, TURNED) for c in captions],
        "other things": others(captions),
    }

    def loss(time: float, words: list[str]) -> torch.Tensor:
        t = torch.full((len(latents),), time)
        return model.denoiser.loss(latents, t, noise, model.conditions({"caption": words}, len(words)))

    print("| t | loss | " + " | ".join(f"{name} | worse for" for name in told) + " |")
    print("|" + "---|" * (2 + 2 * len(told)))
    for time in asked.times:
        own, cells = loss(time, captions), []
        for words in told.values():
            more = loss(time, words) - own
            error = float(more.std()) / len(more) ** 0.5
            cells += [f"{float(more.mean()):+.4f} ± {error:.4f}", f"{100 * float((more > 0).float().mean()):.0f} %"]
        print(f"| {time:g} | {float(own.mean()):.4f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
