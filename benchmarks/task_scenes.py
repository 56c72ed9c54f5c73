"""Scenes by words, classes, boxes and maps: is what was asked there? Held-out combinations, a matched filter as the judge.

    sfumato train scenes-autoencoder && sfumato train scenes-text
    sfumato train scenes-label && sfumato train scenes-layout && sfumato train scenes-map
    python benchmarks/task_scenes.py --runs runs --out scenes

Scenes of two things are of combinations that training never showed. `--things 1 3 4` asks for scenes of so many, drawn on
beyond those that were trained on. Every number stands beside that of real scenes and of the first stage's reconstructions of them, which no latent model
passes, and beside chance: the same pictures, asked for what the next one shows.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from drawing import sampled
from PIL import Image
from torch import Tensor

from sfumato import files, image
from sfumato.data.scenes import ScenesData, ScenesPart
from sfumato.diffusion.names import DEFAULT, DEFAULT_GRID
from sfumato.evaluation import detection
from sfumato.model import LatentDiffusion

FIELDS = {"text": "caption", "label": "things", "layout": "boxes", "map": "map"}
PLACED = ("relation", "boxes", "classes")  # measures of where things stand, of which classes alone say nothing
SHOWN = 12
FORMAT = 1  # of what is kept; a change of scenes, detector or measures that moves a number makes it another
BEYOND = 100_000  # index of the first scene that no recipe trains on


def chosen(count: int, things: int) -> tuple[ScenesPart, list[int]]:
    """Scenes of so many things that training never showed, and where they stand in their part."""
    part = ScenesData(count=2 * BEYOND).open("held_out" if things == 2 else "train")
    assert isinstance(part, ScenesPart)
    found, index = list[int](), 0 if things == 2 else BEYOND
    while len(found) < count:
        if len(part.scene(index).things) == things:
            found.append(index)
        index += 1
    return part, found


def said(part: ScenesPart, field: str, indices: list[int], wording: int) -> dict[str, list[Any]]:
    """What is asked of scenes: one of their captions, their boxes, their map."""
    values = [part.field(k, field) for k in indices]
    return {field: [v[wording] for v in values] if field == "caption" else values}


def sheet(rows: list[list[Tensor]], path: Path) -> None:
    """Rows of as many pictures, the first of each, twice as large."""
    columns = min(SHOWN, len(rows[0]))
    whole = image.sheet(torch.cat([torch.stack(r[:columns]) for r in rows]), columns)
    whole.resize((2 * whole.width, 2 * whole.height), Image.Resampling.NEAREST).save(path)


def one(kind: str, asked: argparse.Namespace, things: int) -> dict[str, Any]:
    """All rows of one recipe, read where the same was measured before."""
    wording = f"-{asked.wording}" if kind == "text" and asked.wording else ""
    path = asked.out / f"{kind}{wording}{'' if things == 2 else f'-of-{things}'}.json"
    folder = asked.runs / f"scenes-{kind}" / "model"
    key: dict[str, Any] = {
        "format": FORMAT,
        "model": files.sha256(folder / "model.yaml"),
        "count": asked.count,
        "steps": asked.steps,
        "sampler": DEFAULT,
        "grid": DEFAULT_GRID,
        "seed": asked.seed,
        "things": things,
        "guidance": asked.guidance if kind in ("text", "label") else [1.0, 2.0],
        **({"wording": asked.wording} if kind == "text" else {}),
    }
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {name: kept.get(name) for name in key} == key:
            return kept
    model = LatentDiffusion.load(folder).for_sampling()
    field = FIELDS[kind]
    part, places = chosen(asked.count, things)
    pictures, scenes = detection.of_part(part, places)
    maps = [torch.from_numpy(part.field(k, "map")) for k in places]
    rows: dict[str, Any] = {}

    def measure(title: str, several: list[Tensor], by: int = 0) -> None:
        """Score pictures against what the scenes `by` places on say."""
        told = detection.score(several, [*scenes[by:], *scenes[:by]]).told()
        rows[title] = {name: value for name, value in told.items() if kind != "label" or name not in PLACED}
        if kind == "map":
            rows[title]["foreground"] = detection.foreground(several, [*maps[by:], *maps[:by]])
        print(title, rows[title], flush=True)

    measure("real", pictures)
    with torch.no_grad():
        again = [p for b in torch.stack(pictures).split(64) for p in model.codec.decode(model.codec.encode(b))]
    measure("reconstructed", again)
    shown = [pictures]
    scales, spoken = key["guidance"], said(part, field, places, asked.wording)
    for scale in scales:
        several = list(sampled(model, spoken, len(places), asked.steps, scale, asked.seed))
        measure(f"guidance {scale:g}", several)
        shown.append(several)
        if scale == scales[0]:
            measure("chance", several, 1)
    sheet(shown, path.with_suffix(".png"))
    told = {"kind": kind, **key, "rows": rows}
    if kind == "text":
        told["captions"] = spoken[field][:SHOWN]
    path.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return told


HEAD = {
    "objects": "objects", "all_objects": "all of them", "relation": "relation", "boxes": "IoU", "classes": "class in its box",
    "strange": "not asked for", "foreground": "foreground mIoU",
}  # fmt: skip


def table(told: dict[str, Any]) -> str:
    """The rows in markdown."""
    columns = [c for c in HEAD if any(c in row for row in told["rows"].values())]
    lines = ["| | " + " | ".join(HEAD[c] for c in columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for title, row in told["rows"].items():
        cells = [
            f"{row[c]:.2f}" if c in ("strange", "boxes", "foreground") else f"{100 * row[c]:.1f} %" for c in columns
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("runs/task-scenes"))
    parser.add_argument("--only", nargs="*", default=list(FIELDS))
    parser.add_argument("--count", type=int, default=256, help="held-out scenes")
    parser.add_argument("--things", type=int, nargs="*", default=[2], choices=(1, 2, 3, 4), help="how many in a scene")
    parser.add_argument(
        "--wording",
        type=int,
        default=0,
        help="which of a scene's captions: 1 has its things in the other order, 2 and 3 name the ground",
    )
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0, 2.0, 3.0, 5.0])
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for kind in asked.only:
        for things in asked.things:
            told = one(kind, asked, things)
            head = f"{kind}: {told['count']} scenes of {things}, {told['steps']} steps, seeds from {told['seed']}"
            print(f"\n{head}\n\n{table(told)}")


if __name__ == "__main__":
    main()
