"""Model folders as users name them: the folder itself, the run folder around it, or the name of a model that ships."""

from pathlib import Path

MODELS = Path(__file__).parent / "models"
SHEET = "model.yaml"  # what makes a folder a model folder


def names() -> list[str]:
    """The models that are in the package."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{SHEET}"))


def folder(name: str | Path) -> Path:
    """The model folder that is meant, or the path as it is where there is none.

    A model on the user's disk comes before one that ships; a folder of pictures of the same name does not.
    """
    path = Path(name)
    if not (path / SHEET).is_file() and (path / "model" / SHEET).is_file():
        return path / "model"
    if not (path / SHEET).is_file() and str(path) in names():
        return MODELS / path
    return path


def told() -> str:
    """What an error offers to someone who has no model yet."""
    known = ", ".join(names())
    return (
        f"use one that ships ({known}), or train one with `sfumato train`"
        if known
        else "train one with `sfumato train`"
    )
