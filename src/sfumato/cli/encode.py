"""`sfumato encode AUTOENCODER DATA`: the latent cache."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    autoencoder: Annotated[Path, typer.Argument(help="a first stage's model folder, or the run folder around it")],
    data: Annotated[str, typer.Argument(help="`emoji`, or a folder of pictures")] = "emoji",
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the caches")] = Path("runs/latents"),
    size: Annotated[int, typer.Option(help="pixels a side")] = 64,
    part: Annotated[str, typer.Option(help="the part of the data set")] = "train",
    flip: Annotated[bool, typer.Option("--flip", help="mirrored pictures too")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
) -> None:
    """Encode every picture once; nothing is done where the cache is there already."""
    import torch

    from sfumato import device as devices
    from sfumato.autoencoder.codec import Codec
    from sfumato.data.base import Data
    from sfumato.training.run import cached

    where = devices.pick(device)
    folder = autoencoder / "model" if (autoencoder / "model" / "model.yaml").is_file() else autoencoder
    codec = Codec.load(folder).to(where)
    fields = {"kind": "emoji", "size": size}
    if data != "emoji":
        fields = {"kind": "folder", "path": data, "size": size, "channels": codec.image_channels}
    codec.autoencoder.check(torch.empty(1, codec.image_channels, size, size))  # before pictures are read or drawn
    latents = cached(codec, Data.model_validate(fields).open(part), out, flip)
    print(
        f"{len(latents)} pictures, moments {'x'.join(map(str, latents.shape))}{', mirrored too' if flip else ''}, in {out}"
    )
