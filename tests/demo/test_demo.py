"""The demo in small: a plan that scales, a whole page, a resume that does not train again."""

import json
import re
from pathlib import Path

import pytest

from sfumato.demo import plan as plans
from sfumato.demo import run
from sfumato.demo.report import Page
from sfumato.training import recipe
from tests.conftest import CODER


def test_minutes_become_images_in_proportion_and_survive_a_round_trip(tmp_path: Path) -> None:
    ten, hour = plans.budget(10, 200, 180), plans.budget(60, 200, 180)
    assert 5 < hour.denoiser_images / ten.denoiser_images < 7
    assert ten.first_stage_images / 200 + ten.denoiser_images / 180 < 540
    assert plans.budget(0.5, 1, 1).denoiser_images > 0
    ten.save(tmp_path)
    assert plans.Plan.load(tmp_path) == ten
    first, second = plans.recipes(ten, tmp_path)
    assert first.training.images == ten.first_stage_images
    assert second.autoencoder == tmp_path / "first-stage" / "model"


def test_a_page_holds_its_pictures_and_reloads_only_while_it_grows(tmp_path: Path) -> None:
    page = Page(tmp_path, status="Training <it>.")
    page.heading("A & B")
    text = page.write().read_text()
    assert 'http-equiv="refresh"' in text
    assert "Training &lt;it&gt;." in text
    assert "A &amp; B" in text
    assert 'http-equiv="refresh"' not in Page(tmp_path, live=False).write().read_text()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's recipes with tiny networks."""
    load = recipe.load_yaml

    def tiny(source: str) -> dict[str, object]:
        fields = load(source)
        fields["data"] = {"kind": "emoji", "size": 64}
        fields["training"] = {**fields["training"], "batch": 16, "precision": "fp32"}
        if source == plans.AUTOENCODER:
            fields["autoencoder"]["coder"] = CODER
        else:
            fields["backbone"] = {
                "kind": "unet",
                "width": 16,
                "multipliers": [1, 2],
                "blocks": 1,
                "attention": [2],
                "groups": 8,
            }
            fields["conditioners"] = {
                "caption": {"kind": "text", "width": 16, "layers": 1, "heads": 2, "vocabulary": 300}
            }
        return fields

    monkeypatch.setattr(recipe, "load_yaml", tiny)
    budget = plans.budget
    monkeypatch.setattr(
        plans,
        "budget",
        lambda *a: budget(*a).model_copy(update={"first_stage_images": 256, "denoiser_images": 256, "captions": 4}),
    )


@pytest.mark.slow
def test_the_whole_road_ends_in_a_whole_page(small: None, tmp_path: Path) -> None:
    page = run.demo(1, tmp_path, resume=False, open_page=False, device="cpu", quiet=True)
    text = page.read_text()
    for title in ("Words that training saw", "never saw together", "Free text", "Guidance", "Between two noises", "First stage",
                  "Growing sharper", "Curves", "Caption match", "Numbers and times"):  # fmt: skip
        assert title in text
    assert "http-equiv" not in text
    assert not re.search(r'src="(?!data:)|href=', text)  # one file, nothing fetched
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["seconds"]["total"] > 0
    assert {"psnr", "ssim"} <= results["reconstruction"].keys()
    for part in ("train", "held_out"):
        assert {"top1", "top10", "ceiling", "baseline", "chance"} <= results["caption_match"][part].keys()
    metrics = (tmp_path / "denoiser" / "metrics.jsonl").read_bytes()
    run.demo(1, tmp_path, resume=True, open_page=False, device="cpu", quiet=True)
    assert (tmp_path / "denoiser" / "metrics.jsonl").read_bytes() == metrics
