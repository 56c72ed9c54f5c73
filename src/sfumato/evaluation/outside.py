"""A folder of pictures that a run has never seen, beside the data that it learned from."""

from pathlib import Path
from typing import Any

from sfumato.data.base import Data, Part
from sfumato.data.folder import FolderData
from sfumato.data.layout import aside, unwrapped
from sfumato.data.renumbered import renumbered


class Outside(Data):
    """All pictures under `path` are held out (of a folder with parts, those apart from `train`); the rest is the run's."""

    path: Path
    trained: Data
    channels: int = 3
    labels: tuple[str, ...] = ()  # the model's classes, by whose names and numbers the folder's are told

    def read(self, part: str) -> Part:
        if part == "train":
            return renumbered(self.trained.read(part), self.labels)
        parts = self.path.is_dir() and aside(unwrapped(self.path))
        folder = FolderData(path=self.path, size=self.size, channels=self.channels, held_out=0)
        return renumbered(folder.read("held_out" if parts else "train"), self.labels)


class Named(Data):
    """Data with the classes of a model, where the two have others of the same names."""

    data: Data
    labels: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        return self.data.parts

    def read(self, part: str) -> Part:
        return renumbered(self.data.read(part), self.labels)


def stands(recipe: dict[str, Any] | None) -> bool:
    """Whether the data that a run's recipe names are there still."""
    return recipe is not None and (recipe.get("kind") != "folder" or Path(str(recipe.get("path"))).is_dir())
