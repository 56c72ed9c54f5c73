"""`sfumato demo`: the whole road once."""

import time
from pathlib import Path
from typing import Annotated

import typer

DAYS = 100_000  # minutes


def command(
    minutes: Annotated[float, typer.Option(min=0.5, help="about how long, on this machine")] = 10.0,
    out: Annotated[Path, typer.Option("--out", "-o", help="the demo's folder")] = Path("runs/demo"),
    resume: Annotated[bool, typer.Option("--resume", help="go on with a demo that was stopped")] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="open the page in a browser as soon as it is there")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress lines")] = False,
) -> None:
    """Train, sample, measure and write the page."""
    begun = time.perf_counter()
    if not minutes < DAYS:
        raise ValueError(f"a demo takes minutes, less than {DAYS:,}; got {minutes:g}")
    from sfumato.demo.run import demo

    demo(minutes, out, resume=resume, open_page=open_page, device=device, quiet=quiet, begun=begun)
