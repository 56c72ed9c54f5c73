"""A feature network with all that its numbers depend on: the file, its SHA-256, how pictures are made ready for it.

The same pictures give other Fréchet distances after another resize, so a network is never used bare: its `Description`
says the size, the filter (always antialiased), the range of values and what the outputs are. It stands in a YAML file
beside the network (`inception.pt` and `inception.yaml`), or is known by the file's SHA-256, or is the default: values
in [-1, 1], 224 pixels, bicubic, one pooled output. `told()` is what protocols keep.

The published Inception network (`inception.py`) is known by its SHA-256 as well. Only it gives numbers that are called
FID, sFID, KID and Inception score, whatever another is named; a file of its name is called as it is, no more.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
import yaml
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import files, image
from sfumato.config import Config, explain
from sfumato.features import inception
from sfumato.features.files import script

Output = Literal["pooled", "spatial", "logits"]
SPATIAL = 7  # channels of the spatial map that sFID looks at (Nash et al., 2021)


class Description(Config):
    """What a network wants and gives; `outputs` name what it returns, in order."""

    name: str = Field(min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    size: int | None = Field(224, ge=1)  # pixels a side; None: pictures stay as they are
    resize: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of values in [0, 1], taken away
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # what is left is divided by
    bytes: bool = False  # takes uint8 instead; mean and std do not count
    outputs: tuple[Output, ...] = Field(("pooled",), min_length=1)
    call: dict[str, bool] = {}  # keywords of the network's forward
    resizes: str | None = None  # what the network itself does to sizes

    @property
    def published(self) -> bool:
        """Whether its numbers are FID and the like: whether the file is the published one."""
        return self.sha256 == inception.SHA256


KNOWN = {
    inception.SHA256: Description(
        name="Inception",
        size=None,
        bytes=True,
        call={"return_features": True},
        resizes=f"by the network itself to {inception.SIDE} x {inception.SIDE}, bilinear, not antialiased",
    ),
    "77e6cb610ae4bf9434f65a83d8861421ca06a24d016aee3d46c6b8058ced1a08": Description(name="MobileNetV2"),
}

NAMED = {  # of the published file's name, but another file
    "inception-2015-12-05": Description(
        name="inception-2015-12-05",
        size=None,
        bytes=True,
        call={"return_features": True},
        resizes="by the network itself",
    ),
}


class FeatureNetwork(nn.Module):
    """Pictures -> {output: rows (B, N) float32}. Frozen, always in evaluation mode."""

    def __init__(self, network: nn.Module, description: Description, path: Path | None = None) -> None:
        super().__init__()
        self.network, self.description, self.path = network.eval(), description, path
        for weight in network.parameters():
            weight.requires_grad_(False)
        self.register_buffer("place", torch.zeros(0))  # says the device: scripted networks may have no parameter

    def __reduce__(self) -> Any:
        # other processes open the file themselves: scripted networks cannot be sent
        return super().__reduce_ex__(2) if self.path is None else (opened, (self.path, self.description.sha256))

    def train(self, mode: bool = True) -> Self:
        """Nothing changes: dropout inside would make the numbers random."""
        return super().train(False)

    def told(self) -> dict[str, Any]:
        """What a protocol keeps of the network."""
        d = self.description
        ready = f"{d.resize}, antialiased, to {d.size} x {d.size}" if d.size else "none"
        values = "uint8" if d.bytes else f"(x - {list(d.mean)}) / {list(d.std)} of x in [0, 1]"
        return {
            "name": d.name,
            "sha256": d.sha256,
            "resize": d.resizes if d.resizes and not d.size else ", then ".join(r for r in (ready, d.resizes) if r),
            "values": values,
            "outputs": list(d.outputs),
            **({"call": dict(d.call)} if d.call else {}),
        }

    @torch.no_grad()
    def forward(self, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        """Pictures (C, H, W) in [-1, 1], of any sizes where the description has one -> rows (B, N) an output, on the CPU.

        Raises `ValueError` where a picture has other than 1, 3 or 4 channels, or the network gives something else than
        it was described by.
        """
        ready = [self.prepared(p) for p in pictures]
        if len({p.shape for p in ready}) == 1:
            return self._seen(torch.stack(ready))
        alone = [self._seen(p[None]) for p in ready]  # where the network resizes, pictures of several sizes may come
        return {name: torch.cat([rows[name] for rows in alone]) for name in alone[0]}

    def _seen(self, ready: Tensor) -> dict[str, Tensor]:
        try:
            with torch.autocast(ready.device.type, enabled=False):  # the same, whoever asks: rows are kept
                given = self.network(ready, **self.description.call)
        except RuntimeError as error:
            raise unfit(self.description.name, ready, error) from None
        given = tuple(given) if isinstance(given, tuple | list) else (given,)
        names = self.description.outputs
        if len(given) < len(names) or any(not isinstance(g, Tensor) or g.ndim not in (2, 4) for g in given):
            raise ValueError(
                f"{self.description.name} gives {len(given)} outputs, described are {', '.join(names)}; "
                "each must be a tensor (B, N) or (B, C, h, w)"
            )
        return {name: _row(name, rows).float().cpu() for name, rows in zip(names, given, strict=False)}

    def prepared(self, picture: Tensor) -> Tensor:
        """(C, H, W) in [-1, 1] -> (3, size, size) in the network's values; rounded to 8 bits first, as files are."""
        whole = image.to_uint8(picture.to(self.place.device)).float()  # type: ignore[arg-type]
        x, d = colour(whole), self.description
        if d.size is not None and x.shape[1:] != (d.size, d.size):
            side = (d.size, d.size)
            x = F.interpolate(x[None], size=side, mode=d.resize, antialias=True, align_corners=False)[0].clamp(0, 255)
        if d.bytes:
            return x.round().to(torch.uint8)
        mean, std = (torch.tensor(v, device=x.device).reshape(3, 1, 1) for v in (d.mean, d.std))
        return (x / 255.0 - mean) / std


def unfit(name: str, given: Tensor, error: RuntimeError) -> Exception:
    """What to say of a network that does not take its pictures; an error of memory is that."""
    told = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in told or "DefaultCPUAllocator" in told:
        return error
    reason = next((line for line in reversed(told.splitlines()) if line.strip()), type(error).__name__)
    high, wide = given.shape[-2:]
    return ValueError(
        f"{name} does not take {str(given.dtype).removeprefix('torch.')} pictures of {wide}x{high} ({reason.strip()}); mend what "
        "stands in its YAML file, or give another network"
    )


def colour(picture: Tensor) -> Tensor:
    """(1, 3 or 4, H, W) in [0, 255] -> (3, H, W): gray thrice, transparency over white."""
    channels = picture.shape[0]
    if channels == 1:
        return picture.expand(3, -1, -1)
    if channels == 4:
        alpha = picture[3:] / 255.0
        return picture[:3] * alpha + 255.0 * (1 - alpha)
    if channels != 3:
        raise ValueError(f"feature networks look at pictures of 1, 3 or 4 channels; these have {channels}")
    return picture


def _row(name: str, rows: Tensor) -> Tensor:
    if rows.ndim == 2:
        return rows
    return rows[:, :SPATIAL].flatten(1) if name == "spatial" else rows.mean((2, 3))


def opened(path: Path, sha256: str | None = None) -> FeatureNetwork:
    """The feature network of a file, or of a folder that `transformers` wrote. Raises `ValueError` with the remedy."""
    if path.is_dir():
        from sfumato.features import vision

        network, described = vision.opened(path, sha256)
        return FeatureNetwork(network, described, path)
    if not path.is_file():
        raise ValueError(f"there is no feature network {path}; give a TorchScript file or a folder of transformers")
    found = files.sha256(path)
    described = description(path, found)
    if described.sha256 is None:
        described = described.model_copy(update={"sha256": sha256 or found})
    network = script(path, sha256 or described.sha256)
    if described.published and (all_of_it := inception.whole(network)) is not None:
        network, described = all_of_it, described.model_copy(update={"outputs": ("pooled", "spatial", "logits")})
    return FeatureNetwork(network, described, path)


def description(path: Path, sha256: str) -> Description:
    """What the YAML beside a file says, else what is known of its hash, else the default with the file's name."""
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return KNOWN.get(sha256) or NAMED.get(path.stem) or Description(name=path.stem)
    try:
        found = Description.model_validate(yaml.safe_load(beside.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{beside} is not YAML ({str(error).splitlines()[0]}); mend it or remove it") from None
    except ValidationError as error:
        raise ValueError(explain(error, str(beside))) from None
    known = KNOWN.get(sha256)
    named_as = {"name": known.name, "sha256": known.sha256} if known is not None else {}
    if sha256 == inception.SHA256 and found.model_copy(update=named_as) != known:
        raise ValueError(
            f"{beside} says otherwise what the published Inception wants, whose numbers bear known names; remove it"
        )
    return found
