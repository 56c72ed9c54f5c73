"""`sfumato show` of pictures in a table: a file, a folder of them, and never the archive that pictures came in."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sfumato.cli import main


def shown(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The exit code, the output and the errors of `sfumato show`."""
    try:
        main(["show", *map(str, words)])
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    found = capsys.readouterr()
    return code, found.out, found.err


def table(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for k in range(12):
        content = io.BytesIO()
        Image.effect_noise((20 + k, 16), 90).convert("RGB").save(content, "PNG")
        images.append(content.getvalue())
    pq.write_table(pa.table({"image": images, "caption": [f"noise {k}" for k in range(12)]}), path)
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_a_table_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "data" / "a.parquet")
    for source in (path, path.parent):
        code, out, err = shown(source, "size=16", "held_out=0.3", "--sheet", tmp_path / "s.png", capsys=capsys)
        assert (code, err) == (0, "")
        assert "16x16 as the network sees them" in out
        assert "cut to their centred square" in out
        assert "caption" in out
        with Image.open(tmp_path / "s.png") as opened:
            assert opened.width > 500
    code, _, err = shown(path, "sice=16", capsys=capsys)
    assert (code, "sice: unknown key" in err) == (2, True)
    code, _, err = shown(tmp_path / "nowhere.parquet", capsys=capsys)
    assert (code, "there is no" in err, "recipe" in err) == (2, True, False)
    assert not (tmp_path / "here" / "sheet.png").exists()


def test_a_sheet_does_not_become_one_of_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    for k in range(6):
        data.mkdir(exist_ok=True)
        Image.effect_noise((24, 24), 90).save(data / f"{k}.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""{{stage: autoencoder, autoencoder: {{kind: kl}}, training: {{images: 8}},
        data: {{kind: folder, path: {data}, size: 16}}}}""")
    for source in (data, recipe):
        code, _, err = shown(source, "--sheet", data / "sheet.png", capsys=capsys)
        assert (code, "would lie among the pictures" in err) == (2, True)
        assert len([*data.iterdir()]) == 6


def test_a_folder_of_tables_is_one_again_beside_what_was_kept_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    table(tmp_path / "data" / "a.parquet")
    monkeypatch.chdir(tmp_path / "data")
    code, _, err = shown(".", "size=16", "held_out=0.3", capsys=capsys)
    assert (code, "would lie among the pictures" in err) == (2, True)
    for _ in range(2):
        code, out, err = shown(".", "size=16", "held_out=0.3", "--sheet", tmp_path / "s.png", capsys=capsys)
        assert (code, err) == (0, "")
        assert "16x16 as the network sees them" in out


def test_pictures_beside_an_archive_are_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(4):
        (tmp_path / "data" / "flowers").mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16 + k, 16), 90).save(tmp_path / "data" / "flowers" / f"{k}.png")
    (tmp_path / "data" / "flowers.tar").write_bytes(b"what they came in")
    code, out, err = shown(tmp_path / "data", "size=16", "held_out=0", capsys=capsys)
    assert "flowers 4" in out
    assert code == 0, err
