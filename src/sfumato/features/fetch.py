"""Published networks by name: where they are, what they must be, whose terms hold. Nothing else in the package downloads."""

import hashlib
import http.client
import shlex
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sfumato import files
from sfumato.features import inception

CHUNK = 1 << 20
PATIENCE = 60  # seconds without a byte


class Published(NamedTuple):
    """A file that others publish."""

    url: str
    sha256: str
    licence: str
    use: str  # where its path is wanted

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rpartition("/")[2]


TABLE = {
    "inception": Published(
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        inception.SHA256,
        "Google's weights (Apache-2.0), converted by NVIDIA: see the terms of stylegan2-ada-pytorch",
        "sfumato evaluate --features: FID, sFID, KID, Inception score",
    ),
    "squeezenet": Published(
        "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
        "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        "PyTorch's weights of SqueezeNet 1.1 (BSD-3-Clause)",
        "LPIPS, the lightest (5 MB): a recipe's perceptual.network, sfumato evaluate --perceptual",
    ),
    "alexnet": Published(
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        "PyTorch's weights of AlexNet (BSD-3-Clause)",
        "LPIPS, as papers measure most (244 MB): a recipe's perceptual.network, sfumato evaluate --perceptual",
    ),
    "vgg16": Published(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        "PyTorch's weights of VGG16 (BSD-3-Clause)",
        "LPIPS, as first stages are trained with (553 MB): a recipe's perceptual.network, sfumato evaluate --perceptual",
    ),
}


def remedy(path: Path) -> str:
    """The beginning of what to do where this file is missing: which command gets it, or nothing where it is none of these."""
    name = next((name for name, row in TABLE.items() if row.file == path.name), None)
    out = "" if path.parent == Path("weights") else f" --out {shlex.quote(str(path.parent))}"
    return f"`sfumato fetch {name}{out}` gets it, or " if name else ""


def fetch(name: str, folder: Path, tell: Callable[[str], None]) -> Path:
    """Download a published file into a folder, unless it is there; it stands there whole and as expected, or not at all.

    Raises `ValueError` for an unknown name, for another file at its place, and where what comes is not the expected file;
    `OSError` where nothing comes.
    """
    if name not in TABLE:
        raise ValueError(f"there is no published file {name!r}; known: {', '.join(TABLE)}")
    row = TABLE[name]
    path = folder / row.file
    tell(f"{name}: {row.use}. {row.licence}. SHA-256 {row.sha256}")
    if path.is_file():
        if files.sha256(path) != row.sha256:
            raise ValueError(f"{path} is there and is another file; move it away and fetch again")
        tell(f"{path} is there already")
        return path
    tell(f"downloading {row.url} to {path}")
    files.write(path, lambda part: _download(row, part))
    return path


def _download(row: Published, path: Path) -> None:
    try:
        with urllib.request.urlopen(row.url, timeout=PATIENCE) as found, path.open("wb") as file:
            shutil.copyfileobj(found, file, CHUNK)
            told, whole = found.headers.get("Content-Length"), file.tell()
    except urllib.error.URLError as error:
        raise ValueError(
            f"{row.url} does not answer ({error.reason}); fetch it by other means: it is only a file"
        ) from None
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise ValueError(
            f"{row.url} broke off ({error or type(error).__name__}); nothing was kept: try again"
        ) from None
    if told is not None and told.isdecimal() and whole < int(told):
        raise ValueError(f"{row.url} broke off after {whole:,} of {int(told):,} bytes; nothing was kept: try again")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != row.sha256:
        raise ValueError(f"{row.url} gave a file of SHA-256 {digest}, expected was {row.sha256}; nothing was kept")
