"""The page of an evaluation, and its tables as text: numbers with their protocol, and the pictures behind them.

One self-contained HTML file: every table with its ceiling rows and the sentence that says how it was measured, a
contact sheet of best, median and worst, the latents channel by channel, the use of the codebook.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sfumato import image
from sfumato.evaluation import protocol
from sfumato.evaluation.generation import SHOWN
from sfumato.evaluation.reconstruction import Perceptual, worst
from sfumato.evaluation.source import Rebuilt, Source
from sfumato.features.network import colour
from sfumato.page import Page

Table = tuple[str, list[str], list[list[str]]]  # title, head, rows
SIDE = 160  # pixels a side, about, of pictures in contact sheets
UNITS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}


def tables(found: Mapping[str, Any]) -> list[Table]:
    """The tables of a result, as texts."""
    made: list[Table] = []
    if "reconstruction" in found:
        rows = [("reconstructions", found["reconstruction"])]
        if "ceiling" in found:
            rows.append(("originals against themselves", found["ceiling"]))
        names = [n for n in rows[0][1] if n not in ("count", "psnr_error")]
        head = ["", "images", *(UNITS.get(n, n) for n in names)]
        cells = [[title, f"{row['count']:,}", *(_value(row, n) for n in names)] for title, row in rows]
        made.append(("Reconstruction", head, cells))
    if "features" in found:
        names = [n for n in found["features"][0] if n not in ("images", "count", "against") and not n.endswith(" ±")]
        head = ["", "images", "against", *names]
        cells = [
            [row["images"], f"{row['count']:,}", f"{row['against']:,}", *(_value(row, n) for n in names)]
            for row in found["features"]
        ]
        made.append(("Distances to real images", head, cells))
    if "memorising" in found:
        row = found["memorising"]
        names = list(row["samples"])
        cells = [
            [title.replace("_", " "), *(f"{row[title][n]:.3f}" for n in names)] for title in ("samples", "held_out")
        ]
        expected = f"{100 * row['expected']:.1f}"
        by_chance = f"expected {expected} ± {100 * row['± by chance']:.1f}; so many by chance: {_odds(row['chance'])}"
        cells[0].append(f"{100 * row['suspicious']:.1f} % ({by_chance})")
        cells[1].append(f"{expected} %")
        head = [
            "",
            *(f"nearest training picture: {names[0]}", *names[1:]),
            "nearer than the nearest hundredth of held-out ones",
        ]
        made.append(("Is it memorising?", head, cells))
    if "alignment" in found:
        names = [n for n in found["alignment"][0] if n not in ("images", "count")]
        cells = [[row["images"], f"{row['count']:,}", *(_value(row, n) for n in names)] for row in found["alignment"]]
        made.append(("Pictures and captions", ["", "images", *names], cells))
    if found.get("likelihood"):
        row = found["likelihood"]
        cells = [[f"{row['count']:,}", f"{row['bits']:.3f} ± {row['±']:.3f}"]]
        made.append(("Likelihood of held-out pictures", ["images", "bits per dimension"], cells))
    if "denoising" in found:
        row = found["denoising"]
        cells = [[f"{row['count']:,}", _value(row, "loss"), _value(row, "shuffled")]]
        made.append(("Held-out denoising loss", ["images", "loss", "with the words of others"], cells))
    return made


def _odds(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "below 0.1 %"


def _value(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    spread = row.get(f"{name} ±", row.get(f"{name}_error"))
    return f"{row[name]:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")


def sentences(found: Mapping[str, Any]) -> list[str]:
    """How the result was measured: a line for pairs, one for features."""
    record = found["protocol"]
    said = []
    if "pairs" in record:
        data = record.get("data") or record.get("parts", {})
        name = f"{data['name']}, {data['count']:,} pictures" if "name" in data else "held-out pictures"
        looked = f"; {record['perceptual']['name']}" if record.get("perceptual") else ""
        said.append(f"pairs rounded to 8 bits, MS-SSIM over {record['pairs']['ms_ssim_scales']} scales; {name}{looked}")
    if "features" in record:
        said.append(protocol.sentence(record))
    return [*said, found["left_out"]] if "left_out" in found else said


def text(found: Mapping[str, Any]) -> str:
    """Tables and protocol for a terminal."""
    blocks = []
    for title, head, rows in tables(found):
        widths = [max(len(r[k]) for r in [head, *rows]) for k in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
        ]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join([*blocks, *sentences(found)])


def report(
    path: Path,
    found: Mapping[str, Any],
    *,
    title: str,
    again: Rebuilt | None = None,
    images: Source | None = None,
    reference: Source | None = None,
    perceptual: Perceptual | None = None,
    train: Source | None = None,
) -> Path:
    """Write the page of a result: `again` shows reconstructions, `images` and `reference` what features found, `images`
    and `train` the samples that are nearest to a training picture."""
    page = Page(path.parent, live=False, title=f"Sfumato: {title}", intro=f"Evaluation of {title}.", file=path.name)
    for name, head, rows in tables(found):
        page.heading(name, html.escape(" ".join(f"{s}." for s in sentences(found))))
        page.table(head, rows)
    if again is not None and found.get("pictures"):
        _pairs(page, found["pictures"], again, perceptual)
    if images is not None and reference is not None and found.get("extremes"):
        _neighbours(page, found["extremes"], images, reference)
    if images is not None and train is not None and found.get("memorising"):
        _copies(page, found["memorising"]["pairs"], images, train)
    if "latents" in found:
        _latents(page, found["latents"])
    page.heading("Protocol", "Two results compare where this is the same.")
    page.command(json.dumps(found["protocol"], indent=1, ensure_ascii=False))
    page.command(json.dumps(found.get("subject", {}), indent=1, ensure_ascii=False))
    return page.write()


def _pairs(page: Page, rows: Sequence[dict[str, Any]], again: Rebuilt, perceptual: Perceptual | None) -> None:
    order = worst(rows, perceptual.name if perceptual is not None else "psnr")
    by = perceptual.name if perceptual is not None else "PSNR"
    count, middle = min(SHOWN, len(order)), max(len(order) // 2 - SHOWN // 2, 0)
    cuts = {"Worst": order[:count], "Median": order[middle : middle + count], "Best": order[::-1][:count]}
    for title, chosen in cuts.items():
        indices = [row["index"] for row in chosen]
        originals = again.source.pictures(indices)
        made = again.rebuilt(originals)
        page.heading(f"{title} reconstructions", f"Originals on the left; in the order of {html.escape(by)}.")
        page.tiles([beside(a, b) for a, b in zip(originals, made, strict=True)], [_said(row) for row in chosen])
    page.heading("Picture by picture", "The worst fifty.")
    names = [n for n in rows[0] if n not in ("index", "name")]
    page.table(
        ["", *(UNITS.get(n, n) for n in names)], [[r["name"], *(_value(r, n) for n in names)] for r in order[:50]]
    )


def _said(row: Mapping[str, Any]) -> str:
    return f"{row['name']}: {row['psnr']:.1f} dB"


def _neighbours(page: Page, extremes: Mapping[str, Any], images: Source, reference: Source) -> None:
    for title in ("worst", "median", "best"):
        rows = extremes[title]
        made = images.pictures([k for k, _, _ in rows])
        real = reference.pictures([near for _, near, _ in rows])
        page.heading(
            f"{title.capitalize()} images",
            "On the right the real image that is nearest in features; a pair that is equal was memorised.",
        )
        page.tiles(
            [beside(a, b) for a, b in zip(made, real, strict=True)],
            [f"{images.name(k)}, distance {distance:.3g}" for k, _, distance in rows],
        )


def _copies(page: Page, pairs: Sequence[Sequence[Any]], images: Source, train: Source) -> None:
    page.heading("Nearest to the training set", "Samples on the left, the nearest training picture on the right.")
    made, real = images.pictures([k for k, _, _ in pairs]), train.pictures([near for _, near, _ in pairs])
    page.tiles(
        [beside(a, b) for a, b in zip(made, real, strict=True)],
        [f"{train.name(near)}, distance {distance:.3f}" for _, near, distance in pairs],
    )


def _latents(page: Page, latents: Mapping[str, Any]) -> None:
    names = ["mean", "std", "min", "max", "posterior_std"]
    page.heading("Latents, channel by channel", "Of the raw latents (modes), before shift and scale.")
    cells = [[str(k), *(f"{row[n]:.4g}" for n in names)] for k, row in enumerate(latents["channels"])]
    page.table(["channel", *(n.replace("_", " ") for n in names)], cells)
    if "codes" in latents:
        codes = latents["codes"]
        of = f" of {codes['size']:,} ({100 * codes['share']:.1f} %)" if "size" in codes else ""
        page.heading("Codebook", f"{codes['used']:,}{of} codes were used in {codes['drawn']:,} draws.")
        page.table(["used", "perplexity"], [[f"{codes['used']:,}{of}", f"{codes['perplexity']:.1f}"]])


def beside(one: Tensor, other: Tensor) -> Image.Image:
    """Two pictures (C, H, W) in [-1, 1] side by side, each about `SIDE` pixels wide; small ones keep their pixels."""
    return image.sheet(torch.stack([_shown(one), F.interpolate(_shown(other)[None], _shown(one).shape[1:])[0]]), 2)


def _shown(picture: Tensor) -> Tensor:
    rgb = colour((picture + 1) * 127.5) / 127.5 - 1 if picture.shape[0] in (1, 4) else picture[:3]
    side = max(rgb.shape[1:])
    if side <= SIDE:
        return rgb.repeat_interleave(max(SIDE // side, 1), 1).repeat_interleave(max(SIDE // side, 1), 2)
    size = [max(round(n * SIDE / side), 1) for n in rgb.shape[1:]]
    return F.interpolate(rgb[None], size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
