"""`sfumato study NAME`: a claim of the paper, trained and measured here."""

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sfumato.studies.names import HOURS, TOLD

MOST = 3  # trainings that are not asked for
YEARS = 100_000  # hours
USUAL = ", ".join(f"{hours:g} for {name}" for name, hours in HOURS.items())
NAMES = "; ".join(f"{name}: {text}" for name, text in TOLD.items())


def command(
    name: Annotated[str, typer.Argument(help=NAMES)],
    features: Annotated[
        Path, typer.Option(help="feature network of the distances: TorchScript, or `sfumato fetch inception`")
    ],
    data: Annotated[
        str, typer.Option(help="`emoji` or a folder of pictures, in class folders where there are classes")
    ] = "emoji",
    size: Annotated[int, typer.Option(min=16, help="pixels a side")] = 32,
    hours: Annotated[
        float | None, typer.Option(min=0.0, help=f"of training and sampling on this machine; by default {USUAL}")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="folder of studies; one folder within for each data set and size")
    ] = Path("runs/studies"),
    images: Annotated[int, typer.Option(min=8, help="images that are generated for each sampling seed")] = 512,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="denoising steps")] = 25,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="sampling seeds; spreads are over them, and one alone decides nothing")
    ] = 3,
    trainings: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10,
            help="how often all is trained, within the hours; by default as often as these are the default",
        ),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(min=0.5, max=16.0, help="by which all networks are wider than on two cores: 0.5, 1, 1.5, ..."),
    ] = 1.0,
    equal: Annotated[
        str | None,
        typer.Option(help="of `compression`: what denoisers of all factors get alike, time (the default) or flops"),
    ] = None,
    kinds: Annotated[
        str | None, typer.Option(help="of `compression`: which first stages, kl, vq or kl,vq (the default)")
    ] = None,
    watts: Annotated[
        float | None, typer.Option(help="of `cost`: stated power of this machine, where nothing measures it")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
    precision: Annotated[str, typer.Option(help="of trainings: auto, the faster; fp32; bf16")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress lines")] = False,
) -> None:
    """Train what is not there yet, measure, and write the page."""
    if name not in HOURS:
        raise ValueError(f"there is no study {name!r}; known: {', '.join(HOURS)}")
    if not features.is_file() and not features.is_dir():
        raise ValueError(
            f"there is no feature network {features}; `sfumato fetch inception` downloads the published one"
        )
    if hours is not None and not 0 < hours < YEARS:
        raise ValueError(f"a study takes some hours, less than {YEARS:,}; got {hours:g}")
    if scale % 0.5:
        raise ValueError(f"--scale is a multiple of 0.5, so that all networks grow alike; got {scale:g}")
    if watts is not None and name != "cost":
        raise ValueError("watts are of the study cost; leave --watts out")
    if watts is not None and not 0 < watts < math.inf:
        raise ValueError(f"watts are what this machine draws, above 0; got {watts:g}")
    if equal is not None and (name != "compression" or equal not in ("time", "flops")):
        raise ValueError(f"--equal is time or flops, and of the study compression; got {equal} of {name}")
    several = tuple(kinds.split(",")) if kinds is not None else None
    if several is not None and (name != "compression" or several not in (("kl",), ("vq",), ("kl", "vq"))):
        raise ValueError(f"--kinds is kl, vq or kl,vq, and of the study compression; got {kinds} of {name}")
    from sfumato import device as devices
    from sfumato.features import network
    from sfumato.studies.desk import SEEDS, Desk
    from sfumato.studies.run import before, study

    where = devices.pick(device)
    devices.precision(precision, where)  # whether there is such a one
    wanted = {"kind": "emoji", "size": size} if data == "emoji" else {"kind": "folder", "path": data, "size": size}
    title = f"{Path(data).resolve().name if data != 'emoji' else data}-{size}"
    kept = before(out / title / name)  # with other hours by default, in an earlier version
    hours = hours or float(kept.get("--hours", HOURS[name]))
    desk = Desk(
        out / title / name, wanted, network.opened(features).to(where), where, hours, images, steps,
        [k * (SEEDS[1] - SEEDS[0]) for k in range(seeds)], scale=scale, precision=precision, features=out / title / "features", quiet=quiet,
    )  # fmt: skip
    said = shlex.join(["sfumato", "study", *sys.argv[2:]]) if sys.argv[1:2] == ["study"] else f"sfumato study {name}"
    more = {key: value for key, value in (("watts", watts), ("equal", equal), ("kinds", several)) if value}
    usual = max(min(int(hours / HOURS[name]), MOST), 1)
    often = trainings or (int(kept.get("--trainings", usual)) if kept.get("--hours") == hours else usual)
    found, page = study(name, desk, said, trainings=often, **more)
    for claim in found.claims:
        print(f"{claim.outcome:<20} {claim.text}: {claim.measured}")
    typer.echo(f"The page is there: {page}", err=True)
