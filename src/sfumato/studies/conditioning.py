"""`conditioning`: cross-attention, tau_theta and eps_theta trained together (Rombach et al., 2022, section 3.3).

A text encoder that is trained with the denoiser, beside one that stays as it was drawn and beside none at all: the
distance, whether a caption's picture looks like its own, the held-out loss, and where single words are looked at.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sfumato import files
from sfumato.evaluation.run import evaluate_model
from sfumato.model import LatentDiffusion
from sfumato.studies import recipes
from sfumato.studies.attention import overlaid, words
from sfumato.studies.compression import protocol
from sfumato.studies.desk import Desk
from sfumato.studies.guidance import good_stage
from sfumato.studies.measure import distance, generated
from sfumato.studies.result import Figure, Result, Table
from sfumato.studies.verdict import FAILS, HOLDS, OPEN, Claim, Spread, better
from sfumato.training.validation import denoising

FIRST_SHARE, MEASURING = 0.15, 0.15
GUIDANCE, CAPTIONS, SHOWN = 3.0, 256, 6
TOLD = {"trained": "trained with the denoiser", "frozen": "left as it was drawn", "none": "none: no condition"}


def study(desk: Desk) -> Result:
    """Train three models, measure, draw attention maps, judge."""
    if not desk.captioned:
        raise ValueError(
            f"{desk.name} has no captions, which this study is about; give --data emoji or a folder with captions"
        )
    stage = good_stage(desk, FIRST_SHARE * desk.hours)
    hours = (1 - FIRST_SHARE - MEASURING) * desk.hours / len(TOLD)
    texts: dict[str, Any] = {"trained": recipes.by_words(), "none": {}}
    texts["frozen"] = {"caption": {**recipes.by_words()["caption"], "trained": False}}
    models, rows, found = {}, {}, {}
    for name in TOLD:
        fields = recipes.denoiser(stage, texts[name], width=128, multipliers=(1, 1), mean=2.0)
        run = "by-words" if name == "trained" and "by-words" in desk.plan("images") else f"text-{name}"
        models[name] = desk.trained(run, fields, desk.budget(run, fields, hours))
        scale = GUIDANCE if name != "none" else 1.0
        rows[name] = generated(desk, f"conditioning-{name}", models[name], guidance=scale)
        found[name] = matched(desk, name, models[name])
    result = Result(
        "conditioning", "Words by cross-attention",
        f"The same denoiser on {desk.name} at {desk.train.size} pixels with three text encoders, guidance {GUIDANCE:g}.",
        protocol=protocol(desk), claims=claims(found),
    )  # fmt: skip
    name = distance(desk)
    head = ["text encoder", name, "held-out loss", "own picture nearest", "among ten", "with new combinations"]
    lines = [
        [
            TOLD[n],
            rows[n][name].told(),
            f"{found[n]['loss']:.4f}",
            *(_share(found[n], k) for k in ("train", "train10", "held_out10")),
        ]
        for n in TOLD
    ]
    result.tables.append(Table("Three text encoders", head, lines))
    result.figures += attended(desk, models["trained"])
    result.figures += [Figure(rows[n].sheet, f"Text encoder {TOLD[n]}") for n in TOLD]
    return result


def matched(desk: Desk, name: str, model: Path) -> dict[str, Any]:
    """Held-out loss, and where the data know all pictures the caption match of training captions and new combinations."""

    def make() -> dict[str, Any]:
        opened = LatentDiffusion.load(model, desk.device)
        found: dict[str, Any] = {"loss": denoising(opened, desk.held_out)["loss"]}
        if name == "none" or "all" not in desk.opened.parts:
            return found
        match = evaluate_model(opened, desk.opened, captions=CAPTIONS, guidance=GUIDANCE, dtype=desk.dtype)[
            "caption_match"
        ]
        for part in ("train", "held_out"):
            cell = match.get(part)
            if cell:
                found |= {part: cell["top1"], f"{part}10": cell["top10"]}
                found |= {f"{part} ±": cell["top1_error"], f"{part}10 ±": cell["top10_error"]}
        return found

    kept: dict[str, Any] = desk.once(f"conditioning-match-{name}", [files.sha256(model / "model.yaml"), CAPTIONS], make)
    return kept


def _share(found: dict[str, Any], key: str) -> str:
    return f"{100 * found[key]:.1f} % ± {100 * found[f'{key} ±']:.1f}" if key in found else ""


def claims(found: dict[str, dict[str, Any]]) -> list[Claim]:
    """What section 3.3 says."""
    trained, frozen, none = (found[n] for n in ("trained", "frozen", "none"))
    told = f"held-out loss {trained['loss']:.4f} with words, {none['loss']:.4f} without"
    made = [
        Claim(
            "Cross-attention tells the denoiser what the words say",
            HOLDS if trained["loss"] < none["loss"] else FAILS,
            told,
        )
    ]
    if "train10" in trained:
        one, other = (Spread(f["train10"], f["train10 ±"]) for f in (trained, frozen))
        made.append(Claim(
            "Training the text encoder with the denoiser is better than leaving it", better(one, other, lower=False),
            f"own picture among the ten nearest: {_share(trained, 'train10')} against {_share(frozen, 'train10')}",
        ))  # fmt: skip
    else:
        made.append(Claim("Training the text encoder with the denoiser is better than leaving it",
                          OPEN, f"held-out loss {trained['loss']:.4f} against {frozen['loss']:.4f}, one run each"))  # fmt: skip
    return made


def attended(desk: Desk, folder: Path) -> list[Figure]:
    """A row for each of some captions: the picture, then each word's map over it."""
    model, found = LatentDiffusion.load(folder, desk.device), []
    longest = sorted(range(len(desk.train)), key=lambda k: (-len(desk.train.fields(k)["caption"][0].split()), k))
    several = longest[:: max(len(longest) // (4 * SHOWN), 1)][:SHOWN]
    for number, k in enumerate(several):
        prompt = desk.train.fields(k)["caption"][0]
        picture, said, maps = words(model, prompt, number)
        path = desk.folder / "conditioning" / f"attention-{number}.png"
        row = _row([_large(picture), *overlaid(picture, maps)])
        files.write(path, partial(row.save, format="PNG"))
        found.append(Figure(path, f"«{prompt}»: the picture, then where it looks at {', '.join(said)}"))
    return found


def _large(picture: torch.Tensor) -> Image.Image:
    from sfumato import image

    made = image.to_pil(picture[None])[0].convert("RGB")
    return made.resize((2 * made.width, 2 * made.height), Image.Resampling.BICUBIC)


def _row(pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    whole = Image.new("RGB", ((width + 4) * len(pictures) - 4, height), "white")
    for k, picture in enumerate(pictures):
        whole.paste(picture, (k * (width + 4), 0))
    return whole
