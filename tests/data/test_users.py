"""What folders of real users hold: outputs among the pictures, odd texts, huge and turned files, classes called `train`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato import image
from sfumato.data import contact, layout, twins
from sfumato.data.base import Data
from sfumato.data.folder import FolderPart
from sfumato.data.frame import Frame
from sfumato.data.layout import listed
from sfumato.tasks import given
from sfumato.training.recipe import override
from tests.cli.test_cli import call
from tests.data.test_renumbered import pictures
from tests.data.test_table import parquet


def noise(path: Path, size: tuple[int, int] = (16, 16), seed: int = 0, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(array).save(path, **more)
    return path


def folder(path: Path, **fields: Any) -> FolderPart:
    part = Data.model_validate({"kind": "folder", "path": str(path), "size": 16, **fields}).open("train")
    assert isinstance(part, FolderPart)
    return part


def test_runs_and_models_among_the_pictures_are_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path, "cat", "dog")
    for name, own in (("runs/a", "recipe.yaml"), ("mine/model", "model.yaml")):
        noise(tmp_path / name / "samples" / "000.png")
        (tmp_path / name / own).write_text("stage: diffusion")
    entries = listed(tmp_path)
    assert len(entries) == 12
    assert layout.labels(entries) == ("cat", "dog")
    monkeypatch.chdir(tmp_path)
    code, _, err = call("show", ".", "size=16", capsys=capsys)
    assert code == 2
    assert "sheet.png would lie among the pictures and be one of them; give --sheet another place" in err
    assert not (tmp_path / "sheet.png").exists()


def test_recipes_of_dishes_hide_no_pictures(tmp_path: Path) -> None:
    pictures(tmp_path, "cookies", "soup")
    (tmp_path / "cookies" / "recipe.yaml").write_text("flour: 200 g\nbutter: 100 g\n")
    assert len(listed(tmp_path)) == 12


def test_few_pictures_beside_class_folders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures(tmp_path, "cat", "dog")
    noise(tmp_path / "logo.png", seed=99)
    assert layout.labels(listed(tmp_path)) == ()
    assert "1 of 13 pictures lie beside its folders, such as logo.png, so that folders are no classes" in caplog.text


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    pictures(tmp_path / "a", "car", "train")
    assert layout.labels(listed(tmp_path / "a")) == ("car", "train")
    pictures(tmp_path / "b" / "train", "car", "bus")  # alone, or beside what is held out, it is a part
    assert layout.labels(listed(tmp_path / "b")) == ("bus", "car")
    pictures(tmp_path / "b" / "val", "car", "bus")
    assert len(folder(tmp_path / "b")) == 12
    for place, own in ((".thumbnails", None), ("myrun", "recipe.yaml"), ("figures", None)):
        pictures(tmp_path / place / "train", "cat", "dog")
        noise(tmp_path / place / place / "a.png")
        if own:
            (tmp_path / place / place / own).write_text("sfumato: 0.1.0\nstage: diffusion\n")
        assert layout.labels(listed(tmp_path / place)) == ("cat", "dog"), place


def test_parts_that_are_not_read_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train", "val", "test"):
        pictures(tmp_path / name, name)
    assert len(folder(tmp_path)) == 6
    assert "test are neither trained on nor held out, and are not read" in caplog.text


def test_the_smallest_box_is_drawn(tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    noise(tmp_path / "b.png", seed=1)
    row = {"file_name": "a.png", "boxes": [["ant", 0.5, 0.5, 0.501, 0.502], ["bee", 0.999, 0.0, 1.0, 1.0]]}
    (tmp_path / "metadata.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps({'file_name': 'b.png'})}")
    sheet = np.asarray(contact.sheet(folder(tmp_path, held_out=0), count=2)).astype(int)
    outlined = (np.abs(sheet - list(contact.RED)) < 3).all(-1)
    inside = np.array([outlined[:, k * (contact.CELL + 4) :][: contact.CELL, : contact.CELL] for k in (0, 1)])
    shown = inside[inside.any((1, 2)).argmax()]
    assert shown[contact.CELL // 2, contact.CELL // 2]  # the ant, a point
    assert shown[:, -1].all()  # the bee, a line


def test_groups_that_decide_a_split_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    twins.crowded(tmp_path / "few", [0] * 19 + list(range(19, 100)))
    twins.crowded(tmp_path / "small share", [0] * 20 + list(range(20, 500)))
    assert not caplog.text
    twins.crowded(tmp_path / "many", [0] * 20 + list(range(20, 100)))
    assert "20 of 100 pictures look so much alike" in caplog.text


def test_a_turned_tiff_has_the_sides_that_one_sees(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("tif", "jpg", "png"):
        path = noise(tmp_path / f"a.{suffix}", (30, 20), exif=exif)
        high, wide, _ = image.pixels(path).shape
        assert image.sides(path) == (wide, high) == (20, 30)


def test_the_side_of_a_whole_square_is_no_more_than_one(tmp_path: Path) -> None:
    noise(tmp_path / "a.png", (800, 440))
    noise(tmp_path / "b.png", (800, 440), seed=1)
    part = folder(tmp_path, crops=2, closest=1.0, held_out=0)
    assert 440 / 800 * 800 / 440 > 1  # what doubles make of it
    assert part.fields(1)["frame"][2] == 1.0


def test_small_squares_of_a_large_jpeg_are_as_sharp_as_of_a_png(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (300, 400))  # every pixel unlike its neighbours
    for suffix, more in (("png", {}), ("jpg", {"quality": 100})):
        (tmp_path / suffix).mkdir()
        for k in range(2):
            Image.fromarray(np.roll(whole, k, 1)).save(tmp_path / suffix / f"{k}.{suffix}", **more)
    monkeypatch.setattr(FolderPart, "frame", lambda self, k: Frame(0.25, 0.25, 16 / 800, 16 / 600))
    spreads = [float(folder(tmp_path / s, crops=2, held_out=0).image(1).float().std()) for s in ("png", "jpg")]
    assert spreads[0] > 100
    assert spreads[1] > 0.9 * spreads[0]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"boxes": [0.1, 0.2, 0.5, 0.9]}, "a box is"),
        ({"boxes": [{"label": "a", "box": None}]}, "a box is"),
        ({"boxes": [[["a"], 0, 0, 1, 1]]}, "a box is"),
        ({"boxes": [[]]}, "a box is"),
        ({"map": 5}, "map is the name of a file; got 5"),
    ],
)
def test_rows_that_cannot_be_meant_are_told(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    noise(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", **row}))
    with pytest.raises(ValueError, match=f"metadata.jsonl, line 1: .*{fault}"):
        listed(tmp_path)


def test_an_empty_array_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    (tmp_path / "3.npy").write_bytes(b"")
    assert len(folder(tmp_path, held_out=0)) == 3
    assert "1 of 4 pictures" in caplog.text


def test_texts_may_hold_any_letter(tmp_path: Path) -> None:
    for k in range(2):
        noise(tmp_path / f"{k}.png", seed=k)
    odd = "one\u2028two\u0085three"
    rows = [json.dumps({"file_name": f"{k}.png", "text": odd}, ensure_ascii=False) for k in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\r\n".join(rows), encoding="utf-8")
    assert [entry.captions for entry in listed(tmp_path)] == [(odd,), (odd,)]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "0.txt").write_bytes("a\u2028b\r\nc\n".encode())
    assert listed(tmp_path)[0].captions == ("a\u2028b", "c")


def test_pictures_too_large_to_be_safe_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = noise(tmp_path / "a.png", (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        image.sides(path)
    with pytest.raises(ValueError, match="cannot be read as a mask"):
        given.mask(path, (64, 64))
    assert contact.conversions([path])["damaged, where training would stop"] == 1


def test_a_set_of_which_nothing_is_held_out_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "all", "cat", "dog")
    code, out, err = call(
        "show", tmp_path / "all", "size=16", "held_out=0", "--sheet", tmp_path / "s.png", capsys=capsys
    )
    assert code == 0, err
    assert "12 of 3 channels" in out


def test_a_model_is_shown_as_it_is(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["size=16"], ["--sheet", tmp_path / "s.png"]):
        code, _, err = call("show", model_folder, *more, capsys=capsys)
        assert code == 2
        assert "a model folder is shown as it is" in err


def test_overrides_take_paths_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/one")
    for said, meant in (
        ("data.path=set #2", "set #2"),
        ("data.path=2024", "2024"),
        ("data.path=2024-06-01", "2024-06-01"),
        ("data.path=~/pictures", "/home/one/pictures"),
        ("data.path='quoted #2'", "quoted #2"),
        ("autoencoder=null", None),
        ("autoencoder={kind: kl}", {"kind": "kl"}),
        ("x=a red #2 heart", "a red #2 heart"),
        ("x=2024-06-01", "2024-06-01"),
        ("x=2.5", 2.5),
        ("x=[1, 2]", [1, 2]),
        ("x='quoted'", "quoted"),
        ("x=true", True),
        ("x=null", None),
        ("x=#1", "#1"),
        ("data.path=~nobody-of-this-name/a", "~nobody-of-this-name/a"),
    ):
        key = said.partition("=")[0].split(".")
        found: Any = override({}, [said])
        for place in key:
            found = found[place]
        assert found == meant, said


def test_tables_may_have_lists_of_classes_or_none(tmp_path: Path) -> None:
    several = [["cat"], ["dog", "cat"], [], None, ["hen"], ["dog"]]
    path = parquet(tmp_path / "a.parquet", range(6), label=several)
    common = {"kind": "table", "path": str(path), "size": 16, "cache": str(tmp_path / "cache"), "held_out": 0}
    part = Data.model_validate(common).open("train")
    assert part.labels == ("cat", "dog", "hen")
    assert [part.fields(k).get("label") for k in range(6)] == [[0], [1, 0], None, None, [2], [1]]
    nested = parquet(tmp_path / "b.parquet", range(6), label=[{"a": 1}] * 6)
    with pytest.raises(ValueError, match=r"column 'label' holds struct.* or none for no classes"):
        Data.model_validate({**common, "path": str(nested)}).open("train")
    assert Data.model_validate({**common, "path": str(nested), "label": "none"}).open("train").labels == ()
    numbers = parquet(tmp_path / "c.parquet", range(2), image=[[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"the column of the pictures holds list and not picture files"):
        Data.model_validate({**common, "path": str(numbers)}).open("train")


def test_maps_are_told_apart_by_their_content_and_not_by_where_they_lie(tmp_path: Path) -> None:
    for place in ("here", "there"):
        for k in range(3):
            noise(tmp_path / place / "images" / f"{k}.png", seed=k)
            (tmp_path / place / "maps").mkdir(exist_ok=True)
            Image.fromarray(np.full((16, 16), k, np.uint8)).save(tmp_path / place / "maps" / f"{k}.png")
    one, two = (folder(tmp_path / place, held_out=0).fingerprint for place in ("here", "there"))
    assert one == two
    Image.fromarray(np.full((16, 16), 9, np.uint8)).save(tmp_path / "there" / "maps" / "0.png")
    assert folder(tmp_path / "there", held_out=0).fingerprint != one


def test_large_pictures_look_as_they_did() -> None:
    array = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    gray = array.astype(np.float32).mean(2)
    small = np.asarray(Image.fromarray(gray).resize((9, 9), Image.Resampling.BOX))
    assert twins.signature(array)[:4] == (*twins._words(small), *twins._words(small[:, ::-1]))
    assert twins.signature(array[:, :, 0]) == twins.signature(array[:, :, :1])


def test_pictures_of_classes_that_name_a_side_are_not_mirrored(tmp_path: Path) -> None:
    part = folder(pictures(tmp_path / "a", "turn_left", "cat", "right"), held_out=0.0)
    assert {part.field(k, "group") for k in range(len(part)) if part.mirrors(k)} == {"cat"}


def test_classes_of_boxes_and_maps_that_name_a_side_stop_mirroring(tmp_path: Path, monkeypatch: Any) -> None:
    part = folder(pictures(tmp_path / "a", "cat"), held_out=0.0)
    assert part.mirrors(0)
    real = FolderPart.field
    boxes = [("left hand", 0.1, 0.1, 0.5, 0.5)]
    monkeypatch.setattr(FolderPart, "field", lambda self, k, n: boxes if n == "boxes" else real(self, k, n))
    assert not part.mirrors(0)
    boxes[0] = ("hand", 0.1, 0.1, 0.5, 0.5)
    assert part.mirrors(0)
    part.class_names = {"map": ("ground", "left lung")}
    assert not part.mirrors(0)


def test_pictures_of_the_web_are_read_and_those_of_phones_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise(tmp_path / "cat" / "a.png")
    noise(tmp_path / "cat" / "b.jpg", seed=1).rename(tmp_path / "cat" / "b.jfif")
    (tmp_path / "c.heic").write_bytes(b"nothing that is read here")
    part = folder(tmp_path, held_out=0.0)
    assert (len(part), part.labels) == (2, ("cat",))
    assert "1 pictures are of a format that is not read; convert them; the first: c.heic" in caplog.text
