"""What the README says runs."""

import re
from pathlib import Path

import pytest

from sfumato import cli
from sfumato.training import recipe

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert len(list(tmp_path.glob("heart-*.png"))) == 4


def test_the_first_command_after_the_installation_is_a_picture() -> None:
    commands = re.findall(r"^sfumato [^\n]*", TEXT, re.MULTILINE)
    assert commands[0] == 'sfumato generate emoji --prompt "woman firefighter: dark skin tone"'


def test_every_command_of_the_readme_exists() -> None:
    commands = [said.split() for said in re.findall(r"(?:^|`|-m )sfumato ([^\n`]+)", TEXT, re.MULTILINE)]
    assert len(commands) > 30
    for verb, *words in commands:
        assert verb in {*cli.VERBS, "--help"}
        if verb == "train":
            assert words[0] in recipe.shipped()


def test_what_the_readme_tells_make_is_what_make_knows_and_what_it_does_is_told_without_it() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([A-Z]+) *\?=", makefile, re.MULTILINE))
    commands = re.findall(r"make demo((?: [A-Z]+=[^\s`]+)+)", TEXT)
    assert len(commands) > 1
    for words in commands:
        names = re.findall(r"([A-Z]+)=", words)
        assert {*names} <= known
        assert "MINUTES" not in names or "OUT" in names, "a folder holds one demo"
    without = TEXT[TEXT.index("Without `make`") : TEXT.index("## Ten lines")]
    for words in ("--extra-index-url", '-e ".[dev]"', "ruff check .", "ruff format --check .", "mypy", "pytest -q"):
        assert words in without


def test_the_readme_is_short_and_names_no_missing_file() -> None:
    assert len(TEXT.splitlines()) < 200
    for name in re.findall(r"`((?:docs|benchmarks|tests)/[\w./-]*)`", TEXT):
        assert (ROOT / name).exists(), name


def anchors(path: Path) -> set[str]:
    """The names by which links reach a page's headings, as GitHub makes them."""
    heads = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", head) for head in heads)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("path", sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")]), ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), target
