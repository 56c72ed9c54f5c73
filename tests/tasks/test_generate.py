"""Pictures from requests: the same for the same seed, whatever the batch; refused with a sentence where they must be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sfumato
from sfumato import image
from sfumato.diffusion.names import SAMPLERS
from sfumato.evaluation.reconstruction import psnr
from sfumato.tasks import metadata, walk
from sfumato.tasks.forms import TITLES
from sfumato.tasks.generate import between
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.requests import Generate, Layout
from tests.tasks.test_tasks import built, far


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> Pipeline:
    return sfumato.load(model_folder, device="cpu")


def tensors(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.stack([image.to_tensor(p) for p in pictures])


def test_a_request_gives_as_many_pictures_as_it_asks(pipeline: Pipeline) -> None:
    assert [p.size for p in pipeline.generate(prompt="red heart", count=3, steps=2, seed=0)] == [(32, 32)] * 3
    assert len(pipeline.generate(prompt=["red heart", "cat face"], steps=1)) == 2
    assert pipeline.generate(steps=1, width=48, height=16)[0].size == (48, 16)


def test_picture_k_is_the_request_for_k_alone_whatever_the_batch(pipeline: Pipeline) -> None:
    whole = tensors(pipeline.generate(prompt="red heart", count=3, seed=5, steps=3))
    small = tensors(pipeline.generate(prompt="red heart", count=3, seed=5, steps=3, batch=2))
    alone = tensors(pipeline.generate(prompt="red heart", seed=6, steps=3))
    assert float(psnr(whole, small).min()) > 60
    assert float(psnr(whole[1:2], alone).min()) > 60
    assert float(psnr(whole[:1], whole[1:2])) < 60


def test_a_saved_and_loaded_model_samples_the_same_bits(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.model.save(tmp_path / "again")
    again = sfumato.load(tmp_path / "again", device="cpu")
    one, two = (tensors(p.generate(prompt="sun", seed=1, steps=3)) for p in (pipeline, again))
    assert torch.equal(one, two)


def test_a_sampler_with_its_grid_is_said_in_one_as_others_write_it() -> None:
    asked = Generate(sampler="DPM++ 2M Exponential")
    assert (asked.sampler, asked.grid) == ("dpmpp_2m", "exponential")
    assert Generate(sampler="Euler a").sampler == "euler_ancestral"  # whose last word is no grid
    with pytest.raises(ValueError, match="unknown sampler 'DPM\\+\\+ 2M Karras'"):
        Generate(sampler="DPM++ 2M Karras", grid="even")  # which of both?


@pytest.mark.parametrize(
    "words", ["red apple 0.1 0.2 0.5 0.9", " red  apple 0.1,0.2,0.5,0.9", "red apple, 0.1, 0.2, 0.5, 0.9,"]
)
def test_boxes_are_said_with_commas_or_without(words: str) -> None:
    assert Layout(boxes=[words]).boxes == [("red apple", 0.1, 0.2, 0.5, 0.9)]


@pytest.mark.parametrize("words", ["0.1 0.2 0.5 0.9", " 0.1 0.2 0.5 0.9", "dog 0.1 0.2 0.5", "dog 0.1 0.2 0.5 x", ""])
def test_what_is_no_box_is_said_how_one_looks(words: str) -> None:
    with pytest.raises(ValueError, match="a class and four corners"):
        Layout(boxes=[words])


@pytest.mark.parametrize("sampler", [*SAMPLERS, "DPM++ 2M"])
def test_words_guidance_negatives_and_samplers_matter(pipeline: Pipeline, sampler: str) -> None:
    def make(**more: object) -> torch.Tensor:
        steps = {} if sampler == "adaptive" else {"steps": 4}  # which finds its own
        return tensors(pipeline.generate(**{"prompt": "red heart", "seed": 3, "sampler": sampler, **steps, **more}))

    base = make()
    for more in (
        {"prompt": "blue car"},
        {"guidance": 40.0},
        {"negative": "sun", "guidance": 40.0},
        {"seed": 4},
    ):
        assert not torch.equal(base, make(**more)), more
    assert not torch.equal(make(guidance=40.0), make(negative="sun", guidance=40.0))


def test_the_prompt_attracts_and_the_negative_repels(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, Any]] = []
    real = walk.steer

    def steer(model: Any, given: Any, other: Any, *more: Any) -> Any:
        told.append((given.tokens, other.tokens))
        return real(model, given, other, *more)

    monkeypatch.setattr(walk, "steer", steer)
    pipeline.generate(prompt="red heart", negative="sun", seed=0, steps=1)
    own, other = (pipeline.model.conditions({"caption": [w]}, 1).tokens for w in ("red heart", "sun"))
    assert torch.allclose(told[0][0], own, atol=1e-6)
    assert torch.allclose(told[0][1], other, atol=1e-6)
    assert not torch.allclose(own, other, atol=1e-2)


def test_guidance_rests_outside_of_its_interval(pipeline: Pipeline) -> None:
    rows: list[int] = []  # of each evaluation: two branches where guidance acts
    hook = pipeline.model.denoiser.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))

    def make(**more: object) -> torch.Tensor:
        rows.clear()
        return tensors(pipeline.generate(**{"prompt": "red heart", "seed": 3, "steps": 4, "guidance": 40.0, **more}))

    try:
        everywhere = make()
        assert rows == [2, 2, 2, 2]
        assert torch.equal(make(interval="0,1"), everywhere)
        make(interval=(0.2, 0.9))  # of the times 1, 0.79, 0.31 and 0.02
        assert rows == [1, 2, 2, 1]
        assert torch.equal(make(interval=(0.5, 0.51)), make(guidance=1.0))
    finally:
        hook.remove()
    for wrong in ("0.7,0.4", "0.5", "a,b", (0.2, 1.5)):
        with pytest.raises(ValueError, match="interval"):
            make(interval=wrong)


def test_settings_travel_inside_the_picture(pipeline: Pipeline, tmp_path: Path) -> None:
    request = {
        "prompt": "grinning face: “wide”",
        "negative": "sun",
        "seed": 9,
        "steps": 2,
        "guidance": 2.5,
        "count": 2,
    }
    second = pipeline.generate(**request)[1]
    metadata.save(second, tmp_path / "a.png")
    found = metadata.read(tmp_path / "a.png")
    assert found["prompt"] == request["prompt"]
    assert (found["seed"], found["steps"], found["guidance"], found["width"]) == (10, 2, 2.5, 32)
    with Image.open(tmp_path / "a.png") as opened:
        text = opened.info["parameters"]
    assert text.splitlines()[1] == "Negative prompt: sun"
    assert "Steps: 2, Sampler: DEIS, Schedule type: Karras, CFG scale: 2.5, Seed: 10, Size: 32x32" in text
    assert len(found["model_hash"]) == 10
    assert f"Model hash: {found['model_hash']}" in text
    known = {k: v for k, v in found.items() if k in Generate.model_fields}
    assert torch.equal(tensors(pipeline.generate(**known)), tensors([second]))
    Image.new("RGB", (2, 2)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="no settings"):
        metadata.read(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": "sun", "negative": "heart " * 3000}, "shorten it"),
        ({"prompt": "heart " * 3000}, "shorten it"),
        ({"steps": 0}, "steps: .*greater than or equal to 1"),
        ({"label": "Cars"}, "the model knows Activities"),
        ({"sampler": "eular"}, "known: ddim, "),
        ({"grid": "karas"}, "known: even, "),
        ({"width": 16384, "height": 16384}, "no more than 256x256"),
        ({"promt": "sun"}, "promt: unknown key"),
        ({"prompt": ["a", "b"], "count": 3}, "leave count out"),
        ({"seed": -2}, "seed"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    pipeline: Pipeline, settings_: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pipeline.generate(**settings_)


def test_a_damaged_model_folder_is_noticed_before_anything_is_made(model_folder: Path, tmp_path: Path) -> None:
    for name in (
        "denoiser.safetensors",
        "autoencoder/weights.safetensors",
        "conditioners/caption/tokenizer.json",
    ):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(model_folder, folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"{Path(name).name} is missing"):
            sfumato.load(folder)
        (folder / name).write_bytes(b"\0" * 20)
        with pytest.raises(ValueError, match="is damaged"):
            sfumato.load(folder)
    with pytest.raises(ValueError, match="there is no model folder"):
        sfumato.load(tmp_path / "nothing")


@given(st.floats(0, 1))
@settings(deadline=None)
def test_between_two_noises_there_is_noise_of_the_same_length(share: float) -> None:
    a, b = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    length = float(between(a, b, share).norm())
    assert 0.98 * float(a.norm()) < length < 1.02 * float(b.norm())


def test_a_prompt_that_the_last_batch_cannot_read_is_refused_before_the_first_is_made(pipeline: Pipeline) -> None:
    request = Generate(prompt=["sun", "heart " * 3000], steps=1, batch=1)
    with pytest.raises(ValueError, match="shorten it"):
        next(pipeline.stream(request))


def test_samplers_are_told_and_taken_by_the_names_that_users_know() -> None:
    assert set(TITLES) == set(SAMPLERS)
    beside = {"width": 8, "height": 8, "model": "m", "model_hash": "0", "version": "0"}
    for name, title in TITLES.items():
        told = metadata.infotext({**Generate(sampler=title).model_dump(), **beside}, (8, 8))
        assert Generate(sampler=title).sampler == Generate(sampler=title.upper()).sampler == name
        assert f"Sampler: {title}, Schedule type: Karras, " in told


def test_a_request_and_fields_beside_it_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="not both; got also steps"):
        pipeline.generate(Generate(prompt="sun"), steps=1)


def test_seeds_follow_one_another_and_random_ones_differ() -> None:
    assert Generate(count=3, seed=7).seeds() == [7, 8, 9]
    assert Generate().seeds() != Generate().seeds()
    assert json.loads(Generate(prompt="a").model_dump_json())["prompt"] == ["a"]


def test_the_precision_is_told_where_it_is_not_float32(model_folder: Path) -> None:
    for name, told in (("fp32", None), ("bf16", "bf16")):
        made = Pipeline.load(model_folder, device="cpu", precision=name).generate(prompt="sun", steps=1, seed=0)[0]
        assert json.loads(made.info["sfumato"]).get("precision") == told


def test_a_sampler_that_finds_its_steps_is_told_none(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="sampler adaptive finds its own steps; leave steps out"):
        pipeline.generate(sampler="adaptive", steps=4, seed=0)
    made = pipeline.generate(sampler="adaptive", seed=0)[0]
    told = json.loads(made.info["sfumato"])
    assert "steps" not in told
    assert told["sampler"] == "adaptive"
    assert "Sampler: DPM adaptive" in made.info["parameters"]
    assert "Steps" not in made.info["parameters"]
    quick = built({}, steps=1)  # whose one step would be one estimate from pure noise
    assert far(quick.generate(sampler="adaptive", seed=0)[0], built({}).generate(sampler="adaptive", seed=0)[0]) == 0
