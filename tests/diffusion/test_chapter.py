"""The chapter's code runs as it stands, and it speaks of every name there is."""

import re
from pathlib import Path

import pytest

from sfumato.diffusion import names
from sfumato.diffusion.loss import DENSITIES, WEIGHTINGS
from sfumato.diffusion.prediction import PREDICTIONS
from sfumato.diffusion.schedule import KINDS

DOCS = Path(__file__).parents[2] / "docs"
CHAPTER = (DOCS / "diffusion.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", CHAPTER, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_run(block: str) -> None:
    exec(compile(block, "diffusion.md", "exec"), {})


@pytest.mark.parametrize("name", [*names.SAMPLERS, *names.GRIDS, *KINDS, *PREDICTIONS, *WEIGHTINGS, *DENSITIES])
def test_every_name_is_in_the_chapter(name: str) -> None:
    """In backticks, alone or as a kind: words like even, noise and simple are all over the text."""
    assert re.search(rf"`{name}`|`\{{kind: {name}\}}`", CHAPTER)


@pytest.mark.parametrize("name", re.findall(r"\]\((\w+\.png)\)", CHAPTER))
def test_pictures_are_there(name: str) -> None:
    assert (DOCS / name).is_file()
