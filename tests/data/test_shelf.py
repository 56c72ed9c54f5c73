"""What was seen of a large folder is kept, and believed only while the files are what they were."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import folder as folders
from sfumato.data import shelf, survey
from sfumato.data.folder import FolderPart
from tests.data.test_survey import folder, noise, opened


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that are looked at, in a program that begins anew at each `forget`."""
    found: list[str] = []
    tried = survey._tried
    monkeypatch.setattr(survey, "KEPT", 1)
    monkeypatch.setattr(folders, "MANY", 1)
    monkeypatch.setattr(survey, "_tried", lambda entry, **more: found.append(entry.name) or tried(entry, **more))
    return found


def again(path: Path, part: str = "train", held_out: float = 0.3) -> FolderPart:
    """As another program opens it."""
    survey._surveyed.cache_clear()
    folders._grouped.cache_clear()
    return opened(path, part, held_out=held_out, cache=str(path.parent / "cache"))


@pytest.mark.parametrize(("field", "suffix"), [("map", "png"), ("pair", "png")])
def test_a_second_program_looks_at_nothing_and_sees_the_same(
    tmp_path: Path, looked: list[str], field: str, suffix: str
) -> None:
    path = folder(tmp_path / "pictures", field, suffix)
    first = again(path)
    assert len(looked) == 4
    looked.clear()
    second = again(path)
    assert looked == []
    assert second.fingerprint == first.fingerprint
    assert second.seen == first.seen
    assert second.numbers(field) == first.numbers(field)
    assert again(path, "held_out").entries == [e for e in opened(path).entries if e not in first.entries]


def test_what_changed_is_looked_at_anew_and_nothing_else(tmp_path: Path, looked: list[str]) -> None:
    path = folder(tmp_path / "pictures", "map", "png")
    first = again(path, held_out=0)
    looked.clear()
    noise(path / "1.png", 9)
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(path / "map/2.png")
    second = again(path, held_out=0)
    assert sorted(looked) == ["1.png", "2.png"]
    assert second.seen[1].digest != first.seen[1].digest
    assert second.seen[2].numbers == ((7,), (7,))
    assert second.fingerprint != first.fingerprint


def test_other_files_of_the_same_size_and_time_are_not_taken_for_those_before(
    tmp_path: Path, looked: list[str]
) -> None:
    path = folder(tmp_path / "pictures", "map", "bmp")
    shutil.copystat(path / "map/0.bmp", path / "map/1.bmp")
    again(path, held_out=0)
    looked.clear()
    rows = [json.loads(line) for line in (path / "metadata.jsonl").read_text().splitlines()]
    rows[0]["map"], rows[1]["map"] = rows[1]["map"], rows[0]["map"]
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [seen.numbers[0] for seen in again(path, held_out=0).seen[:2]] == [(1,), (0,)]


def test_a_picture_that_could_not_be_read_is_tried_again(tmp_path: Path, looked: list[str]) -> None:
    path = folder(tmp_path / "pictures", "pair", "png")
    (path / "2.png").write_bytes(b"nothing")
    assert len(again(path, held_out=0)) == 3
    looked.clear()
    assert len(again(path, held_out=0)) == 3
    assert looked == ["2.png"]


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"version": 1, "value": {"0.png": [1, 2]}}', '{"version": 0}'])
def test_a_damaged_file_costs_a_look_and_no_more(tmp_path: Path, looked: list[str], content: str) -> None:
    path = folder(tmp_path / "pictures", "map", "png")
    first = again(path)
    kept = sorted((tmp_path / "cache").glob("*.json"))
    assert [file.name.split("-")[0] for file in kept] == ["folder", "groups"]
    looked.clear()
    for file in kept:
        file.write_text(content)
    assert again(path).fingerprint == first.fingerprint
    assert len(looked) == 4
    assert shelf.read(kept[0]) is not None


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path, looked: list[str]) -> None:
    path = folder(tmp_path / "pictures", "map", "png")
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert len(again(path, held_out=0)) == 4
