"""Published files by name: asked for, told, checked, whole or not there."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sfumato import cli
from sfumato.features import fetch
from sfumato.features.fetch import Published


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        return


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "net.pt").write_bytes(b"weights" * 1000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_once_and_what_is_done_is_told(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = hashlib.sha256(b"weights" * 1000).hexdigest()
    monkeypatch.setitem(fetch.TABLE, "net", Published(f"{served}/net.pt", right, "MIT", "--features"))
    for said in (f"downloading {served}/net.pt", "is there already"):
        cli.main(["fetch", "net", "--out", str(tmp_path / "weights")])
        out, err = capsys.readouterr()
        assert Path(out.strip()).read_bytes() == b"weights" * 1000
        assert all(words in err for words in (said, right, "MIT", "--features"))
    (tmp_path / "weights" / "net.pt").write_bytes(b"mine")
    with pytest.raises(ValueError, match="is another file"):
        fetch.fetch("net", tmp_path / "weights", lambda said: None)
    assert (tmp_path / "weights" / "net.pt").read_bytes() == b"mine"


def test_a_wrong_or_missing_file_is_not_kept(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, words in (
        (f"{served}/net.pt", "nothing was kept"),
        (f"{served}/none.pt", "does not answer"),
        ("http://127.0.0.1:9/net.pt", "does not answer"),
    ):
        monkeypatch.setitem(fetch.TABLE, "net", Published(url, "0" * 64, "MIT", "--features"))
        with pytest.raises(ValueError, match=words):
            fetch.fetch("net", tmp_path / "weights", lambda said: None)
    assert not list((tmp_path / "weights").iterdir())
    with pytest.raises(ValueError, match="known: inception, squeezenet, alexnet, vgg16"):
        fetch.fetch("nothing", tmp_path, lambda said: None)


def test_nothing_else_downloads() -> None:
    source = Path(fetch.__file__).parents[1]
    loud = ("urllib", "http.client", "import requests", "import httpx", "hf_hub_download", "load_state_dict_from_url")
    found = {p.name for p in source.rglob("*.py") if any(w in p.read_text(encoding="utf-8") for w in loud)}
    assert found == {"fetch.py"}


@pytest.mark.parametrize(
    ("header", "words"), [("Content-Length: 9000", "broke off"), ("Transfer-Encoding: chunked", "broke off")]
)
def test_a_line_that_breaks_says_to_try_again(
    header: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            return

        def do_GET(self) -> None:
            self.wfile.write(f"HTTP/1.1 200 OK\r\n{header}\r\nConnection: close\r\n\r\n1000\r\n".encode() + b"x" * 100)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Cut)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    row = Published(f"http://127.0.0.1:{server.server_port}/net.pt", "0" * 64, "MIT", "--features")
    monkeypatch.setitem(fetch.TABLE, "net", row)
    with pytest.raises(ValueError, match=words):
        fetch.fetch("net", tmp_path / "weights", lambda said: None)
    assert not list((tmp_path / "weights").iterdir())
    server.shutdown()
    server.server_close()
