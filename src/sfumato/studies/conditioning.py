"""`conditioning`: cross-attention, tau_theta and eps_theta trained together (Rombach et al., 2022, section 3.3).

A text encoder that is trained with the denoiser, beside one that stays as it was drawn and beside none at all. Words are
heard by cross-attention alone: the mean of the tokens, which our recipes also add to the time embedding, is left out.
Compared are the denoising loss on pictures that were not trained on, with their own words and with others', whether a
caption's picture looks like its own, and where single words are looked at.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sfumato import files
from sfumato.data.base import Part
from sfumato.data.picked import one_each
from sfumato.evaluation.captions import NEAR
from sfumato.evaluation.run import evaluate_model
from sfumato.model import LatentDiffusion
from sfumato.studies import recipes
from sfumato.studies.attention import strip, words
from sfumato.studies.desk import Desk
from sfumato.studies.measure import VERSIONS, distance, generated
from sfumato.studies.result import Figure, Result, Table
from sfumato.studies.verdict import Claim, Pair, Spread, judged, paired
from sfumato.training.validation import losses

FIRST_SHARE, MEASURING = 0.15, 0.15
GUIDANCE, CAPTIONS, SHOWN = 3.0, 256, 6
MEAN = 2.0  # of the logit of times: where words decide the picture
TOLD = {"trained": "trained with the denoiser", "frozen": "left as it was drawn", "none": "none: no condition"}
Losses = dict[str, list[float]]  # of each picture, with its `own` words and with `others`


def study(desk: Desk) -> Result:
    """Train three models, measure, draw attention maps, judge."""
    if not desk.captioned:
        raise ValueError(
            f"{desk.name} has no captions, which this study is about; give --data emoji or a folder with captions"
        )
    desk.dividing(2)
    texts: dict[str, Any] = {"trained": recipes.by_words(desk.longest, pooled=False), "none": {}}
    texts["frozen"] = {"caption": {**texts["trained"]["caption"], "trained": False}}
    stage = desk.latents(FIRST_SHARE * desk.hours)
    hours = (1 - FIRST_SHARE - MEASURING) * desk.hours / len(TOLD)
    models, rows, found, heard = {}, {}, {}, {}
    for name in TOLD:
        fields = recipes.denoiser(stage, texts[name], mean=MEAN)
        models[name] = desk.trained(f"text-{name}", fields, desk.budget(f"text-{name}", fields, hours))
        scales = (1.0,) if name == "none" else (1.0, GUIDANCE)
        rows[name] = {s: generated(desk, f"text-{name}-{s:g}", models[name], guidance=s) for s in scales}
        found[name], heard[name] = matched(desk, name, models[name]), measured(desk, name, models[name])
    result = Result(
        "conditioning", "Words by cross-attention",
        f"The same denoiser on {desk.name} at {desk.train.size} pixels with three text encoders. Losses are of pictures that "
        f"were not trained on ({unseen(desk)[0]}), at the same times and noise for all three.",
        protocol=desk.protocol(guidance=[1.0, GUIDANCE], captions=CAPTIONS), claims=claims(found, heard),
    )  # fmt: skip
    name = distance(desk)
    head = ["text encoder", f"{name}, guidance 1", f"guidance {GUIDANCE:g}", "loss", "with others' words", "own picture nearest",
            "among ten", "among ten, unseen"]  # fmt: skip
    lines = [
        [
            TOLD[n], rows[n][1.0][name].told(), rows[n][GUIDANCE][name].told() if GUIDANCE in rows[n] else "",
            *(Spread.of(heard[n][k]).mean(4) for k in ("own", "others")),
            *(_share(found[n], k) for k in ("train", "train10", "held_out10")),
        ]
        for n in TOLD
    ]  # fmt: skip
    result.tables.append(Table("Three text encoders", head, lines))
    result.figures += attended(desk, models["trained"])
    result.figures += [Figure(r[max(r)].sheet, f"Text encoder {TOLD[n]}, guidance {max(r):g}") for n, r in rows.items()]
    return result


def unseen(desk: Desk) -> tuple[str, Part]:
    """Pictures that were not trained on but whose words were, where the data have such; else the held-out part: one of each
    family, for twins are no two pictures to a mean."""
    name = "combinations" if "combinations" in desk.opened.parts else "held_out"
    return name, one_each(desk.opened.open(name))


def measured(desk: Desk, name: str, model: Path) -> Losses:
    """The losses of each unseen picture."""

    def make() -> Losses:
        own, others = losses(LatentDiffusion.load(model, desk.device), unseen(desk)[1])
        return {"own": own, "others": others}

    kept: Losses = desk.once(
        f"text-losses-{name}", [files.sha256(model / "model.yaml"), unseen(desk)[1].fingerprint], make
    )
    return kept


def matched(desk: Desk, name: str, model: Path) -> dict[str, Any]:
    """Where the data know all pictures: how often a caption's picture looks like its own, of training and new captions."""

    def make() -> dict[str, Any]:
        found: dict[str, Any] = {}
        if name == "none" or "all" not in desk.opened.parts:
            return found
        opened = LatentDiffusion.load(model, desk.device)
        whole = evaluate_model(
            opened, desk.opened, captions=CAPTIONS, guidance=GUIDANCE, steps=desk.steps, dtype=desk.dtype
        )
        match, ranks = whole["caption_match"], whole["caption_ranks"]
        for part in ("train", "held_out"):
            cell = match.get(part)
            if cell:
                found |= {part: cell["top1"], f"{part}10": cell["top10"]}
                found |= {f"{part} ±": cell["top1_error"], f"{part}10 ±": cell["top10_error"]}
                found |= {f"{part} ranks": ranks[part]}
        return found

    kept: dict[str, Any] = desk.once(
        f"text-match-{name}",
        [
            files.sha256(model / "model.yaml"),
            [CAPTIONS, GUIDANCE, desk.steps, str(desk.dtype), VERSIONS],
            desk.held_out.fingerprint,
        ],
        make,
    )
    return kept


def _share(found: dict[str, Any], key: str) -> str:
    return f"{100 * found[key]:.1f} % ± {100 * found[f'{key} ±']:.1f}" if key in found else ""


def claims(found: Mapping[str, dict[str, Any]], heard: Mapping[str, Losses]) -> list[Claim]:
    """What section 3.3 says. Losses are compared picture by picture."""
    trained, frozen, none = (heard[n] for n in ("trained", "frozen", "none"))
    made = [
        paired(
            "Cross-attention tells the denoiser what the words say: others' words are worse",
            trained["others"],
            trained["own"],
        ),
        paired("Words lower the loss on pictures that were not trained on", none["own"], trained["own"]),
        paired(
            "Training the text encoder with the denoiser lowers it more than leaving it", frozen["own"], trained["own"]
        ),
    ]
    if "train10" in found["trained"]:
        gains = gained(*(found[n]["train ranks"] for n in ("trained", "frozen")))
        made.append(judged(
            "Captions' pictures are nearer to their own with a trained text encoder",
            f"own picture among the ten nearest: {_share(found['trained'], 'train10')} against {_share(found['frozen'], 'train10')}, "
            f"{100 * gains.value:.1f} ± {100 * gains.error:.1f} points, caption by caption",
            Pair(gains, Spread(0.0, 0.0, max(gains.count, 2)), lower=False),
        ))  # fmt: skip
    return made


def gained(one: Sequence[int], other: Sequence[int]) -> Spread:
    """How much oftener the first of two models has a caption's own picture among the ten nearest, of the same captions."""
    return Spread.of([float(a < NEAR) - float(b < NEAR) for a, b in zip(one, other, strict=True)])


def attended(desk: Desk, folder: Path) -> list[Figure]:
    """A row for each of some captions: the picture, then each word's map over it."""
    model, found = LatentDiffusion.load(folder, desk.device), []
    said = {k: texts[0] for k in range(len(desk.train)) if (texts := desk.train.field(k, "caption"))}
    longest = sorted(said, key=lambda k: (-len(said[k].split()), k))
    several = longest[:: max(len(longest) // (4 * SHOWN), 1)][:SHOWN]
    for number, k in enumerate(several):
        prompt = said[k]
        picture, heard, maps = words(model, prompt, number)
        path = desk.folder / f"attention-{number}.png"
        files.write(path, partial(strip(picture, heard, maps).save, format="PNG"))
        found.append(Figure(path, f"«{prompt}»: the picture, then the places that look at each word"))
    return found
