"""Feature networks as files: TorchScript, opened only after its SHA-256 was compared."""

import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from sfumato import files


def scripted(path: Path) -> bool:
    """Whether a file is TorchScript, told by what it holds and not by its name."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as parts:
            return any("/code/" in name for name in parts.namelist())
    except zipfile.BadZipFile:
        return False


def script(path: Path, sha256: str | None) -> nn.Module:
    """The TorchScript network in a file, on the CPU, frozen, in evaluation mode.

    Raises `ValueError` where the file is missing, is not TorchScript, or its SHA-256 is not the expected one (None
    expects none).
    """
    if not path.is_file():
        raise ValueError(f"there is no feature network {path}; give the path of a TorchScript file")
    found = files.sha256(path)
    if sha256 is not None and found != sha256.lower():
        raise ValueError(f"{path} has SHA-256 {found}, expected was {sha256}; get the file again, or mend the number")
    with warnings.catch_warnings():  # published feature networks are TorchScript, whatever torch recommends today
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            network: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ValueError(f"{path} is not TorchScript ({str(error).splitlines()[0]}); export the network") from None
    for weight in network.parameters():
        weight.requires_grad_(False)
    return network.eval()
