"""`sfumato evaluate MODEL`: numbers with their protocol."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.diffusion.names import DEFAULT, DEFAULT_GRID


def command(
    model: Annotated[Path, typer.Argument(help="a model folder, or the run folder around it; a first stage works too")],
    data: Annotated[
        str | None, typer.Option(help="`emoji` or a folder; by default the data of the run's recipe")
    ] = None,
    size: Annotated[int, typer.Option(help="pixels a side, with --data")] = 64,
    captions: Annotated[int, typer.Option(min=1, help="captions a part in the caption match")] = 512,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="denoising steps")] = 25,
    guidance: Annotated[float, typer.Option(min=0, help="guidance scale")] = 3.0,
    sampler: Annotated[str, typer.Option(help="the sampler's name")] = DEFAULT,
    grid: Annotated[str, typer.Option(help="where the steps lie")] = DEFAULT_GRID,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write the JSON here too")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto")] = "fp32",
) -> None:
    """Measure and print JSON."""
    import json

    import yaml

    from sfumato import device as devices
    from sfumato import files
    from sfumato.autoencoder.codec import Codec
    from sfumato.data.base import Data
    from sfumato.evaluation import run
    from sfumato.model import LatentDiffusion

    folder = model / "model" if (model / "model" / "model.yaml").is_file() else model
    fields: Any = run.read_data(folder)
    if data is not None:
        fields = {"kind": "emoji", "size": size} if data == "emoji" else {"kind": "folder", "path": data, "size": size}
    if fields is None:
        raise ValueError(f"there is no recipe beside {folder} that names its data; say which with --data")
    opened, where = Data.model_validate(fields), devices.pick(device)
    text = (folder / "model.yaml").read_text(encoding="utf-8") if (folder / "model.yaml").is_file() else "{}"
    if (yaml.safe_load(text) or {}).get("stage") == "autoencoder":
        found = run.evaluate_codec(Codec.load(folder).to(where), opened)
    else:
        found = run.evaluate_model(
            LatentDiffusion.load(folder, where),
            opened,
            captions=captions,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            grid=grid,
            dtype=devices.precision(precision, where),
            tell=lambda text: typer.echo(text, err=True),
        )
    result = json.dumps(found, indent=1)
    if out is not None:
        files.write(out, result)
    print(result)
