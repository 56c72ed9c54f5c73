"""The demo in small: a plan that scales, a whole page, a resume that does not train again."""

import html
import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from sfumato import cli
from sfumato.demo import plan as plans
from sfumato.demo import run
from sfumato.demo.report import Page
from sfumato.training import recipe
from sfumato.training.loop import Interrupted, Watch
from sfumato.training.recipe import Recipe
from tests.conftest import BACKBONE, CODER


def test_minutes_become_images_in_proportion_and_survive_a_round_trip(tmp_path: Path) -> None:
    ten, hour = plans.budget(10, 200, 180), plans.budget(60, 200, 180)
    assert 5 < hour.denoiser_images / ten.denoiser_images < 7
    assert ten.first_stage_images / 200 + ten.denoiser_images / 180 < 540
    assert plans.budget(0.5, 1, 1).denoiser_images > 0
    ten.save(tmp_path)
    assert plans.Plan.load(tmp_path) == ten
    first, second = plans.recipes(ten, tmp_path)
    assert first.training.images == ten.first_stage_images
    assert second.training.images == ten.denoiser_images
    assert second.autoencoder == tmp_path / "first-stage" / "model"


@pytest.mark.parametrize("name", ["[x]", "{x}", "'q", '"q', "~", "null", "a: b", "x # y", " x "])
def test_a_demo_s_folder_may_have_any_name(name: str) -> None:
    _, second = plans.recipes(plans.budget(10, 200, 180), Path(name))
    assert second.autoencoder == Path(name) / "first-stage" / "model"
    assert recipe.parse(recipe.dump(second)) == second  # as the run folder keeps it


def test_a_page_holds_its_pictures_and_reloads_only_while_it_grows(tmp_path: Path) -> None:
    page = Page(tmp_path, status="Training <it>.")
    page.heading("A & B")
    text = page.write().read_text()
    assert 'http-equiv="refresh"' in text
    assert "Training &lt;it&gt;." in text
    assert "A &amp; B" in text
    assert 'http-equiv="refresh"' not in Page(tmp_path, live=False).write().read_text()


def test_a_wide_table_scrolls_and_breaks_no_number(tmp_path: Path) -> None:
    page = Page(tmp_path, live=False)
    page.table(["a", "b"], [["1", "2"]])
    page.table([*"abcdefg"], [["1,041 ± 8", *"23456", "words that may be broken where there is no room"]])
    narrow, wide = page.sections
    assert "wide" not in narrow
    assert wide.startswith('<div class="wide"><table>')
    assert "<td class=short>1,041 ± 8</td>" in wide
    assert "<td>words that" in wide


def test_a_page_that_grows_no_more_still_says_what_became_of_it(tmp_path: Path) -> None:
    text = Page(tmp_path, live=False, status="Stopped & kept.").write().read_text()
    assert "Stopped &amp; kept.</p>" in text
    assert "reload" not in text
    assert 'class="live"' not in Page(tmp_path, live=False).write().read_text()


def test_seconds_add_up_over_sessions_and_what_is_only_done_again_counts_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [100.0]
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def session(finished: bool) -> dict[str, float]:
        clock = run.Clock(tmp_path / "seconds.json", now[0], finished)
        now[0] += 3.0  # imports
        for name, again, seconds in (("denoiser", False, 10.0), ("samples", True, 5.0)):
            with clock.stage(name, again):
                now[0] += seconds
        now[0] += 2.0  # the page
        clock.rest()
        return clock.read()

    assert session(False) == {"denoiser": 10.0, "samples": 5.0, "rest": 5.0}
    assert session(False) == {"denoiser": 20.0, "samples": 5.0, "rest": 10.0}  # it was stopped before its end
    assert session(True) == {"denoiser": 20.0, "samples": 5.0, "rest": 10.0}


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that trains nothing but pictures its first stage."""

    def train(recipe: Recipe, folder: Path, *, watch: Watch, **_: object) -> Path:
        path = folder / "samples" / "000000064.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
        watch(64, path)
        return folder / "model"

    monkeypatch.setattr(run, "measured", lambda minutes, *_: plans.budget(minutes, 100, 100))
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run.Codec, "load", lambda _: torch.nn.Identity())
    monkeypatch.setattr(run, "cached", lambda *_: None)
    monkeypatch.setattr(run.shutil, "copytree", lambda *_, **__: None)


@pytest.mark.parametrize("place", ["measured", "train", "cached", "finish"])
def test_an_interruption_anywhere_names_the_command_that_goes_on_and_the_page_rests(
    faked: None, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = getattr(run, place)

    def stop(*words: Any, **named: Any) -> None:
        if place == "train":
            before(*words, **named)
            raise Interrupted("stopped after 64 images; the same command with --resume goes on")
        raise KeyboardInterrupt

    monkeypatch.setattr(run, place, stop)
    folder = tmp_path / "a demo"
    with pytest.raises(KeyboardInterrupt) as raised:
        run.demo(1.25, folder, resume=False, open_page=False, device="cpu", quiet=True)
    command = f"`sfumato demo --minutes 1.25 --out '{folder}' --resume --device cpu` goes on"
    assert command in str(raised.value)
    assert str(raised.value).startswith("stopped after 64 images; `" if place == "train" else "stopped; `")
    if place == "measured":
        assert not (folder / "report.html").exists()
        return
    text = html.unescape((folder / "report.html").read_text())
    assert command in text
    assert "http-equiv" not in text
    assert "reloads" not in text
    assert "after 64 images" in text  # its pictures are still there


def test_an_error_stops_the_page_too_but_a_finished_page_stays(
    faked: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object) -> Path:
        raise FloatingPointError("loss became nan")

    monkeypatch.setattr(run, "finish", fails)
    with pytest.raises(FloatingPointError):
        run.demo(1, tmp_path, resume=False, open_page=False, device="cpu", quiet=True)
    assert "Stopped by an error, loss became nan" in (tmp_path / "report.html").read_text()
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "report.html").write_text("whole")
    monkeypatch.setattr(run, "train", lambda *_, **__: None)
    with pytest.raises(FloatingPointError):
        run.demo(1, tmp_path, resume=True, open_page=False, device="cpu", quiet=True)
    assert (tmp_path / "report.html").read_text() == "whole"


def test_another_demo_in_the_folder_is_refused_with_what_helps_here_and_from_make(tmp_path: Path) -> None:
    plans.budget(10, 100, 100).save(tmp_path)
    for minutes, resume, words in (
        (60.0, True, r"holds a demo of 10 minutes.*--minutes 10 \(`make demo MINUTES=10`\).*--out.*OUT="),
        (10.0, False, r"--resume.*--out.*OUT="),
    ):
        with pytest.raises(ValueError, match=words):
            run.demo(minutes, tmp_path, resume=resume, open_page=False, device="cpu", quiet=True)


def test_make_passes_minutes_and_folder_on() -> None:
    root = Path(__file__).parents[2]
    words = ["make", "-n", "-o", ".venv/installed", "demo", "MINUTES=60", "OUT=runs/an hour"]
    told = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
    assert 'sfumato demo --minutes 60 --out "runs/an hour" --resume' in told


@pytest.fixture(scope="module")
def small() -> Iterator[pytest.MonkeyPatch]:
    """The demo's recipes with tiny networks."""
    load = recipe.load_yaml

    def tiny(source: str) -> dict[str, object]:
        fields = load(source)
        if source not in (plans.AUTOENCODER, plans.DENOISER):
            return fields
        fields["data"] = {"kind": "emoji", "size": 64}
        fields["training"] = {**fields["training"], "batch": 16, "precision": "fp32"}
        if source == plans.AUTOENCODER:
            fields["autoencoder"]["coder"] = CODER
        else:
            fields["backbone"] = BACKBONE
            fields["conditioners"] = {
                "caption": {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 300}
            }
        return fields

    budget = plans.budget
    few = {"first_stage_images": 256, "denoiser_images": 256, "captions": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "load_yaml", tiny)
        patch.setattr(plans, "budget", lambda *a: budget(*a).model_copy(update=few))
        yield patch


class Done(NamedTuple):
    """A finished demo, its page as it was after each preview, and how long it took."""

    folder: Path
    pages: list[str]
    seconds: float


@pytest.fixture(scope="module")
def done(small: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Done:
    pages: list[str] = []
    live = run.live

    def seen(*words: Any) -> Path:
        page = live(*words)
        pages.append(page.read_text())
        return page

    small.setattr(run, "live", seen)
    folder, begin = tmp_path_factory.mktemp("demo"), time.perf_counter()
    run.demo(1, folder, resume=False, open_page=False, device="cpu", quiet=True)
    return Done(folder, pages, time.perf_counter() - begin)


@pytest.mark.slow
def test_the_page_grows_with_every_preview_of_both_stages(done: Done) -> None:
    first = [page for page in done.pages if "Training the first stage." in page]
    second = [page for page in done.pages if "Training the denoiser." in page]
    assert done.pages == first + second
    for pages, folder, title in ((first, run.FIRST, "First stage so far"), (second, run.SECOND, "Growing sharper")):
        previews = sorted(path.stem for path in (done.folder / folder / "samples").glob("*.png"))
        assert len(pages) == len(previews) > 2
        for page, preview in zip(pages, previews, strict=True):
            assert title in page
            assert f"after {int(preview):,} images" in page
            assert 'http-equiv="refresh"' in page


@pytest.mark.slow
def test_the_whole_road_ends_in_a_whole_page(done: Done) -> None:
    text = (done.folder / "report.html").read_text()
    for title in ("Words that training saw", "never saw together", "Free text", "Guidance", "Between two noises", "First stage",
                  "Growing sharper", "Curves", "Caption match", "Numbers and times"):  # fmt: skip
        assert title in text
    assert "http-equiv" not in text
    assert not re.search(r'src="(?!data:)|href=', text)  # one file, nothing fetched
    results = json.loads((done.folder / "results.json").read_text())
    assert {"psnr", "ssim"} <= results["reconstruction"].keys()
    for part in ("train", "held_out"):
        assert {"top1", "top10", "ceiling", "baseline", "chance"} <= results["caption_match"][part].keys()
    seconds = results["seconds"]
    assert seconds["total"] == pytest.approx(done.seconds, abs=0.5)
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"), abs=0.1)


@pytest.mark.slow
def test_every_command_of_the_page_runs(
    done: Done, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (done.folder / "report.html").read_text()
    commands = [shlex.split(html.unescape(words)) for words in re.findall(r"<pre>(.*?)</pre>", page)]
    verbs = [words[1] for words in commands if words[0] == "sfumato"]
    assert verbs.count("generate") == 5
    assert sorted({*verbs}) == ["demo", "evaluate", "generate", "train"]
    assert [words for words in commands if words[0] != "sfumato"] == [["tensorboard", "--logdir", str(done.folder)]]
    monkeypatch.chdir(tmp_path)

    def measured(*_: object) -> None:
        raise ValueError("it begins")

    monkeypatch.setattr(run, "measured", measured)
    for program, verb, *rest in commands:
        if program != "sfumato":
            continue
        extra = {"generate": ["--steps", "1"], "evaluate": ["--steps", "1"], "train": ["--quiet"], "demo": []}[verb]
        code = 0
        try:
            cli.main([verb, *rest, *extra])
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr().err
        assert "it begins" in said if verb == "demo" else code == 0, (verb, rest, said)
    assert len(list((tmp_path / "outputs").glob("*.png"))) == 8 + 8 + 8 + 1 + 10
    for stage in (run.FIRST, run.SECOND):  # the same run again
        again = done.folder / f"{stage}-again" / "metrics.jsonl"
        assert again.read_bytes() == (done.folder / stage / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_second_demo_trains_nothing_and_counts_no_second_twice(done: Done) -> None:
    metrics = (done.folder / run.SECOND / "metrics.jsonl").read_bytes()
    before = json.loads((done.folder / "results.json").read_text())
    pages, begin = len(done.pages), time.perf_counter()
    run.demo(1, done.folder, resume=True, open_page=False, device="cpu", quiet=True)
    passed = time.perf_counter() - begin
    assert (done.folder / run.SECOND / "metrics.jsonl").read_bytes() == metrics
    assert len(done.pages) == pages
    after = json.loads((done.folder / "results.json").read_text())
    again = ("samples", "evaluation")
    assert sum(after["seconds"][name] for name in again) <= passed
    for name in before["seconds"].keys() - {"total", *again}:
        assert after["seconds"][name] == before["seconds"][name]
    assert before["caption_match"] == after["caption_match"]
