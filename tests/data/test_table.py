"""Parquet, tars, folders and saved data sets: the same pictures, the same parts, and memory that does not grow."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

from sfumato.data import loader
from sfumato.data.folder import FolderData
from sfumato.data.rows import detected
from sfumato.data.table import Rest, Singles, TableData, TablePart


def picture(k: int, size: tuple[int, int] = (24, 18)) -> bytes:
    """A PNG that is unlike those of other numbers."""
    array = np.random.default_rng(k).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def bitmap(k: int) -> bytes:
    """27 kB that do not compress."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (96, 96, 3), np.uint8)).save(buffer, "BMP")
    return buffer.getvalue()


def parquet(path: Path, numbers: Sequence[int], **columns: Any) -> Path:
    """A Parquet file as pandas would write it: bytes, texts, names of classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        "image": columns.pop("image", None) or [picture(k) for k in numbers],
        "caption": [f"picture {k}" for k in numbers],
        "label": [("cat", "dog")[k % 2] for k in numbers],
    }
    pq.write_table(pa.table(rows | columns), path, row_group_size=50)
    return path


def tar(path: Path, numbers: Sequence[int]) -> Path:
    """A WebDataset shard: picture, text, class and JSON of one key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for k in numbers:
            facts = json.dumps({"prompt": f"prompt {k}", "width": 24}).encode()
            for suffix, content in {
                "png": picture(k),
                "txt": f"picture {k}".encode(),
                "cls": str(k % 2).encode(),
                "json": facts,
            }.items():
                member = tarfile.TarInfo(f"{k:06d}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


def folder(path: Path, numbers: Sequence[int]) -> Path:
    """Class folders of picture files."""
    for k in numbers:
        file = path / ("cat", "dog")[k % 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(k))
    return path


def saved(path: Path, numbers: Sequence[int]) -> Path:
    """What `save_to_disk` writes."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Picture

    features = Features({"image": Picture(), "text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    rows = {
        "image": [{"bytes": picture(k), "path": None} for k in numbers],
        "text": [f"picture {k}" for k in numbers],
        "label": [k % 2 for k in numbers],
    }
    Dataset.from_dict(rows, features=features).save_to_disk(str(path))
    return path


def opened(path: Path, part: str = "train", **options: Any) -> TablePart:
    cache = path.parent / f"cache of {path.name}"
    return TableData.model_validate({"path": path, "size": 12, "cache": cache, **options}).open(part)


def shown(part: TablePart) -> dict[bytes, Any]:
    """Pixels -> caption and class."""
    rows = [(part.image(k).numpy().tobytes(), part.fields(k)) for k in range(len(part))]
    return {pixels: (fields.get("caption"), fields.get("group")) for pixels, fields in rows}


NUMBERS = range(30)


@pytest.mark.parametrize(
    ("format", "make", "name"),
    [("parquet", parquet, "a.parquet"), ("webdataset", tar, "a.tar"), ("folder", folder, "a"), ("arrow", saved, "a")],
)
def test_every_format_shows_the_same_pictures(tmp_path: Path, format: str, make: Any, name: str) -> None:
    plain = FolderData(path=folder(tmp_path / "plain", NUMBERS), size=12, held_out=0).open()
    expected = {plain.image(k).numpy().tobytes() for k in range(len(plain))}
    path = make(tmp_path / "data" / name, NUMBERS)
    assert detected(path) == format
    part = opened(path, held_out=0)
    assert set(shown(part)) == expected
    assert len(part) == 30
    assert part.labels == (("0", "1") if format == "webdataset" else ("cat", "dog"))
    if format != "folder":
        assert shown(part)[part.image(3).numpy().tobytes()][0] == ["picture 3"]
    assert loader.batch(part, 0, range(4)).images.shape == (4, 3, 12, 12)
    if path.is_file():
        assert opened(path.parent, held_out=0).fingerprint == part.fingerprint


def test_odd_paths_are_read(tmp_path: Path) -> None:
    assert len(opened(parquet(tmp_path / "a [b]*" / "a.parquet", range(3)), held_out=0)) == 3
    assert len(opened(folder(tmp_path / "c [1]*", range(4)), held_out=0, format="folder")) == 4
    (tmp_path / "link").symlink_to(folder(tmp_path / "real", range(4)), target_is_directory=True)
    assert opened(tmp_path / "link", held_out=0).fields(0)["name"] == "real/cat/0.png"


def test_captions_of_a_folder_are_those_of_its_table(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", range(2))
    rows = [{"file_name": f"{('cat', 'dog')[k]}/{k}.png", "text": f"picture {k}"} for k in range(2)]
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = opened(path, held_out=0)
    assert sorted(part.fields(k)["caption"][0] for k in range(2)) == ["picture 0", "picture 1"]
    assert part.labels == ()


def test_columns_are_found_named_and_refused(tmp_path: Path) -> None:
    shards = tar(tmp_path / "a.tar", range(4))
    assert opened(shards, held_out=0, caption="json.prompt").fields(2)["caption"] == ["prompt 2"]
    assert opened(shards, held_out=0).fields(2)["name"] == "000002"
    path = parquet(tmp_path / "a.parquet", range(4), said=[["one", "two"], [], None, [""]])
    part = opened(path, held_out=0, caption="said", label="caption")
    assert [part.fields(k).get("caption") for k in range(4)] == [["one", "two"], None, None, None]
    assert part.fields(1)["label"] == 1
    with pytest.raises(ValueError, match=r"no column 'words' for data.caption; it has image, caption, label, said"):
        opened(path, caption="words")
    with pytest.raises(ValueError, match=r"row 0 .*b\.parquet\).*'label' holds"):
        opened(parquet(tmp_path / "b.parquet", range(2), label=[1, 2]), held_out=0, caption="label").fields(0)
    bare = tmp_path / "c.parquet"
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), bare)
    with pytest.raises(ValueError, match=r"name one of a, b as data\.image"):
        opened(bare)


def test_whole_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    part = opened(parquet(tmp_path / "a.parquet", range(4), label=[10, 9, None, 9]), held_out=0)
    assert part.labels == ("9", "10")
    assert [part.fields(k).get("label") for k in range(4)] == [1, 0, None, 0]


def test_held_out_rows_are_a_stable_share_and_equal_pictures_stay_together(tmp_path: Path) -> None:
    twins = [*range(60), *range(60)]
    path = parquet(tmp_path / "a" / "a.parquet", twins)
    train, held = opened(path, held_out=0.2), opened(path, "held_out", held_out=0.2)
    assert len(train) + len(held) == 120
    assert 4 < len(held) < 50
    assert not set(shown(train)) & set(shown(held))
    longer = parquet(tmp_path / "b" / "a.parquet", [*range(100, 160), *twins[::-1]])
    again = opened(longer, "held_out", held_out=0.2)
    assert set(shown(held)) <= set(shown(again))
    assert not set(shown(again)) & set(shown(train))
    few = parquet(tmp_path / "c" / "a.parquet", range(3))
    assert len(opened(few, "held_out", held_out=1e-9)) == 1


def soft(k: int, quality: int = 95, mirrored: bool = False) -> bytes:
    """A JPEG of some blotches."""
    small = Image.fromarray(np.random.default_rng(k).integers(0, 256, (7, 7, 3), dtype=np.uint8))
    shown = small.resize((48, 48), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    (ImageOps.mirror(shown) if mirrored else shown).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_pictures_that_look_alike_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [*(soft(k) for k in range(30)), *(soft(k, 60, k % 2 == 1) for k in range(30)), picture(99)[:200]]
    path = parquet(tmp_path / "a.parquet", range(61), image=images)

    def sides(**more: Any) -> list[set[int]]:
        parts = [opened(path, part, held_out=0.4, **more) for part in ("train", "held_out")]
        rows = [[int(part.fields(k)["name"]) for k in range(len(part))] for part in parts]
        return [{row % 30 for row in several if row < 60} for several in rows]

    assert not set.intersection(*sides())
    train = opened(path, held_out=0.4)
    assert train.alike().startswith("60 pictures in 30 groups, such as row 0 and row 30; each group is on one side")
    assert opened(path, "held_out", held_out=0.4).alike() == ""
    first = train.fingerprint
    monkeypatch.setattr("sfumato.data.twins.groups", lambda looks: pytest.fail("they are kept"))
    assert opened(path, held_out=0.4).fingerprint == first
    with monkeypatch.context() as later:  # who looks in another way looks again
        later.setattr("sfumato.data.shelf.VERSION", -1)
        later.setattr("sfumato.data.twins.groups", lambda looks: list(range(len(looks))))
        assert opened(path, held_out=0.4).alike() == ""
    monkeypatch.setattr("sfumato.data.table.COMPARED", 60)  # a larger table is split by bytes alone
    assert set.intersection(*sides())
    assert opened(path, held_out=0.4).fingerprint != first
    assert opened(path, held_out=0.4).alike() == ""


def test_tables_without_twins_are_split_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "a.parquet", [*range(20), *range(5)])
    compared = opened(path, "held_out", held_out=0.3)
    monkeypatch.setattr("sfumato.data.table.COMPARED", 0)
    plain = opened(path, "held_out", held_out=0.3)
    assert list(compared.rows) == list(plain.rows)
    assert compared.fingerprint == plain.fingerprint


def test_splits_are_the_parts(tmp_path: Path) -> None:
    for name, numbers in {"train-0": range(4), "train-1": range(4, 8), "test-0": range(8, 10), "notes": [11]}.items():
        parquet(tmp_path / "data" / f"{name}.parquet", numbers)
    train, held = opened(tmp_path / "data"), opened(tmp_path / "data", "held_out")
    assert [train.fields(k)["caption"][0] for k in range(8)] == [f"picture {k}" for k in range(8)]
    assert [held.fields(k)["caption"][0] for k in range(2)] == ["picture 8", "picture 9"]
    assert train.labels == held.labels
    assert len(opened(tmp_path / "data", split="test", held_out=0)) == 2
    with pytest.raises(ValueError, match="has no split 'dev'; it has"):
        opened(tmp_path / "data", split="dev")
    both = tmp_path / "both"
    folder(both / "train", range(6))
    folder(both / "val", range(6, 9))
    assert (len(opened(both)), len(opened(both, "held_out"))) == (6, 3)
    assert opened(both).fields(0)["name"].startswith("train/cat/")


def test_the_fingerprint_tells_what_matters(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a" / "a.parquet", NUMBERS)
    first = opened(path).fingerprint
    assert opened(path).fingerprint == first
    assert opened(path, cache=tmp_path / "elsewhere").fingerprint == first
    changes: list[dict[str, Any]] = [
        {"size": 8}, {"channels": 1}, {"caption": "label"}, {"label": "caption"}, {"held_out": 0.5}, {"skip": [3]}
    ]  # fmt: skip
    assert len({first, *(opened(path, **c).fingerprint for c in changes)}) == 1 + len(changes)
    assert opened(path, "held_out").fingerprint != first
    other = parquet(tmp_path / "b" / "a.parquet", NUMBERS, caption=["another"] * 30)
    assert opened(other).fingerprint != first
    moved = (tmp_path / "c" / "z.parquet").parent
    moved.mkdir()
    (moved / "z.parquet").write_bytes(path.read_bytes())
    assert opened(moved / "z.parquet").fingerprint == first
    parquet(path, NUMBERS[::-1])  # the file changes under the cache
    os.utime(path, ns=(0, 0))
    assert opened(path).fingerprint != first


@pytest.mark.parametrize("whole", [False, True], ids=["paths", "structures"])
def test_pictures_that_a_table_names_are_read_again_when_they_change(tmp_path: Path, whole: bool) -> None:
    names = [str(tmp_path / f"{k}.png") for k in range(12)]
    for k, name in enumerate(names):
        Path(name).write_bytes(picture(k))
    column = [{"bytes": None, "path": name} for name in names] if whole else names
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    first = opened(tmp_path / "a.parquet").fingerprint
    assert opened(tmp_path / "a.parquet").fingerprint == first
    for k, name in enumerate(names):
        Path(name).write_bytes(picture(k + 12))
    other = opened(tmp_path / "a.parquet").fingerprint
    assert other != first
    os.utime(names[0], ns=(0, 0))  # whose bytes are the same
    assert opened(tmp_path / "a.parquet").fingerprint == other


def test_transparency_depth_and_orientation_are_those_of_folders(tmp_path: Path) -> None:
    clear = io.BytesIO()
    Image.new("RGBA", (16, 16), (200, 0, 0, 51)).save(clear, "PNG")
    array = io.BytesIO()
    np.save(array, np.full((16, 16, 4), 32768, np.uint16))
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.repeat(np.uint8([[[0], [255]]]), 3, 2).repeat(16, 0).repeat(8, 1)).save(turned, "PNG", exif=exif)
    images = [clear.getvalue(), array.getvalue(), turned.getvalue()]
    path = parquet(tmp_path / "a.parquet", range(3), image=images)
    over = opened(path, held_out=0)
    assert over.image(0)[:, 5, 5].tolist() == pytest.approx([244, 204, 204], abs=1)
    assert over.image(2)[0, :, 0].tolist() == sorted(over.image(2)[0, :, 0].tolist())
    part = opened(path, held_out=0, channels=4)
    assert part.image(0)[:, 5, 5].tolist() == pytest.approx([200, 0, 0, 51], abs=1)
    assert part.image(1).dtype == torch.float32
    assert part.image(1)[:, 5, 5].tolist() == pytest.approx([32768 / 257] * 4, abs=0.01)


def test_damaged_and_missing_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parquet(tmp_path / "d" / "a.parquet", range(5))
    parquet(tmp_path / "d" / "b.parquet", range(3), image=[picture(9), picture(10)[:200], None])
    part = opened(tmp_path / "d", held_out=0)
    assert len(part) == 7
    assert "1 of 8 rows, which have no picture" in caplog.text
    fault = (
        r"^row 6 \(row 1 of .*b\.parquet\) cannot be read as a picture .*; or leave it out by adding 6 to data.skip$"
    )
    with pytest.raises(ValueError, match=fault):
        part.image(6)
    left = opened(tmp_path / "d", held_out=0, skip=[6])
    assert len(left) == 6
    for k in range(6):
        left.image(k)
    with pytest.raises(ValueError, match="names row 8 and"):
        opened(tmp_path / "d", skip=[8])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nowhere", None, "there is no .*nowhere; give"),
        ("a.txt", b"x", r"neither a \.parquet nor a \.tar file"),
        ("a.parquet", b"no parquet", r"a\.parquet cannot be read as parquet"),
        ("a.tar", b"no tar", r"a\.tar cannot be read as webdataset"),
    ],
)
def test_what_is_no_table_says_why(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        opened(tmp_path / name)
    tmp_path.joinpath("empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \*\.tar file"):
        opened(tmp_path / "empty", format="webdataset")


def test_rows_are_counted_without_a_list_of_them() -> None:
    rest = Rest(10, np.array([0, 3, 4, 9]))
    assert list(rest) == [1, 2, 5, 6, 7, 8]
    assert rest[1:3] == [2, 5]
    assert rest[-1] == 8
    with pytest.raises(IndexError):
        rest[6]
    assert list(Singles(3)) == [(0,), (1,), (2,)]


MEMORY = """
import ctypes, gc, re, sys
from pathlib import Path
import pyarrow
from sfumato.data.table import TableData
from sfumato.data import loader
def anonymous():  # what is held, not what allocators keep for later
    gc.collect()
    pyarrow.default_memory_pool().release_unused()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
def through(path):
    part = TableData(path=path, size=8, cache=Path(sys.argv[3])).open()
    for k in range(0, len(part), 50):
        loader.batch(part, 0, range(k, min(k + 50, len(part))))
    return len(part)
through(Path(sys.argv[1]))
before = anonymous()
count = through(Path(sys.argv[2]))
print(count, anonymous() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_memory_stays_flat_as_the_table_grows(tmp_path: Path) -> None:
    pictures = [bitmap(k) for k in range(4800)]
    small = parquet(tmp_path / "small.parquet", range(200), image=pictures[:200])
    large = parquet(tmp_path / "large.parquet", range(4800), image=pictures)
    assert large.stat().st_size > 120 << 20
    words = [sys.executable, "-c", MEMORY, small, large, tmp_path / "cache"]
    count, grown = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    assert int(count) > 4300
    # were a fifth of the pictures' bytes kept, so much would be; allocators differ by up to 8 MiB from run to run
    assert float(grown) < large.stat().st_size / 2**20 / 5
