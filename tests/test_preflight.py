"""The warning that comes before gigabytes do."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("preflight", Path(__file__).parent.parent / "tools" / "preflight.py")
assert SPEC is not None
assert SPEC.loader is not None
preflight = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(preflight)


@pytest.mark.parametrize(
    ("index", "system", "version", "code", "words"),
    [
        ("", "Linux", (3, 11), 0, "several gigabytes of CUDA"),
        ("https://example.org", "Linux", (3, 11), 0, ""),
        ("", "Darwin", (3, 12), 0, ""),
        ("", "Darwin", (3, 10), 2, "needs Python 3.11"),
    ],
)
def test_it_says_what_the_installation_needs(
    index: str, system: str, version: tuple[int, int], code: int, words: str
) -> None:
    found, line = preflight.advice(index, system, "x86_64", version)
    assert found == code
    assert words in line if words else line == ""
