"""`sfumato encode` takes the data of emoji, of a folder and of a recipe."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from sfumato import cli
from sfumato.training import recipe, run
from tests.conftest import diffusion_recipe


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(6):
        Image.effect_noise((48, 40), 20.0 + 10 * k).convert("RGB").save(folder / f"{k}.png")
    return folder


def encoded(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the command prints: stdout, or its sentence of refusal."""
    try:
        cli.main(["encode", *map(str, words)])
    except SystemExit:
        return capsys.readouterr().err
    return capsys.readouterr().out


def test_a_recipe_says_which_data_and_whether_they_are_mirrored(
    first_stage: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = diffusion_recipe(first_stage)
    data = {"kind": "folder", "path": str(pictures), "size": 32, "held_out": 0, "crops": 2}
    fields = recipe.dump(read) | {"data": data, "conditioners": {}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    out = tmp_path / "latents"
    told = encoded(capsys, first_stage, tmp_path / "mine.yaml", "--out", out)
    assert "12 pictures, moments 8x4x4, mirrored too" in told  # two squares of each, as the recipe says
    (name,) = (p.name for p in out.iterdir())
    # the cache that its training looks for
    whole = recipe.parse(fields)
    assert isinstance(whole, recipe.DiffusionRecipe)
    run.denoising(whole, tmp_path / "run", run.devices.pick("cpu"))
    assert [p.name for p in out.iterdir()] == [name]
    words = ["data.crops=1", "--no-flip", "--size", 16, "--out", tmp_path / "other"]
    assert "6 pictures, moments 8x2x2, in" in encoded(capsys, first_stage, tmp_path / "mine.yaml", *words)


def test_folders_and_shipped_names_are_taken_and_others_refused(
    first_stage: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", tmp_path / "latents"]
    assert re.match(r"5 pictures, moments 8x4x4, in", encoded(capsys, first_stage, pictures, "--size", 32, *out))
    words = [f"data.path={pictures}", "data.size=32", "data.held_out=0", *out]
    assert "6 pictures, moments 8x4x4, mirrored too" in encoded(capsys, first_stage, "photo", *words)
    words = ["--size", 16, "--part", "combinations", *out]
    assert "152 pictures, moments 8x2x2, in" in encoded(capsys, first_stage, "emoji", *words)
    assert "no folder and no recipe 'nowhere'" in encoded(capsys, first_stage, "nowhere", *out)
    assert "key=value changes a recipe" in encoded(capsys, first_stage, pictures, "data.size=32", *out)
    assert "takes 3-channel" in encoded(capsys, first_stage, "photo", "data.channels=1", *words[:2], *out)
