"""A user's own folder: three layouts, damaged files, and errors that say what to do."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from sfumato.data import loader
from sfumato.data.folder import FolderData


def paint(path: Path, colour: str = "red", size: tuple[int, int] = (40, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_class_folders_are_labels(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for k in range(4):
            paint(tmp_path / name / f"{k}.png", size=(30 + k, 20))
    part = FolderData(path=tmp_path, size=16, held_out=0).open()
    assert part.labels == ("cat", "dog")
    assert len(part) == 8
    assert [part.fields(k)["label"] for k in range(8)] == [0] * 4 + [1] * 4
    assert part.image(0).shape == (3, 16, 16)
    assert loader.batch(part, 0, range(4)).images.shape == (4, 3, 16, 16)


def test_a_text_beside_a_picture_is_its_caption(tmp_path: Path) -> None:
    paint(tmp_path / "a.png").with_suffix(".txt").write_text("a red field\na flag\n")
    part = FolderData(path=tmp_path, size=8, held_out=0).open()
    assert part.fields(0)["caption"] == ["a red field", "a flag"]
    assert part.labels == ()


def test_metadata_gives_texts_and_labels(tmp_path: Path) -> None:
    paint(tmp_path / "x" / "a.jpg")
    paint(tmp_path / "b.jpg", "blue")
    rows = [
        {"file_name": "x/a.jpg", "text": "red", "label": 3},
        {"file_name": "b.jpg", "caption": ["blue", "azure"]},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = FolderData(path=tmp_path, size=8, held_out=0).open()
    assert part.fields(0) == {"name": "a.jpg", "caption": ["red"], "label": 0}
    assert part.fields(1)["caption"] == ["blue", "azure"]


def test_train_and_test_folders_are_the_parts(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a.png")
    paint(tmp_path / "test" / "b.png")
    data = FolderData(path=tmp_path, size=8)
    assert [data.open(p).fields(0)["name"] for p in ("train", "held_out")] == ["a.png", "b.png"]


def test_a_share_is_held_out_by_content(tmp_path: Path) -> None:
    for k in range(60):
        paint(tmp_path / f"{k}.png", size=(20 + k, 20))
    paint(tmp_path / "copy.png", size=(20, 20))
    data = FolderData(path=tmp_path, size=8, held_out=0.3)
    names = [{r["file"].name for r in data.open(p).rows} for p in ("train", "held_out")]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 61
    assert 8 <= len(names[1]) <= 30
    assert any({"0.png", "copy.png"} <= n for n in names)  # equal files stay on one side


def test_damaged_pictures_are_left_out_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        part = FolderData(path=tmp_path, size=8, held_out=0).open()
    assert len(part) == 1
    assert "1 pictures" in caplog.text
    assert "b.png" in caplog.text


def test_where_nothing_can_be_read_it_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no pictures"):
        FolderData(path=tmp_path, size=8).open()
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the 1 pictures"):
        FolderData(path=tmp_path, size=8, held_out=0).open()
    with pytest.raises(ValueError, match="there is no folder"):
        FolderData(path=tmp_path / "no", size=8).open()
    (tmp_path / "metadata.jsonl").write_text("{")
    with pytest.raises(ValueError, match="not JSON lines"):
        FolderData(path=tmp_path, size=8).open()
