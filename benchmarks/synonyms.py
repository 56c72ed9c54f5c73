"""Names that no training said: does a model of scenes make the same thing when it is called otherwise?

    python benchmarks/synonyms.py runs/scenes-words/model runs/scenes-bert/model

Each thing is asked for by its own name, as training says it, by another one, «a kitten» for «a cat face», or by that of a
thing much like it, «a toad» for «a frog»; a matched filter looks for it. A text encoder that learned with the denoiser knows the words of its captions alone; one that has read
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

SAME = {
    "ear of corn": "maize", "doughnut": "donut", "cookie": "biscuit", "dog face": "puppy", "cat face": "kitten",
    "pig face": "swine", "chicken": "hen", "lady beetle": "ladybug", "turtle": "tortoise", "evergreen tree": "pine",
    "four leaf clover": "shamrock", "fire": "flame", "soccer ball": "football", "wrapped gift": "present", "bell": "chime",
    "umbrella": "parasol", "crown": "tiara", "locomotive": "steam train", "automobile": "car", "rocket": "spaceship",
    "sailboat": "yacht", "airplane": "jet", "house": "cottage", "hamburger": "burger", "mushroom": "toadstool",
    "bread": "loaf", "hot beverage": "coffee", "tropical fish": "goldfish",
}  # fmt: skip
NEAR = {
    "frog": "toad", "octopus": "squid", "honeybee": "wasp", "butterfly": "moth", "snail": "slug", "crab": "lobster",
    "trumpet": "bugle", "guitar": "ukulele", "panda": "bear", "birthday cake": "pastry",
}  # fmt: skip
OTHERWISE = SAME | NEAR
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
    print("| model | own name | another name | a near thing | chance | heard |\n|---|---|---|---|---|---|")
    for path in asked.models:
        model, shares, heard, shows = LatentDiffusion.load(path).for_sampling(), [], [], []
        for title, words in said.items():
            captions = [named(word) for word in words for _ in range(asked.each)]
            pictures = sampled(model, {"caption": captions}, len(captions), asked.steps, asked.guidance, 0)
            seen = [{one.thing.kind for one in find(picture)} for picture in pictures]
            there = [kind in found for kind, found in zip(kinds, seen, strict=True)]
            parts = (
                [there] if title == "own name" else [there[: len(SAME) * asked.each], there[len(SAME) * asked.each :]]
            )
            shares += [100 * sum(part) / len(part) for part in parts]
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
