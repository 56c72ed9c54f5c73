"""Words that no training said: does a model of scenes make the same thing when it is called otherwise?

    python benchmarks/synonyms.py runs/scenes-words/model runs/scenes-bert/model

Each thing is asked for by its own name, as training says it, and by another one, «a kitten» for «a cat face»; a matched
filter looks for it. A text encoder that learned with the denoiser knows the words of its captions alone; one that has read
much before may know more.
"""

import argparse
from pathlib import Path

import torch
from drawing import sampled

from sfumato import image
from sfumato.data.scenes import NAMES, named
from sfumato.evaluation.detection import find
from sfumato.model import LatentDiffusion

OTHERWISE = {
    "ear of corn": "maize", "doughnut": "donut", "cookie": "biscuit", "hot beverage": "cup of coffee", "cat face": "kitten",
    "dog face": "puppy", "pig face": "swine", "frog": "toad", "chicken": "hen", "octopus": "squid", "lady beetle": "ladybug",
    "honeybee": "wasp", "butterfly": "moth", "turtle": "tortoise", "tropical fish": "goldfish", "snail": "slug",
    "crab": "lobster", "evergreen tree": "pine", "four leaf clover": "shamrock", "crescent moon": "lunar crescent",
    "fire": "flame", "soccer ball": "football", "wrapped gift": "present", "trumpet": "bugle", "bell": "chime",
    "umbrella": "parasol", "crown": "tiara", "locomotive": "steam train", "automobile": "car", "rocket": "spaceship",
    "sailboat": "yacht", "airplane": "jet", "house": "cottage", "hamburger": "burger", "birthday cake": "dessert with candles",
    "mushroom": "toadstool", "bread": "loaf", "guitar": "ukulele", "panda": "bear", "tulip": "garden flower",
}  # fmt: skip
SHOWN = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--each", type=int, default=4, help="pictures of a word")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("runs/synonyms"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    kinds = [NAMES.index(name) for name in OTHERWISE for _ in range(asked.each)]
    said = {"own name": list(OTHERWISE), "another name": list(OTHERWISE.values())}
    print("| model | own name | another name | chance | heard |\n|---|---|---|---|---|")
    for path in asked.models:
        model, shares, heard, shows = LatentDiffusion.load(path).for_sampling(), [], [], []
        for title, words in said.items():
            captions = [named(word) for word in words for _ in range(asked.each)]
            pictures = sampled(model, {"caption": captions}, len(captions), asked.steps, asked.guidance, 0)
            seen = [{one.thing.kind for one in find(picture)} for picture in pictures]
            there = [kind in found for kind, found in zip(kinds, seen, strict=True)]
            shares.append(100 * sum(there) / len(there))
            shows.append(pictures[:: asked.each][:SHOWN])
            if title == "another name":
                turned = [*kinds[asked.each :], *kinds[: asked.each]]
                chance = 100 * sum(kind in found for kind, found in zip(turned, seen, strict=True)) / len(seen)
                hits = [sum(there[k * asked.each : (k + 1) * asked.each]) for k in range(len(words))]
                heard = [f"{word} {n}" for word, n in zip(words, hits, strict=True) if 2 * n > asked.each]
        image.sheet(torch.cat(shows), SHOWN).save(asked.out / f"{path.parent.name}.png")
        cells = [f"{share:.1f} %" for share in (*shares, chance)]
        print(f"| {path.parent.name} | {' | '.join(cells)} | {len(heard)}: {', '.join(heard)} |", flush=True)


if __name__ == "__main__":
    main()
