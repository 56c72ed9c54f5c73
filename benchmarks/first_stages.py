"""First stages on photographs at equal budgets: the trade-off over f, channels, and what critic and perception pay.

    python benchmarks/first_stages.py --data flowers --perceptual squeezenet_perceptual.pt --features mobilenet_v2_features.pt

Trains what is not yet in `--out`, measures each on the held-out pictures, prints tables in markdown and draws the
trade-off. A budget is seconds of training, turned into a number of images by a short measurement, as in the demo.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from sfumato import device as devices
from sfumato import files
from sfumato.autoencoder.codec import Codec
from sfumato.data.folder import FolderData
from sfumato.evaluation import run
from sfumato.evaluation.generation import named
from sfumato.features import network as networks
from sfumato.features.network import Description
from sfumato.training import recipe
from sfumato.training.log import lines
from sfumato.training.rate import rate as measured_rate
from sfumato.training.run import reconstruction, train

# factor -> stem, multipliers, channels of KL and of VQ, as in table 8 of the paper (f = 2 with a stem of 2)
FACTORS: dict[int, tuple[int, list[int], int, int]] = {
    2: (2, [1], 2, 2),
    4: (4, [1], 3, 3),
    8: (4, [1, 2], 4, 4),
    16: (4, [1, 2, 2], 16, 8),
    32: (4, [1, 2, 2, 2], 64, 16),
}
CODES = 1024
START = 2000  # images after which the critic begins
PSNR = 4  # its column
BATCH = 16


def coder(factor: int, channels: int) -> dict[str, Any]:
    """The lean coder of `photo-f8`, at another factor."""
    fields: dict[str, Any] = dict(recipe.load_yaml("photo-f8")["autoencoder"]["coder"])
    stem, multipliers, _, _ = FACTORS[factor]
    return fields | {
        "factor": factor, "channels": channels, "stem": stem, "multipliers": multipliers, "width": 64,
    }  # fmt: skip


def variants(perceptual: Path | None, weights: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Name -> the parts of `photo-f8` that are another; the perceptual term with each of these weights."""
    made: dict[str, dict[str, Any]] = {}
    for factor, (_, _, kl, vq) in FACTORS.items():
        made[f"kl-f{factor}-c{kl}"] = {"autoencoder": {"kind": "kl", "bottleneck": False, "coder": coder(factor, kl)}}
        made[f"vq-f{factor}-c{vq}"] = {
            "autoencoder": {
                "kind": "vq", "bottleneck": False, "coder": coder(factor, vq), "codebook": {"size": CODES}
            }
        }  # fmt: skip
    for channels in (16, 32):
        made[f"kl-f8-c{channels}"] = {"autoencoder": {"kind": "kl", "bottleneck": False, "coder": coder(8, channels)}}
    plain = made["kl-f8-c4"]["autoencoder"]
    made["free-f8-c4"] = {"autoencoder": plain, "objective": {"l1": 1.0, "l2": 0.5, "kl": 0.0}}
    if perceptual is not None:
        looks = {"kind": "torchscript", "network": str(perceptual), "sha256": files.sha256(perceptual)}
        critic = {"weight": 0.1, "start": START, "ramp": 2000, "width": 32}
        made["l1-f8-c4"] = {"autoencoder": plain, "objective": {"l1": 1.0, "l2": 0.0, "kl": 1e-3}}
        for weight, (name, also) in product(weights, (("perceptual", {}), ("perceptual-critic", {"critic": critic}))):
            made[f"{name}{'' if weight == PERCEPTUAL else f'-{weight:g}'}-f8-c4"] = {
                "autoencoder": plain,
                "objective": {
                    "l1": 1.0, "l2": 0.0, "kl": 1e-3, "perceptual": looks, "perceptual_weight": weight, **also
                },
            }  # fmt: skip
    return made


PERCEPTUAL = 0.6  # at 0.3 the critic takes some of what the distance gains: 14 % instead of 17


def whole(name: str, fields: dict[str, Any], asked: argparse.Namespace, images: int) -> recipe.AutoencoderRecipe:
    """The whole recipe of a variant."""
    read = recipe.parse(
        {
            "stage": "autoencoder",
            "objective": {"l1": 1.0, "l2": 0.5, "kl": 1e-3},
            "data": {"kind": "folder", "path": str(asked.data), "size": asked.size},
            "training": {
                "images": images, "batch": BATCH, "rate": 1e-2, "ema": [0.05], "flip": 0.5, "preview": 1_000_000,
                "report": 400,
            },
        }
        | fields
    )  # fmt: skip
    assert isinstance(read, recipe.AutoencoderRecipe)
    return read


def settings(asked: argparse.Namespace) -> dict[str, Any]:
    """What all trainings in a folder hang on: the pictures, how large, for how long and where."""
    data = FolderData(path=asked.data, size=asked.size)
    return {
        "data": [data.open(part).fingerprint[:12] for part in ("train", "held_out")],
        "size": asked.size,
        "seconds": asked.seconds,
        "images": asked.images,
        "device": str(devices.pick(asked.device)),
    }


def budgets(chosen: dict[str, dict[str, Any]], asked: argparse.Namespace, of: dict[str, Any]) -> dict[str, Any]:
    """Name -> images that the budget pays for, and the images a second of which it was told. All are measured before the first training, and kept.

    What critic and perception pay is asked at equal numbers of images. Ends the program where the folder's are of others
    than these `settings`.
    """
    path = asked.out / "budgets.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"of": of, "budgets": {}}
    if other := [f"--{name}" for name, value in of.items() if kept.get("of", {}).get(name) != value]:
        raise SystemExit(
            f"{asked.out} was begun with other {', '.join(other)}, or by an earlier version; give the same, or another --out"
        )
    found: dict[str, Any] = kept["budgets"]
    for name, fields in chosen.items():
        if name.split("-")[0] in ("l1", "perceptual"):
            found[name] = {"images": asked.images}
        elif name not in found:
            read = whole(name, fields, asked, 1000)
            where = devices.pick(asked.device)
            speed = measured_rate(reconstruction(read, where), read.training, where)
            found[name] = {"images": round(asked.seconds * speed / BATCH) * BATCH, "rate": round(speed, 1)}
        files.write(path, json.dumps(kept, indent=1))
    return found


def one(
    name: str,
    fields: dict[str, Any],
    paid: dict[str, Any],
    asked: argparse.Namespace,
    look: run.Looking,
    of: dict[str, Any],
) -> dict[str, Any]:
    """Train and measure one variant, or read what was measured before with the same `settings` and networks."""
    folder = asked.out / name
    path = folder / "result.json"
    looks = {
        "features": look.network and look.network.told(),
        "perceptual": look.perceptual and dict(look.perceptual.told),
    }
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (kept.get("of"), kept.get("networks")) == (of, looks):
            return kept
    read = whole(name, fields, asked, paid["images"])
    model = train(read, folder / "run", quiet=True, resume=True, device=asked.device)
    # of all its sessions: the clock of this one knows nothing of those before
    rate = paid.get("rate") or read.training.images / sum(t["seconds"] for t in lines(folder / "run" / "times.jsonl"))
    found = run.evaluate_codec(Codec.load(model), read.data, look)
    parameters = sum(p.numel() for p in Codec.load(model).parameters())
    row = {
        "name": name, "of": of, "networks": looks, "images": read.training.images, "rate": rate, "parameters": parameters,
        **{k: found[k] for k in ("reconstruction", "features", "latents", "protocol") if k in found},
    }  # fmt: skip
    files.write(path, json.dumps(row, indent=1))
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the tables."""
    r = row["reconstruction"]
    seen = row["features"][0] if "features" in row else {}  # the second row is the ceiling
    near, kernel = (seen.get(measure(row, name)) for name in ("FID", "KID"))
    far = next((v for k, v in r.items() if "perceptual" in k and not k.endswith("±") and "error" not in k), None)
    codes = row["latents"].get("codes")
    return [
        row["name"], f"{row['parameters'] / 1e6:.2f} M", f"{row['images']:,}", f"{row['rate']:.0f}",
        f"{r['psnr']:.2f}", f"{r['ssim']:.3f}", f"{far:.3f}" if far is not None else "",
        f"{near:.0f}" if near is not None else "", f"{kernel:.3f}" if kernel is not None else "", f"{100 * codes['share']:.1f} %" if codes else "",
    ]  # fmt: skip


def measure(row: dict[str, Any], name: str) -> str:
    """What a row calls a measure: after the network that looked."""
    told = row["protocol"].get("features", {"name": "none"})
    return named(name, Description(name=told["name"], sha256=told.get("sha256")))


HEAD = ["", "parameters", "images", "images/s", "PSNR", "SSIM", "perceptual", "rFréchet", "kernel", "codes used"]


# PSNR of Rombach et al. (2022), table 8: large coders, 256 pixels, trained for weeks; of VQ the largest codebooks
PUBLISHED = {
    "kl": {2: 32.47, 4: 27.53, 8: 24.19, 16: 24.08, 32: 22.27},
    "vq": {2: 30.85, 4: 27.43, 8: 23.07, 16: 20.83, 32: 17.45},
}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """PSNR and the perceptual distance against f, KL and VQ, beside the published PSNR."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for place, (title, column) in enumerate((("PSNR (dB)", PSNR), ("perceptual distance", PSNR + 2)), 1):
        axes = figure.add_subplot(1, 2, place)
        for kind, style in (("kl", "o-"), ("vq", "s--")):
            points = [(f, cells(r)) for f in FACTORS for r in rows if r["name"].startswith(f"{kind}-f{f}-")]
            chosen = dict(reversed(points))  # the table's own channels come first
            values = [float(chosen[f][column] or "nan") for f in FACTORS if f in chosen]
            (line,) = axes.plot([f for f in FACTORS if f in chosen], values, style, label=kind.upper())
            if column == PSNR:
                known = PUBLISHED[kind]
                axes.plot(list(known), list(known.values()), style, color=line.get_color(), alpha=0.3, label=f"{kind.upper()}, paper")  # fmt: skip
        axes.set(xscale="log", xlabel="f", ylabel=title)
        axes.set_xticks(list(FACTORS), [str(f) for f in FACTORS])
        axes.minorticks_off()
        axes.legend()
    figure.savefig(path, dpi=110)


def curves(out: Path, path: Path) -> None:
    """Losses along the training of what critic and perception pay, the critic's start marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    shown = (("l1", "L1"), ("perceptual", "perceptual distance"), ("critic_loss", "the critic's loss"))
    for place, (name, title) in enumerate(shown, 1):
        axes = figure.add_subplot(1, 3, place)
        for name_of in ("l1-f8-c4", "perceptual-f8-c4", "perceptual-critic-f8-c4"):
            rows = [r for r in lines(out / name_of / "run" / "metrics.jsonl") if name in r]
            if rows:
                axes.plot([r["images"] for r in rows], [r[name] for r in rows], label=name_of.removesuffix("-f8-c4"))
        axes.axvline(START, color="gray", linestyle=":", linewidth=1)
        axes.set(xlabel="images", ylabel=title)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of photographs, with parts train and val")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=150.0, help="of training a model")
    parser.add_argument("--images", type=int, default=8000, help="where numbers of images are equal instead")
    parser.add_argument("--perceptual", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--weights", type=float, nargs="+", default=[PERCEPTUAL], help="of the perceptual term")
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--device", default="auto", help="of trainings, and of the pace that their budgets are told of")
    parser.add_argument("--out", type=Path, default=Path("runs/first-stages"))
    parser.add_argument("--plot", type=Path, help="write the picture of the trade-off here")
    parser.add_argument("--curves", type=Path, help="write the losses through the critic's start here")
    asked = parser.parse_args()
    look = run.Looking(
        networks.opened(asked.features) if asked.features else None,
        run.perceptual(asked.perceptual) if asked.perceptual else None,
        cache=asked.out / "features",
    )
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    rows = []
    chosen = {name: fields for name, fields in variants(asked.perceptual, asked.weights).items() if asked.only in name}
    of = settings(asked)
    paid = budgets(chosen, asked, of)
    for name, fields in chosen.items():
        rows.append(one(name, fields, paid[name], asked, look, of))
        print(f"| {' | '.join(cells(rows[-1]))} |", flush=True)
    if asked.curves:
        curves(asked.out, asked.curves)
    if asked.plot:
        plot(rows, asked.plot)


if __name__ == "__main__":
    main()
