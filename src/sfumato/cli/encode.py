"""`sfumato encode AUTOENCODER DATA`: the latent cache."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sfumato.data.base import Data


def command(
    autoencoder: Annotated[Path, typer.Argument(help="a first stage's model folder, or the run folder around it")],
    data: Annotated[
        str, typer.Argument(help="`emoji`, a folder of pictures, or the recipe (file or shipped name) to train")
    ] = "emoji",
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the recipe")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the caches")] = Path("runs/latents"),
    size: Annotated[int | None, typer.Option(help="pixels a side; by default the recipe's, or 64")] = None,
    part: Annotated[str, typer.Option(help="the part of the data set")] = "train",
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="mirrored pictures too; by default as the recipe trains")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
) -> None:
    """Encode every picture once; nothing is done where the cache is there already."""
    import torch

    from sfumato import device as devices
    from sfumato import shipped
    from sfumato.autoencoder.codec import Codec
    from sfumato.training.given import cached
    from sfumato.training.latents import Shaped

    where = devices.pick(device)
    codec = Codec.load(shipped.folder(autoencoder)).to(where)
    meant, mirrored = _meant(data, changes or [], size, codec.image_channels)
    mirrored = mirrored if flip is None else flip
    channels = getattr(meant, "channels", codec.image_channels)
    codec.autoencoder.check(torch.empty(1, channels, meant.size, meant.size))  # before pictures are read or drawn
    latents = cached(codec, meant.open(part), out, mirrored)
    shapes = [cache.shape for cache in (latents.caches if isinstance(latents, Shaped) else [latents])]
    told = ", ".join("x".join(map(str, shape)) for shape in shapes)
    print(f"{len(latents)} pictures, moments {told}{', mirrored too' if mirrored else ''}, in {out}")


def _meant(source: str, changes: list[str], size: int | None, channels: int) -> "tuple[Data, bool]":
    """The data that the words name, and whether the recipe mirrors them. Raises `ValueError` where they name none."""
    from sfumato.data.base import Data
    from sfumato.training import recipe

    if source != "emoji" and Path(source).is_dir():
        if changes:
            raise ValueError(f"{source} is a folder of pictures, and key=value changes a recipe; give a recipe instead")
        fields = {"kind": "folder", "path": source, "size": 64 if size is None else size, "channels": channels}
        return Data.model_validate(fields), False
    if source not in recipe.shipped() and not Path(source).is_file():
        known = ", ".join(recipe.shipped())
        raise ValueError(
            f"there is no folder and no recipe {source!r}: give a folder of pictures, a YAML file or one of {known}"
        )
    read = recipe.read(source, changes if size is None else [*changes, f"data.size={size}"])
    return read.data, read.training.flip > 0
