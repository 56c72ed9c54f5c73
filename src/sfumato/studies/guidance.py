"""`guidance`: quality for diversity, and a lower distance up to a point (Rombach et al., 2022, tables 2 and 3, figure 8).

A class-conditional model, and where there are captions a text-conditional one, sampled at several scales; beside them
guidance that acts in an interval of times only (Kynkäänniemi et al., 2024).
"""

from pathlib import Path

from sfumato.studies import recipes
from sfumato.studies.desk import Desk
from sfumato.studies.measure import REAL, Row, cell, distance, generated, real, short
from sfumato.studies.result import Figure, Result, Table, plot
from sfumato.studies.verdict import Claim, Pair, judged

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
INTERVAL = (0.3, 0.8)  # of times
MEANS = {"class": 0.0, "words": 2.0}  # of the logit of times: where each decides the picture
TRADE = 3.0  # the scale at which diversity and quality are judged; higher ones leave the pictures of the data
FIRST_SHARE, MEASURING = 0.2, 0.35


def study(desk: Desk) -> Result:
    """Train both models, sample at all scales, judge."""
    kinds = [("class", recipes.by_class())] if desk.labelled else []
    kinds += [("words", recipes.by_words(desk.longest))] if desk.captioned else []
    if not kinds:
        raise ValueError(
            f"{desk.name} has neither classes nor captions to guide by; give --data emoji or a folder with some"
        )
    desk.dividing(2)
    stage = desk.latents(FIRST_SHARE * desk.hours)
    hours = (1 - FIRST_SHARE - MEASURING) * desk.hours / len(kinds)
    result = Result(
        "guidance", "Guidance",
        f"Classifier-free guidance on {desk.name} at {desk.train.size} pixels, everywhere and in the times from "
        f"{INTERVAL[0]:g} to {INTERVAL[1]:g} only.", protocol=desk.protocol(guidance=list(SCALES), interval=list(INTERVAL)),
    )  # fmt: skip
    result.figures.append(Figure(real(desk, desk.judge).sheet, "Held-out pictures"))
    for name, conditioners in kinds:
        fields = recipes.denoiser(stage, conditioners, mean=MEANS[name])
        run = f"by-{name}"
        one(desk, result, name, desk.trained(run, fields, desk.budget(run, fields, hours)))
    return result


def one(desk: Desk, result: Result, name: str, model: Path) -> None:
    """Adds one model's tables, plots and claims."""
    everywhere = {s: generated(desk, f"guidance-{name}-{s:g}", model, guidance=s, judge=desk.judge) for s in SCALES}
    partly = {
        s: generated(desk, f"guidance-{name}-{s:g}-part", model, guidance=s, interval=INTERVAL, judge=desk.judge)
        for s in SCALES[1:]
    }
    fid = distance(desk)
    measures = [fid, *(short(desk, m) for m in ("precision", "recall", "KID", "density", "coverage"))]
    measures += [m for m in ("class score", "agreement") if m in everywhere[1.0].measures]
    titled = {REAL: real(desk, desk.judge)} | {f"{s:g}": row for s, row in everywhere.items()}
    titled |= {f"{s:g}, in the interval": row for s, row in partly.items()}
    rows = [[title, *(cell(row, m) for m in measures)] for title, row in titled.items()]
    result.tables.append(Table(f"By {name}", ["guidance", *measures], rows))
    lines = [
        ("everywhere", list(everywhere), [r[fid].value for r in everywhere.values()]),
        ("in the interval", list(partly), [r[fid].value for r in partly.values()]),
    ]
    result.figures.append(
        Figure(plot(desk.folder / f"{name}.png", lines, "guidance scale", fid), f"By {name}: {fid} against guidance")
    )
    trade = [(m, list(everywhere), [r[m].value for r in everywhere.values()]) for m in measures[1:3]]
    result.figures.append(
        Figure(
            plot(desk.folder / f"{name}-trade.png", trade, "guidance scale", "share"),
            f"By {name}: precision and recall",
        )
    )
    best = min(everywhere, key=lambda s: everywhere[s][fid].value)
    shown = [(1.0, "none"), (best, "of the lowest distance"), (SCALES[-1], "the highest")]
    result.figures += [Figure(everywhere[s].sheet, f"By {name}, guidance {s:g}: {what}") for s, what in shown]
    result.figures.append(Figure(partly[TRADE].sheet, f"By {name}, guidance {TRADE:g} in the interval"))
    result.claims += claims(name, everywhere, partly, measures)


def claims(name: str, everywhere: dict[float, Row], partly: dict[float, Row], measures: list[str]) -> list[Claim]:
    """What the paper and its successors say of guidance."""
    fid, precision, recall = measures[:3]
    scales = list(everywhere)
    guided = min(scales[1:], key=lambda s: everywhere[s][fid].value)
    best, within = min(scales, key=lambda s: everywhere[s][fid].value), min(partly, key=lambda s: partly[s][fid].value)
    before = min(scales[:-1], key=lambda s: everywhere[s][fid].value)
    first, last, strong = everywhere[scales[0]], everywhere[scales[-1]], everywhere[TRADE]
    return [
        judged(f"By {name}: guidance lowers the distance",
               f"{first[fid].told()} at 1, {everywhere[guided][fid].told()} at {guided:g}, the best of {len(scales) - 1}",
               Pair(everywhere[guided][fid], first[fid])),
        judged(f"By {name}: up to a point",
               f"{everywhere[before][fid].told()} at {before:g}, {last[fid].told()} at {scales[-1]:g}",
               Pair(everywhere[before][fid], last[fid])),
        judged(f"By {name}: it trades diversity for quality",
               f"from 1 to {TRADE:g}: precision {first[precision].told()} to {strong[precision].told()}, "
               f"recall {first[recall].told()} to {strong[recall].told()}",
               Pair(strong[precision], first[precision], lower=False), Pair(first[recall], strong[recall], lower=False)),
        judged(f"By {name}: in an interval it is better than everywhere",
               f"{partly[within][fid].told()} at {within:g} against {everywhere[best][fid].told()} at {best:g}, the best of each",
               Pair(partly[within][fid], everywhere[best][fid])),
    ]  # fmt: skip
