"""What the card of the emoji model says: recall of captions, by skin tone too, time of one picture, a sheet of 64 prompts.

    python benchmarks/emoji_card.py emoji --steps 4 25 --sheet docs/emoji.png

The prompts of the sheet are 48 captions of training and 16 held-out combinations, drawn by a fixed seed and not chosen.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from sfumato import image
from sfumato.data.emoji import EmojiData, EmojiPart
from sfumato.evaluation.captions import NEAR, Matcher, chosen, ranks, shares, small
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.requests import Generate

TONES = ("", "light", "medium-light", "medium", "medium-dark", "dark")
PROMPT = "woman firefighter: dark skin tone"
COLUMNS, TILE, LINES = 8, 128, 4


def drawn(pipeline: Pipeline, captions: list[str], steps: int | None) -> torch.Tensor:
    """A picture a caption (B, C, H, W) in [-1, 1], in so many steps or as the model is meant to be sampled."""
    asked = Generate(prompt=captions, count=len(captions), seed=0, **({} if steps is None else {"steps": steps}))
    return torch.stack([image.to_tensor(picture) for picture in pipeline.generate(asked)])


def row(name: str, found: dict[str, float], more: str = "") -> str:
    """A row of the table."""
    cells = [f"{100 * found[k]:.1f} ± {100 * found[k + '_error']:.1f} %" for k in ("top1", "top10")]
    return f"| {name} | {found['count']} | {' | '.join(cells)} | {more} |"


def recall(pipeline: Pipeline, matcher: Matcher, data: EmojiData, steps: int | None) -> None:
    """Caption match of training, of combinations never seen, and of emoji whose words were never seen."""
    for part, count in (("train", 512), ("combinations", 152), ("held_out", 186)):
        opened = data.open(part)
        indices = chosen(opened, count)
        captions = [opened.fields(k)["caption"][0] for k in indices]
        found = ranks(drawn(pipeline, captions, steps), matcher.reference, matcher.own(opened, indices))
        print(row(part, shares(found)), flush=True)


def tones(pipeline: Pipeline, matcher: Matcher, data: EmojiData, steps: int | None, count: int) -> None:
    """The same for people of each tone, of the same roles, and whether the nearest of a role's pictures has that tone; in
    brackets how many are nearest to each, in the order of the rows."""
    part = data.open("train")
    assert isinstance(part, EmojiPart)
    by_role: dict[tuple[str, str, str], dict[str, int]] = {}
    for k, one in enumerate(part.rows):
        by_role.setdefault((one.base, one.gender, one.direction), {})[one.tone] = k
    roles = [found for found in by_role.values() if set(found) >= set(TONES)]
    roles = roles[:: max(len(roles) // count, 1)][:count]
    for tone in TONES:
        indices = [role[tone] for role in roles]
        pictures = drawn(pipeline, [part.fields(k)["caption"][0] for k in indices], steps)
        several = torch.stack([torch.stack([part.image(role[t]) for t in TONES]) for role in roles]).float() / 127.5 - 1
        near = torch.cdist(small(pictures)[:, None], torch.stack([small(s) for s in several]))[:, 0].argmin(1)
        right = float((near == TONES.index(tone)).double().mean())
        found = shares(ranks(pictures, matcher.reference, matcher.own(part, indices)))
        counts = torch.bincount(near, minlength=len(TONES)).tolist()
        print(row(tone or "no tone said", found, f"{100 * right:.1f} % ({', '.join(map(str, counts))})"), flush=True)


def sheet(pipeline: Pipeline, data: EmojiData, steps: int | None, path: Path) -> None:
    """64 prompts with their pictures, twice as large as made."""
    words: list[str] = []
    for part, count in (("train", 48), ("combinations", 16)):
        opened = data.open(part)
        words += [opened.fields(k)["caption"][0] for k in chosen(opened, count)]
    font, line = ImageFont.truetype(findfont("DejaVu Sans"), 11), 13  # Pillow's own has no å
    high = TILE + LINES * line + 6
    whole = Image.new("RGB", (COLUMNS * (TILE + 6), len(words) // COLUMNS * high), "white")
    draw = ImageDraw.Draw(whole)
    for k, (text, picture) in enumerate(zip(words, image.to_pil(drawn(pipeline, words, steps)), strict=True)):
        x, y = k % COLUMNS * (TILE + 6), k // COLUMNS * high
        whole.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
        lines, rest = [""], text.split()
        while rest:
            word = rest.pop(0)
            longer = f"{lines[-1]} {word}".strip()
            lines = [*lines[:-1], longer] if draw.textlength(longer, font) <= TILE else [*lines, word]
        draw.text((x, y + TILE + 2), "\n".join(lines[:LINES]), "black", font, spacing=2)
    whole.save(path, optimize=True)
    print(f"the sheet is {path}")


def seconds(model: str, steps: int | None, times: int = 5) -> float:
    """The median time of the whole command for one picture, Python's start included; where the recall is measured, on the CPU."""
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "sfumato", "generate", model, "--prompt", PROMPT, "--out", folder]
        words += ["--device", "cpu", *([] if steps is None else ["--steps", str(steps)])]
        for _ in range(times):
            begin = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            taken.append(time.perf_counter() - begin)
    return sorted(taken)[times // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, nargs="*", help="by default as the model is meant to be sampled")
    parser.add_argument("--people", type=int, default=64, help="roles of which each tone is drawn")
    parser.add_argument("--sheet", type=Path, help="write the 64 prompts here")
    asked = parser.parse_args()
    pipeline = Pipeline.load(asked.model, device="cpu")
    data = EmojiData(size=pipeline.model.size)
    matcher = Matcher(data)
    for steps in asked.steps or [None]:
        print(
            f"\n{asked.model}, {steps or 'its own'} steps, {seconds(asked.model, steps):.1f} seconds for one picture\n"
        )
        print(
            f"| | captions | own picture nearest | among the {NEAR} nearest | tone right (nearest tones) |\n|---|---|---|---|---|"
        )
        recall(pipeline, matcher, data, steps)
        tones(pipeline, matcher, data, steps, asked.people)
    if asked.sheet is not None:
        sheet(pipeline, data, (asked.steps or [None])[0], asked.sheet)


if __name__ == "__main__":
    main()
