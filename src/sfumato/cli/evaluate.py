"""`sfumato evaluate WHAT`: numbers with their protocol."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[
        Path,
        typer.Argument(help="a model folder, the run folder around it, `emoji`, a first stage, or a folder of images"),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="`emoji` or a folder, which is measured whole; by default what the run's recipe holds out"),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=0, help="pixels a side of --data, --reference and images (the model's; 0, or no model: as they are)"
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="feature network: TorchScript, Inception's weights, a DINOv2 or CLIP folder")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="`emoji` or a folder of real images; by default the training part")
    ] = None,
    one_each: Annotated[
        bool,
        typer.Option(
            "--one-each", help="of an emoji in all tones, or several crops of a picture, count one, as training does"
        ),
    ] = False,
    perceptual: Annotated[
        Path | None,
        typer.Option(
            help="network of a perceptual distance: TorchScript, or for LPIPS weights of VGG16, AlexNet or SqueezeNet"
        ),
    ] = None,
    perceptual_heads: Annotated[
        Path | None, typer.Option(help="the calibrated heads of LPIPS, other than those that are installed")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="CLIP folder, for the CLIP score of captioned images")] = None,
    sha256: Annotated[str | None, typer.Option(help="the SHA-256 that --features must have")] = None,
    perceptual_sha256: Annotated[str | None, typer.Option(help="the SHA-256 that --perceptual must have")] = None,
    heads_sha256: Annotated[str | None, typer.Option(help="the SHA-256 that --perceptual-heads must have")] = None,
    images: Annotated[
        int | None, typer.Option(min=4, help="images to generate for --features and --clip; 1000 by default")
    ] = None,
    captions: Annotated[
        int | None, typer.Option(min=1, help="captions a part in the caption match; 512 by default")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="denoising steps; this and the next three by default as in generate"),
    ] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance scale")] = None,
    sampler: Annotated[str | None, typer.Option(help="the sampler's name")] = None,
    grid: Annotated[str | None, typer.Option(help="where the steps lie")] = None,
    against: Annotated[
        Path | None, typer.Option(help="an earlier result (--out): refused unless measured alike")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="write an HTML page with the pictures behind the numbers")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write the JSON here too")] = None,
    cache: Annotated[Path, typer.Option(help="folder of features that were computed before")] = Path("runs/features"),
    workers: Annotated[int, typer.Option(min=1, help="processes that compute features")] = 1,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
    precision: Annotated[str | None, typer.Option(help="of sampling: fp32, the default, bf16 or auto")] = None,
) -> None:
    """Measure and print JSON."""
    import json

    from sfumato import device as devices
    from sfumato import distributed, files
    from sfumato.evaluation import doors, protocol
    from sfumato.evaluation.report import text

    for path in (out, report):
        if path is not None and path.is_dir():
            raise ValueError(f"{path} is a folder; give --out and --report the name of a file")
    earlier = protocol.read(against) if against is not None else None
    where = devices.pick(device)
    asked = doors.Asked(
        model,
        data,
        size,
        reference,
        images,
        captions,
        steps,
        guidance,
        sampler,
        grid,
        None if precision is None else devices.precision(precision, where),
        one_each,
    )
    look = doors.looking(
        features, sha256, perceptual, clip, cache, workers, where, perceptual_sha256, perceptual_heads, heads_sha256
    )
    speaks = distributed.chief()
    found, show = doors.evaluate(asked, look, where, lambda said: typer.echo(said, err=True) if speaks else None)
    if not speaks:
        return
    typer.echo(text(found), err=True)
    print(
        json.dumps(
            {k: v for k, v in found.items() if k not in ("pictures", "caption_ranks")}, indent=1, ensure_ascii=False
        )
    )
    if earlier is not None and against is not None:
        for place, (now, then) in protocol.compared(found, earlier, (str(model), str(against))).items():
            typer.echo(f"{place}: {now:.5g}, was {then:.5g}", err=True)
    if out is not None:  # after what was measured is told, for a disk may be full
        files.write(out, json.dumps(found, indent=1, ensure_ascii=False))
    if report is not None:
        typer.echo(f"The page is there: {show(report)}", err=True)
