"""The tasks' verbs on a model that takes every condition: what each option does, and what is told of what was handed in."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.cli.handed import each
from sfumato.cli.made import claimed, first_free, numbered
from sfumato.tasks import metadata
from tests.cli.test_cli import call
from tests.tasks.test_tasks import CONDITIONERS, built, far, noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("everything") / "model"
    built(CONDITIONERS).model.save(path)
    return path


class Verbs:
    """Calls a verb and gives the picture that it wrote."""

    def __init__(self, folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.out, self.capsys, self.err = folder, out, capsys, ""

    def __call__(self, verb: str, *words: Any) -> Image.Image:
        settled = ["--seed", 0, "--steps", 2, "--out", self.out]
        code, _, self.err = call(verb, self.folder, *words, *settled, capsys=self.capsys)
        assert code == 0, self.err
        path = max(self.out.iterdir())
        assert metadata.read(path)["task"] == verb
        with Image.open(path) as opened:
            return opened.copy()


def sized(path: Path) -> tuple[int, int]:
    with Image.open(path) as opened:
        return opened.size


@pytest.fixture
def made(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verbs:
    return Verbs(folder, tmp_path / "out", capsys)


def test_upscale_by_windows_and_with_a_level(made: Verbs, tmp_path: Path) -> None:
    noise(20, 9).save(tmp_path / "small.png")
    plain, level = (
        made("upscale", "-i", tmp_path / "small.png", "--no-consistent", *more) for more in ((), ("--level", 0.4))
    )
    assert plain.size == (80, 36)
    assert far(plain, level) > 0
    assert far(made("upscale", "-i", tmp_path / "small.png"), plain) > 0  # consistent by default


def test_boxes_one_by_one_and_from_a_file(made: Verbs, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(
        '[{"label": "cat", "box": [0, 0, 0.5, 1]}, {"label": "red apple", "box": [0.5, 0, 1, 1]}]'
    )
    both = made("layout", "--box", "cat 0 0 0.5 1", "-b", "red apple 0.5 0 1 1")
    assert far(both, made("layout", "--box", tmp_path / "b.json")) == 0
    (tmp_path / "words.json").write_text('["cat 0 0 0.5 1", "red apple 0.5 0 1 1"]')
    assert far(both, made("layout", "--box", tmp_path / "words.json")) == 0
    assert far(both, made("layout", "--box", "cat 0 0 0.5 1")) > 0
    assert far(made("generate", "--box", tmp_path / "b.json"), made("generate")) > 0  # as in every task


def test_maps_in_numbers_and_in_colours(made: Verbs, tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).integers(0, 3, (40, 32), dtype=np.uint8)
    Image.fromarray(numbers).save(tmp_path / "gray.png")
    coloured = Image.fromarray(np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)[numbers])
    coloured.save(tmp_path / "colours.png")
    first = made("semantic", "--map", tmp_path / "gray.png", "--label", "dog")
    assert first.size == (32, 40)
    assert far(first, made("semantic", "--map", tmp_path / "colours.png", "--label", "dog")) == 0
    coloured.putalpha(0)
    coloured.save(tmp_path / "clear.png")
    made("semantic", "--map", tmp_path / "clear.png")
    assert f"{tmp_path / 'clear.png'}: transparent, read as if it were not" in made.err


def test_what_is_done_to_a_mask_is_told(made: Verbs, tmp_path: Path) -> None:
    noise(32, 32).save(tmp_path / "a.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "m.jpg")
    made("inpaint", "-i", tmp_path / "a.png", "--mask", tmp_path / "m.jpg")
    assert f"{tmp_path / 'm.jpg'}: a lossy file" in made.err
    Image.new("RGBA", (32, 32), (255, 255, 255, 9)).save(tmp_path / "m.png")
    made("inpaint", "-i", tmp_path / "a.png", "--mask", tmp_path / "m.png")
    assert f"{tmp_path / 'm.png'}: strokes on an empty layer: where it is opaque is the hole" in made.err
    assert "a.png:" not in made.err


def test_no_picture_is_ever_written_over(tmp_path: Path) -> None:
    assert first_free(tmp_path) == 0
    for name in ("00007-1.png", "100000-3.png", "abc-1.png", "99-1.png", "00009-1.txt", "20240101-120000.png"):
        (tmp_path / name).touch()
    assert first_free(tmp_path) == 100_001
    one, two = claimed(tmp_path, 100_001, 5), claimed(tmp_path, 100_001, 5)  # by two commands at once
    assert [one.name, two.name] == ["100001-5.png", "100002-5.png"]
    assert numbered(two) == 100_002


def test_the_path_that_is_told_is_the_file_s(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cats[v2]" / "a[" / "x]"
    code, _, told = call("generate", folder, "--seed", 0, "--steps", 1, "--out", out, capsys=capsys)
    assert code == 0
    assert Path(told.strip().splitlines()[-1]).is_file()


def test_what_is_no_picture_is_called_so_and_no_more(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.txt").write_text("not a picture")
    code, _, err = call("vary", folder, "-i", tmp_path / "note.txt", "--out", tmp_path / "out", capsys=capsys)
    assert code == 2
    assert "cannot be read as a picture" in err
    assert "training" not in err


def test_a_mask_with_a_broken_exif_block_is_told_or_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise(32, 32).save(tmp_path / "p.png")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x28\0\x02\0\0\0\x02A\0\0\0\0\0\0\0"
    Image.new("L", (32, 32), 255).save(tmp_path / "m.jpg", exif=exif)
    words = ("-i", tmp_path / "p.png", "--mask", tmp_path / "m.jpg", "--seed", 0, "--steps", 1)
    code, _, err = call("inpaint", folder, *words, "--out", tmp_path / "out", capsys=capsys)
    assert code == 2
    assert "m.jpg cannot be read as a mask" in err


def test_folders_with_foreign_kinds_open_where_the_user_trusts_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "__init__.py").write_text("")
    own = "from sfumato.backbones.unet import UNetConfig\n\n\nclass Mine(UNetConfig):\n    pass\n"
    (tmp_path / "my_lab" / "mine.py").write_text(own)
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copytree(folder, tmp_path / "model")
    text = (tmp_path / "model" / "model.yaml").read_text()
    (tmp_path / "model" / "model.yaml").write_text(text.replace("kind: unet", "kind: my_lab.mine"))
    words = ("generate", tmp_path / "model", "--seed", 0, "--steps", 1, "--out", tmp_path / "out")
    code, _, err = call(*words, capsys=capsys)
    assert code == 2
    assert "--trust" in err
    assert call(*words, "--trust", capsys=capsys)[0] == 0
    assert call(*words, capsys=capsys)[0] == 2  # that command's, not the next one's


def test_a_folder_of_pictures_is_one_command(made: Verbs, tmp_path: Path) -> None:
    sides = {"b.png": (20, 9), "a.png": (12, 16), "deeper/c.jpg": (9, 9)}
    for name, (wide, high) in sides.items():
        (tmp_path / "small" / name).parent.mkdir(parents=True, exist_ok=True)
        noise(wide, high).save(tmp_path / "small" / name)
    noise(7, 5).save(tmp_path / "one.png")
    made("upscale", "-i", tmp_path / "small", "-i", tmp_path / "one.png")
    files = sorted(made.out.iterdir())
    assert [file.name for file in files] == [f"{k:05d}-0.png" for k in range(4)]
    told = [Path(metadata.read(file)["picture"]).name for file in files]
    assert told == ["a.png", "b.png", "c.jpg", "one.png"]
    assert [sized(file) for file in files] == [(48, 64), (80, 36), (36, 36), (28, 20)]
    for file, name in zip(files, ("small/a.png", "small/b.png", "small/deeper/c.jpg", "one.png"), strict=True):
        assert f"{tmp_path / name} -> {file}" in made.err
    alone = made("upscale", "-i", tmp_path / "small" / "b.png")  # as in a command of its own
    with Image.open(files[1]) as among:
        assert far(alone, among) == 0


def test_masks_of_a_folder_go_to_pictures_by_name(made: Verbs, tmp_path: Path) -> None:
    for folder in ("pictures", "masks"):
        (tmp_path / folder).mkdir()
    for k, name in enumerate(("a", "b")):
        noise(16, 16).save(tmp_path / "pictures" / f"{name}.png")
        hole = Image.new("L", (16, 16))
        hole.paste(255, (8 * k, 0, 8 * k + 8, 16))
        hole.save(tmp_path / "masks" / f"{name}.gif")
    (tmp_path / "masks" / "a.json").write_text("{}")  # as programs that draw masks leave beside them
    made("inpaint", "-i", tmp_path / "pictures", "--mask", tmp_path / "masks", "--method", "free", "--resample", 1)
    for k, (file, name) in enumerate(zip(sorted(made.out.iterdir()), ("a", "b"), strict=True)):
        whole, filled = (np.asarray(Image.open(p)) for p in (tmp_path / "pictures" / f"{name}.png", file))
        changed = (whole != filled).any(-1).any(0)
        assert changed[8 * k : 8 * k + 8].all()
        assert changed.sum() == 8


def test_pictures_of_one_name_have_masks_of_their_own(tmp_path: Path) -> None:
    for name in ("cats/1.png", "dogs/1.png", "dogs/2.jpg", "masks/cats/1.png", "masks/dogs/1.bmp", "masks/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise(8, 8).save(tmp_path / name)
    asked = {"picture": [str(tmp_path)], "mask": str(tmp_path / "masks"), "steps": 3}
    found = [(Path(one["picture"]), Path(one["mask"])) for one in each(asked)]
    told = [tuple(path.relative_to(tmp_path).as_posix() for path in pair) for pair in found]
    assert told == [
        ("cats/1.png", "masks/cats/1.png"), ("dogs/1.png", "masks/dogs/1.bmp"), ("dogs/2.jpg", "masks/2.png"),
    ]  # fmt: skip
    (tmp_path / "masks/dogs/1.bmp").rename(tmp_path / "masks/1.bmp")  # whose it is nothing says
    with pytest.raises(ValueError, match=r"holds no mask for .*dogs/1\.png; name it .*masks/dogs/1\.png"):
        each(asked)


def test_no_picture_is_named_by_nothing() -> None:
    assert each({"picture": ["a.png"], "seed": 5}) == [{"picture": "a.png", "seed": 5}]
    for nothing in ({"picture": [""]}, {"picture": ["a.png"], "mask": ""}):
        with pytest.raises(ValueError, match="an empty name"):
            each(nothing)


@pytest.mark.parametrize("broken", ["a", "b"])
def test_a_broken_picture_among_several_loses_nothing(made: Verbs, tmp_path: Path, broken: str) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in {"a", "b", "c"} - {broken}:
        noise(8, 8).save(few / f"{name}.png")
    (few / f"{broken}.png").write_bytes(b"no picture")
    settled = ["--seed", 0, "--steps", 1, "--out", made.out]
    code, _, err = call("upscale", made.folder, "-i", few, *settled, capsys=made.capsys)
    assert code == 2
    assert "1 of 3 pictures could not be taken" in err
    assert f"{few / broken}.png: " in err
    told = {Path(metadata.read(p)["picture"]).stem for p in made.out.iterdir()}
    assert told == {"a", "b", "c"} - {broken}


def test_what_is_wrong_with_the_request_is_told_once(made: Verbs, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        noise(8, 8).save(tmp_path / f"{name}.png")
    few = ["upscale", made.folder, "-i", tmp_path, "--out", made.out]
    code, _, err = call(*few, "--label", "nothing", capsys=made.capsys)
    assert code == 2
    assert err.count("nothing") == 1
    assert "could not be taken" not in err
    assert not made.out.exists()
    (tmp_path / "bare").mkdir()
    code, _, err = call("upscale", made.folder, "-i", tmp_path / "bare", capsys=made.capsys)
    assert code == 2
    assert f"{tmp_path / 'bare'} holds no pictures" in err


def test_two_pictures_that_fail_alike_after_one_that_was_made_end_nothing(made: Verbs, tmp_path: Path) -> None:
    for name in "abcd":
        for folder in ("pictures", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        noise(16, 16).save(tmp_path / "pictures" / f"{name}.png")
        Image.new("L", (16, 16), 0 if name in "bc" else 255).save(tmp_path / "masks" / f"{name}.png")
    words = ["-i", tmp_path / "pictures", "--mask", tmp_path / "masks", "--method", "free", "--resample", 1]
    code, _, err = call("inpaint", made.folder, *words, "--steps", 1, "--out", made.out, capsys=made.capsys)
    assert code == 2
    assert "2 of 4 pictures could not be taken" in err
    assert {Path(metadata.read(p)["picture"]).stem for p in made.out.iterdir()} == {"a", "d"}


def test_what_was_made_is_not_made_again_and_what_is_not_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "masks/a.png", "out/00000-0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(8, 8).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    asked = {"picture": [str(tmp_path)], "mask": "masks"}  # one of the two by another road
    assert [Path(one["picture"]).name for one in each(asked, Path("out"))] == ["a.png"]
    assert [Path(one["picture"]).name for one in each({"picture": ["out"]}, Path("out"))] == [
        "00000-0.png"
    ]  # it is meant
    (tmp_path / "b.HEIC").write_bytes(b"a photograph")
    assert [Path(one["picture"]).name for one in each({"picture": ["."]}, Path("out"))][:2] == ["a.png", "b.HEIC"]


def test_a_contact_sheet_takes_no_picture_s_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    for k in range(4):
        noise(32 + k, 32).save(tmp_path / "pictures" / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sheet.png").write_bytes(b"mine")
    for _ in range(2):
        code, out, _ = call("show", "pictures", "size=16", capsys=capsys)
        assert code == 0
        assert out.splitlines()[-1] == "sheet-1.png"  # the second time it is ours, and replaced
    assert (tmp_path / "sheet.png").read_bytes() == b"mine"
