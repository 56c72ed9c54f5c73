"""Sfumato: train, use and measure latent diffusion models (Rombach et al., 2022, arXiv 2112.10752).

`sfumato.load(folder)` gives a pipeline with a method a task. Importing this package imports nothing heavy;
torch comes with the first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato.tasks.pipeline import Pipeline

    __version__: str

__all__ = ["__version__", "load"]


def load(folder: "str | Path", **options: Any) -> "Pipeline":
    """Open a model folder as a `Pipeline`; options are those of `Pipeline.load` (device, precision, trust)."""
    from sfumato.tasks.pipeline import Pipeline

    return Pipeline.load(folder, **options)


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for: the library that knows it takes longer to load than all else."""
    if name != "__version__":
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sfumato")
    except PackageNotFoundError:  # run from a checkout that is on the path but not installed
        return "0+unknown"
