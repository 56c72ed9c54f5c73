"""Sfumato: train, use and measure latent diffusion models (Rombach et al., 2022, arXiv 2112.10752).

`sfumato.load(folder)` gives a pipeline with a method a task. Importing this package imports nothing heavy;
torch comes with the first use.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.tasks.pipeline import Pipeline

try:
    __version__ = version("sfumato")
except PackageNotFoundError:  # run from a checkout that is on the path but not installed
    __version__ = "0+unknown"

__all__ = ["__version__", "load"]


def load(folder: str | Path, **options: Any) -> "Pipeline":
    """Open a model folder as a `Pipeline`; options are those of `Pipeline.load` (device, precision, trust)."""
    from sfumato.tasks.pipeline import Pipeline

    return Pipeline.load(folder, **options)
