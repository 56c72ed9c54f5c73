"""What is said of pictures reaches the network in every task, and windows of a large canvas hear their part of it."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.tasks import given
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.said import fields
from sfumato.windows import Window
from tests.tasks.test_tasks import CONDITIONERS, DIT, array, built, far, hole, noise

BOXES = ["cat 0.1 0.2 0.5 0.9", "red apple 0.5 0 1 0.4"]
STRIPES = Image.fromarray(np.repeat(np.array([0, 1, 2, 1], np.uint8), 8)[None].repeat(32, 0))
TASKS: dict[str, dict[str, Any]] = {
    "generate": {},
    "vary": {"picture": noise(32, 32)},
    "inpaint": {"picture": noise(32, 32), "mask": hole(32, 32, (0, 0, 24, 32))},
    "upscale": {"picture": noise(8, 8), "guidance": 3.0, "consistent": False},
    "layout": {"boxes": BOXES[1:]},
    "semantic": {"map": STRIPES.rotate(90)},
    "panorama": {"width": 32, "height": 32},
}


@pytest.fixture(scope="module", params=["unet", "dit"])
def everything(request: pytest.FixtureRequest) -> Pipeline:
    return built(CONDITIONERS, DIT) if request.param == "dit" else built(CONDITIONERS)


@pytest.fixture(scope="module")
def nothing() -> Pipeline:
    return built({})


@pytest.fixture(scope="module")
def worded(model_folder: Path) -> Pipeline:
    return sfumato.load(model_folder, device="cpu")


@pytest.mark.parametrize("task", TASKS)
def test_classes_boxes_and_maps_matter_in_every_task(everything: Pipeline, task: str) -> None:
    def made(**more: Any) -> Image.Image:
        return getattr(everything, task)(**{**TASKS[task], "seed": 0, "steps": 2, **more})[0]

    plain = made()
    for more in ({"label": "dog"}, {"boxes": BOXES}, {"map": STRIPES}):
        assert far(plain, made(**more)) > 0, more


def test_a_negative_alone_moves_away_from_it(worded: Pipeline) -> None:
    for task in ("generate", "inpaint"):
        plain, away = (
            getattr(worded, task)(**TASKS[task], seed=0, steps=2, guidance=30.0, negative=n)[0] for n in (None, "sun")
        )
        assert far(plain, away) > 0, task


def test_a_conditioner_is_asked_whatever_its_field_is_called() -> None:
    pairs = built({"small": {**CONDITIONERS["small"], "field": "pair", "side": 16}})
    assert pairs.upscale(picture=noise(9, 16), seed=0, steps=1)[0].size == (18, 32)  # trained to make two of one


def test_words_are_said_to_all_who_hear_them_and_classes_to_those_who_know_the_name() -> None:
    words = {"kind": "text", "width": 8, "layers": 1, "heads": 2, "vocabulary": 60}
    texts = built({"a": words, "b": {**words, "field": "alt"}}, learned=["red"])
    assert fields(texts.model, ["red"], None) == {"caption": ["red"], "alt": ["red"]}
    style = {**CONDITIONERS["class"], "field": "style", "labels": ["oil", "ink"]}
    two = built({"a": CONDITIONERS["class"], "b": style})
    assert fields(two.model, [None], ["dog"]) == {"label": ["dog"]}
    assert fields(two.model, [None], ["ink", "cat"]) == {"style": ["ink"], "label": ["cat"]}
    assert fields(two.model, [None], ["0"]).keys() == {"label"}  # a number is of the one that is called so
    with pytest.raises(ValueError, match="unknown label 'tree'"):
        two.generate(label="tree", seed=0, steps=1)


def test_of_two_maps_none_is_told_in_silence() -> None:
    grounds, things = ({**CONDITIONERS["semantic"], "field": field} for field in ("grounds", "things"))
    with pytest.raises(ValueError, match=r"semantic maps in grounds and things, and a request says one.* 'map'"):
        built({"a": grounds, "b": things}).semantic(map=STRIPES, seed=0, steps=1)
    meant = built({"a": grounds, "b": CONDITIONERS["semantic"]})
    assert meant.semantic(map=STRIPES, seed=0, steps=1)[0].size == (32, 32)


def test_windows_hear_what_the_whole_bundle_says_of_them(everything: Pipeline) -> None:
    said: dict[str, list[Any]] = {
        "boxes": [[("cat", 0.1, 0.2, 0.5, 0.9)], None],
        "label": ["dog", "cat"],
        "map": [torch.randint(0, 3, (32, 96)), None],
        "lowres": [torch.rand(3, 8, 24), torch.rand(3, 8, 24)],
        "masked": [None, (torch.rand(3, 32, 96), torch.ones(1, 32, 96))],
    }
    bundle = everything.model.conditions
    over = bundle.over(said, 2, size=(4, 12))
    for window in (None, Window(0, 0, 4, 4), Window(0, 6, 4, 4)):
        for a, b in zip(over(window).parts(), bundle(said, 2, size=(4, 12), window=window).parts(), strict=True):
            assert a is not None
            assert torch.equal(a, b)  # type: ignore[arg-type]


def test_a_large_picture_goes_through_the_first_stage_once_for_all_windows(
    everything: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, hidden = [], everything.model.conditions.reader("masked")
    encode = hidden.encode
    monkeypatch.setattr(hidden, "encode", lambda x: seen.append(tuple(x.shape)) or encode(x))
    picture = noise(96, 64)
    everything.inpaint(picture=picture, mask=hole(96, 64, (8, 8, 80, 60)), seed=0, steps=1, label="cat")
    assert len(seen) <= 2  # what is kept is on both sides of guidance; the windows are 15


def test_large_layouts_are_made_in_windows(everything: Pipeline) -> None:
    seen: set[tuple[int, ...]] = set()
    hook = everything.model.denoiser.register_forward_pre_hook(lambda _, given: seen.add(tuple(given[0].shape[-2:])))
    try:
        assert everything.layout(boxes=BOXES, width=96, height=40, seed=0, steps=1)[0].size == (96, 40)
    finally:
        hook.remove()
    assert seen == {(4, 4)}


@pytest.mark.parametrize("task", ["generate", "layout", "panorama"])
def test_any_size_can_be_asked(everything: Pipeline, task: str) -> None:
    def made(width: int, height: int, boxes: list[tuple[Any, ...]]) -> Image.Image:
        own = {"boxes": boxes} if task == "layout" else {}
        found: Image.Image = getattr(everything, task)(**own, width=width, height=height, seed=0, steps=2)[0]
        return found

    corners = (0.1, 0.2, 0.5, 0.9)
    small = made(50, 37, [("cat", *corners)])
    large = made(56, 40, [("cat", *(c * share for c, share in zip(corners, 2 * (50 / 56, 37 / 40), strict=True)))])
    assert small.size == (50, 37)
    assert np.abs(array(small).astype(int) - array(large.crop((0, 0, 50, 37)))).max() <= 1


def test_inversion_holds_the_map_on_its_way_up_and_reads_a_class_as_source(everything: Pipeline) -> None:
    start = everything.generate(seed=1, steps=3, map=STRIPES)[0]
    settings: dict[str, Any] = {"picture": start, "seed": 0, "steps": 20, "guidance": 1.0, "strength": 0.9}
    told = {"map": STRIPES, "boxes": BOXES}
    kept = everything.vary(**settings, **told, invert=True)[0]
    lost = everything.vary(**settings, **told)[0]
    shown = everything.vary(**{**settings, "strength": 0.01, "steps": 1}, **told)[0]
    assert far(kept, shown) < 0.4 * far(lost, shown)
    cat, dog = (everything.vary(**settings, invert=True, source=s)[0] for s in ("cat", "dog"))
    assert far(cat, dog) > 0
    with pytest.raises(ValueError, match="nearest: cat"):
        everything.vary(**settings, invert=True, source="cta")


def test_a_jpeg_mask_keeps_what_its_fringe_would_open(tmp_path: Path) -> None:
    drawn = hole(64, 64, (13, 9, 41, 50))
    drawn.save(tmp_path / "a.jpg", quality=75)
    plain, fringed = given.mask(drawn, (64, 64)), given.mask(tmp_path / "a.jpg", (64, 64))
    with Image.open(tmp_path / "a.jpg") as opened:
        assert torch.equal(given.mask(opened, (64, 64)), fringed)
        raw = torch.from_numpy(np.array(opened)) / 255.0
    assert float((raw > 0).float().mean()) > 1.1 * float((plain > 0).float().mean())  # or the test shows nothing
    assert float(((fringed > 0) != (plain[0] > 0)).float().mean()) < 0.02


def test_every_picture_can_be_made_again_from_its_settings(worded: Pipeline) -> None:
    for request in ({"variation_seed": 9, "variation": 0.4}, {"until": 12}):
        made = worded.generate(seed=3, count=3, steps=2, **request)
        for k, picture in enumerate(made):
            told = json.loads(picture.info["sfumato"])
            again = worded.generate(
                **{name: told[name] for name in (*request, "seed", "count", "steps") if name in told}
            )
            assert far(again[told.get("place", 0)], picture) < 0.1
            share = 0.4 if "variation" in request else k / 2
            assert f"Variation seed strength: {share:g}" in picture.info["parameters"]


def test_a_model_that_always_was_told_asks_for_it_and_guidance_leaves_it_on_both_sides() -> None:
    strict = built({"class": {**CONDITIONERS["class"], "dropout": 0.0, "always": True}})
    with pytest.raises(ValueError, match="this model was told label in every example of its training"):
        strict.generate(seed=0, steps=1)
    plain, guided = (strict.generate(seed=0, steps=2, label="cat", guidance=g)[0] for g in (1.0, 5.0))
    assert far(plain, guided) == 0
    loose = built({"class": {**CONDITIONERS["class"], "dropout": 0.0}})  # some of whose examples may have said nothing
    assert loose.generate(seed=0, steps=1)[0].size == (32, 32)
    dropped = built({"class": {**CONDITIONERS["class"], "dropout": 0.1, "always": True}})
    assert dropped.generate(seed=0, steps=1)[0].size == (32, 32)
    holes = built({"hole": {**CONDITIONERS["hole"], "dropout": 0.0, "always": True}})
    assert holes.generate(seed=0, steps=1)[0].size == (32, 32)  # all of it is a hole


def test_options_that_would_do_nothing_are_refused(everything: Pipeline) -> None:
    with pytest.raises(ValueError, match="say which as variation_seed"):
        everything.generate(variation=0.5)
    with pytest.raises(ValueError, match="takes no step twice"):
        everything.inpaint(**TASKS["inpaint"], resample=2)


def test_a_box_names_its_class_by_number_too(everything: Pipeline) -> None:
    said = [[f"{c} 0.1 0.2 0.5 0.9"] for c in ("red apple", "1")]
    said += [[(1, 0.1, 0.2, 0.5, 0.9)], [{"label": "1", "box": [0.1, 0.2, 0.5, 0.9]}], [["1", 0.1, 0.2, 0.5, 0.9]]]
    first, *others = (everything.layout(boxes=b, seed=0, steps=2)[0] for b in said)
    assert [far(first, other) for other in others] == [0] * 4


def test_guidance_of_nothing_is_told_and_no_picture_says_it(
    worded: Pipeline, everything: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    told = "nothing is said that guidance could amplify"
    picture = worded.generate(seed=0, steps=2)[0]
    assert json.loads(picture.info["sfumato"])["guidance"] == 1.0
    assert "CFG scale: 1," in picture.info["parameters"]
    assert told not in caplog.text  # three is what requests have by themselves
    for more in ({"guidance": 9.0}, {"interval": (0.2, 0.8)}):
        again = worded.generate(seed=0, steps=2, **more)[0]
        assert far(picture, again) == 0
        assert caplog.text.count(told) == 1
        caplog.clear()
    for said in ({"prompt": "sun"}, {"negative": "sun"}):
        again = worded.generate(seed=0, steps=2, guidance=9.0, **said)[0]
        assert json.loads(again.info["sfumato"])["guidance"] == 9.0
    everything.upscale(**{**TASKS["upscale"], "seed": 0, "steps": 1, "guidance": 5.0})
    assert told in caplog.text


def test_overlap_of_no_windows_is_refused_and_so_are_the_few_steps_of_what_is_free() -> None:
    words = {"words": {"kind": "text", "width": 8, "layers": 1, "heads": 2, "vocabulary": 60}}
    quick = built(words, learned=["red"], steps=2)
    with pytest.raises(ValueError, match="leave whole or overlap out"):
        quick.panorama(width=48, whole=True, overlap=0.8)
    gone = Image.new("L", (32, 32), 255)
    made = [quick.inpaint(picture=noise(32, 32), mask=gone, method=m, seed=0, resample=1)[0] for m in ("auto", "free")]
    assert [json.loads(picture.info["sfumato"])["steps"] for picture in made] == [25, 25]
    assert json.loads(quick.generate(seed=0)[0].info["sfumato"])["steps"] == 2


def test_pictures_tell_the_precision_they_were_made_in(worded: Pipeline) -> None:
    for dtype, name in ((torch.float64, "fp64"), (torch.bfloat16, "bf16")):
        assert Pipeline(copy.deepcopy(worded.model).to(dtype), "x", dtype).beside == {"precision": name}
