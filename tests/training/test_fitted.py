"""Conditioners and their data: what no picture has is said before training, and classes are those of the field itself."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.backbones.base import BackboneConfig
from sfumato.conditioning.base import ConditionerConfig
from sfumato.data.base import Data
from sfumato.model import LatentDiffusion
from sfumato.tasks.pipeline import Pipeline
from sfumato.training import recipe
from sfumato.training.diffusion import Denoising
from sfumato.training.fitted import fitted, networks
from sfumato.training.run import denoising, train
from tests.conftest import diffusion_recipe
from tests.data.test_renumbered import pictures

LOWRES = {"kind": "lowres", "width": 2, "told": 8}
LABEL = {"kind": "label", "width": 8}


def folder(path: Path, maps: bool = False, boxes: bool = False) -> Path:
    """Eight pictures in two classes, each with a map or a box where that is asked for."""
    rows: list[dict[str, Any]] = []
    for k in range(8):
        rng = np.random.default_rng(k)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(_made(path / f"{k}.png"))
        rows.append({"file_name": f"{k}.png", "label": "ab"[k % 2]})
        if maps:
            Image.fromarray(np.full((32, 32), k % 2, np.uint8)).save(_made(path / "maps" / f"{k}.png"))
            rows[-1]["map"] = f"maps/{k}.png"
        if boxes:
            rows[-1]["boxes"] = [{"label": 3, "box": [0, 0, 0.5, 0.5]}] if k else []
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def read(path: Path, conditioner: dict[str, Any], **data: Any) -> recipe.DiffusionRecipe:
    fields = {
        "stage": "diffusion",
        "autoencoder": "nowhere",
        "backbone": {"kind": "unet"},
        "conditioners": {"one": conditioner},
        "data": {"kind": "folder", "path": str(path), "size": 32, "held_out": 0.3, **data},
        "training": {"images": 8},
    }
    found = recipe.parse(fields)
    assert isinstance(found, recipe.DiffusionRecipe)
    return found


def settled(asked: recipe.DiffusionRecipe) -> Any:
    return fitted(asked, Data.model_validate(asked.data).open("train"))[0].conditioners["one"]


@pytest.mark.parametrize(
    ("conditioner", "words"),
    [
        ({"kind": "masked"}, r"no picture of the data has 'masked'.*data\.masks"),
        ({"kind": "lowres"}, r"no picture of the data has 'lowres'.*data\.degrade"),
        ({"kind": "reference", "embedding": 4}, "no picture of the data has 'reference'"),
        ({"kind": "map", "classes": 2}, "no picture of the data has 'map'.*give the pictures a map"),
        ({"kind": "boxes", "labels": ["a"]}, "no picture of the data has 'boxes'"),
        ({"kind": "label", "labels": ["a", "b"], "field": "sort"}, "no picture of the data has 'sort'"),
        ({"kind": "text"}, "no picture of the data has 'caption'.*NAME.txt"),
    ],
)
def test_a_field_that_no_picture_has_is_refused_with_the_remedy(
    tmp_path: Path, conditioner: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        settled(read(folder(tmp_path), conditioner))


def test_fields_that_are_made_or_always_told_are_there(tmp_path: Path) -> None:
    path = folder(tmp_path, maps=True)
    settled(read(path, {"kind": "masked"}, masks={}))
    assert settled(read(path, {"kind": "lowres"}, degrade={"factor": 4})).side == 8
    settled(read(path, {"kind": "frame"}))
    assert settled(read(path, {"kind": "map", "classes": 2})).classes == 2
    assert settled(read(path, {"kind": "label"})).labels == ("a", "b")


def test_classes_of_pictures_are_not_those_of_maps_and_boxes(tmp_path: Path) -> None:
    path = folder(tmp_path, maps=True, boxes=True)
    with pytest.raises(ValueError, match="give `classes`"):
        settled(read(path, {"kind": "map"}))
    with pytest.raises(ValueError, match="with named classes"):
        settled(read(path, {"kind": "boxes"}))


@pytest.mark.parametrize(("conditioners", "rows"), [({"small": LOWRES}, 16), ({"small": LOWRES, "class": LABEL}, 32)])
def test_previews_amplify_what_is_said_and_no_picture_that_is_given(
    first_stage: Path, tmp_path: Path, conditioners: dict[str, Any], rows: int
) -> None:
    asked = read(folder(tmp_path / "pictures"), {"kind": "label"}, degrade={"factor": 4})
    backbone = {"kind": "unet", "width": 8, "multipliers": [1], "blocks": 1, "attention": [], "groups": 1}
    parsed = recipe.parse(
        {
            **recipe.dump(asked),
            "autoencoder": str(first_stage),
            "conditioners": conditioners,
            "backbone": backbone,
            "cache": False,
        }
    )
    assert isinstance(parsed, recipe.DiffusionRecipe)
    objective = denoising(parsed, tmp_path, torch.device("cpu"))
    seen: list[int] = []
    said: list[set[str]] = []
    conditions = objective.model.conditions
    objective.model.denoiser.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    conditions.register_forward_pre_hook(lambda _, given: said.append(set(given[0])))
    objective.preview()
    assert seen == 12 * [rows]  # one call a step
    assert {"lowres"} in said or rows == 16  # what guidance moves away from has the same small pictures
    assert len(said) == rows // 16  # and nothing is worked out that no step asks for


@pytest.mark.parametrize(("steps", "taken"), [(None, 12), (4, 4), (50, 12)])
def test_previews_take_the_few_steps_that_a_model_is_sampled_in(
    first_stage: Path, tmp_path: Path, steps: int | None, taken: int
) -> None:
    asked = diffusion_recipe(first_stage).model_copy(update={"steps": steps})
    objective = denoising(asked, tmp_path, torch.device("cpu"))
    seen: list[int] = []
    objective.model.denoiser.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    objective.preview()
    assert len(seen) == taken


def test_tokens_that_nobody_would_hear_are_refused(first_stage: Path, tmp_path: Path) -> None:
    asked = diffusion_recipe(first_stage)
    alone = asked.backbone.model_copy(update={"attend": "self"})
    data = Data.model_validate({"kind": "folder", "path": str(pictures(tmp_path / "data", "cat", "dog")), "size": 32})

    def made(door: str) -> Any:
        label = ConditionerConfig.model_validate({"kind": "label", "width": 8, "door": door})
        more = {"backbone": alone, "conditioners": {"class": label}, "data": data}
        return denoising(asked.model_copy(update=more), tmp_path / "run", torch.device("cpu"))

    assert made("vector").model.conditions.sizes.vector == 8
    with pytest.raises(
        ValueError, match="conditioner 'class' tells tokens, and a network with attend: self hears none"
    ):
        made("tokens")


def test_one_token_of_every_picture_is_warned_of_where_no_other_is_told(
    first_stage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = diffusion_recipe(first_stage)
    data = Data.model_validate({"kind": "folder", "path": str(pictures(tmp_path / "data", "cat", "dog")), "size": 32})
    for picture in (tmp_path / "data").rglob("*.png"):
        picture.with_suffix(".txt").write_text("a picture")

    def said(name: str, door: str, more: dict[str, Any] | None = None) -> str:
        told = {name: {"kind": "label", "width": 8, "door": door}, **(more or {})}
        conditioners = {n: ConditionerConfig.model_validate(one) for n, one in told.items()}
        changed = asked.model_copy(update={"conditioners": conditioners, "data": data, "cache": False})
        caplog.clear()
        denoising(changed, tmp_path / "run", torch.device("cpu"))
        return caplog.text

    assert "conditioner 'breed' tells one token of every picture" in said("breed", "tokens")
    assert "door: vector tells it for less" in said("sort", "tokens")  # it is said once of each name
    assert "one token" not in said("vector", "vector")
    words = {"caption": {"kind": "text", "width": 8, "layers": 1, "heads": 2, "vocabulary": 300}}
    assert "one token" not in said("beside", "tokens", words)


def test_what_is_told_by_one_token() -> None:
    label = ConditionerConfig.model_validate({"kind": "label", "door": "tokens"})
    assert label.lone([0, "a", [1], [2, 2]])
    assert not label.lone([0, [1, 2]])
    assert not label.model_copy(update={"door": "vector"}).lone([0])
    near = ConditionerConfig.model_validate({"kind": "reference", "door": "tokens"})
    assert near.learn([np.zeros(4)], ())[0].lone([])
    assert not near.learn([np.zeros((2, 4))], ())[0].lone([])


def test_whether_every_picture_says_a_condition_is_kept_with_the_model(tmp_path: Path) -> None:
    where = folder(tmp_path)
    assert settled(read(where, {"kind": "masked"}, masks={})).always is True
    assert settled(read(where, {"kind": "lowres"}, degrade={"factor": 4})).always is True
    classes = tmp_path / "classes"
    for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"):
        (classes / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (len(name), ord(name[-5]), 90)).save(classes / name)
    assert settled(read(classes, {"kind": "label"}, held_out=0)).always is True
    (classes / "cat/a.txt").write_text("a cat")
    assert settled(read(classes, {"kind": "text"}, held_out=0)).always is False


def test_so_is_whether_every_picture_has_a_map_or_a_pair(tmp_path: Path) -> None:
    where = folder(tmp_path, maps=True)
    semantic, pair = {"kind": "map", "width": 2, "classes": 2}, {"kind": "lowres", "width": 2, "field": "pair"}
    assert settled(read(where, semantic)).always is True
    rows = [json.loads(line) for line in (where / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        row["pair"] = row["map"]
    del rows[3]["map"]
    (where / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert settled(read(where, semantic, held_out=0)).always is False
    assert settled(read(where, pair, held_out=0)).always is True


def test_small_pictures_that_were_made_worse_are_known_as_such(tmp_path: Path) -> None:
    where = folder(tmp_path)
    assert settled(read(where, LOWRES, degrade={"factor": 4})).plain is True
    assert settled(read(where, LOWRES, degrade={"factor": 4, "how": "blind"})).plain is False
    assert settled(read(where, {**LOWRES, "plain": True}, degrade={"factor": 4, "how": "blind"})).plain is True


@pytest.mark.parametrize(("name", "more"), [("photo-text", {}), ("photo-layout", {"boxes": True})])
def test_recipes_of_words_and_boxes_fit_pictures_of_ones_own(name: str, more: dict[str, bool], tmp_path: Path) -> None:
    where = folder(tmp_path, **more)
    told = (where / "metadata.jsonl").read_text().replace('"label": 3', '"label": "thing"')
    rows = [json.loads(line) | {"text": "a picture"} for line in told.splitlines()]
    (where / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = recipe.read(name, [f"data.path={where}", "data.held_out=0.3"])
    assert isinstance(asked, recipe.DiffusionRecipe)
    config, _ = fitted(asked, asked.data.open("train"), asked.data.open("held_out"))
    assert [one.kind_name() for one in config.conditioners.values()] == [{"photo-text": "text"}.get(name, "boxes")]


def test_networks_that_conditioners_listen_to_are_told_by_their_hashes() -> None:
    looks = SimpleNamespace(sha256="a")
    several = {"near": SimpleNamespace(looks=looks), "words": SimpleNamespace(sha256="b"), "class": SimpleNamespace()}
    config = SimpleNamespace(conditioners={**several, "unseen": SimpleNamespace(looks=None)})
    assert networks(SimpleNamespace(config=config)) == {"near": "a", "words": "b"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sides", "words"), [((16, 15), "the pair of images/7.png is not 2 times smaller"), ((8, 8), "3 times")]
)
def test_small_pictures_of_several_magnifications_are_refused(
    sides: tuple[int, int], words: str, tmp_path: Path
) -> None:
    whole = 32 if sides[0] == 16 else 24
    for k in range(8):
        noisy = np.random.default_rng(k).integers(0, 256, (whole, whole, 3), dtype=np.uint8)
        shown = Image.fromarray(noisy)
        shown.save(_made(tmp_path / "images" / f"{k}.png"))
        side = sides[k == 7]
        shown.resize((side, side)).save(_made(tmp_path / "pairs" / f"{k}.png"))
    asked = read(tmp_path, {**LOWRES, "field": "pair"}, size=16, held_out=0.0)
    with pytest.raises(ValueError, match=words):
        settled(asked)


def test_a_field_is_amplified_for_all_who_hear_it_or_for_none(tmp_path: Path) -> None:
    asked = read(folder(tmp_path), LABEL)
    two = {"a": {**LABEL, "dropout": 0.0}, "b": {**LABEL, "dropout": 0.1}}
    divided = asked.model_copy(
        update={"conditioners": {n: ConditionerConfig.model_validate(c) for n, c in two.items()}}
    )
    with pytest.raises(ValueError, match="conditioners 'a' and 'b' both hear label, and only 'b' is trained without"):
        fitted(divided, Data.model_validate(asked.data).open("train"))


@pytest.mark.parametrize("name", ["type", "half", "a.b", "my/caption", ""])
def test_a_conditioner_s_name_is_a_module_s_and_a_folder_s(name: str, tmp_path: Path) -> None:
    fields = recipe.dump(read(folder(tmp_path), LABEL))
    with pytest.raises(ValueError, match="a conditioner cannot be called"):
        recipe.parse({**fields, "conditioners": {name: LABEL}})


def test_prompts_are_previewed_whatever_the_words_field_is_called(first_stage: Path, tmp_path: Path) -> None:
    words = {"kind": "text", "width": 8, "layers": 1, "heads": 2, "vocabulary": 60, "field": "title"}
    path = folder(tmp_path / "pictures")
    asked = recipe.dump(diffusion_recipe(first_stage)) | {"conditioners": {"words": words}, "prompts": ["red", "blue"]}
    parsed = recipe.parse({**asked, "data": {"kind": "folder", "path": str(path), "size": 32}})
    assert isinstance(parsed, recipe.DiffusionRecipe)
    part = Data.model_validate(parsed.data).open("train")
    told = {"title": ["red", "blue"]}
    own = SimpleNamespace(conditions=SimpleNamespace(
        asked=lambda role: ["title"], unframed={"title"}, imagined=lambda said, count: {**said, "count": count},
    ))  # fmt: skip
    preview: Any = SimpleNamespace(model=own, recipe=parsed, train=part, shape=(4, 4, 4))
    assert Denoising._previewed(preview) == ({**told, "count": 2}, (4, 4, 4))


@pytest.mark.parametrize(("factor", "stages"), [(2, 2), (4, 1), (8, 0), (16, 0)])
def test_small_pictures_are_halved_by_learned_layers_down_to_the_grid(
    first_stage: Path, tmp_path: Path, factor: int, stages: int, caplog: pytest.LogCaptureFixture
) -> None:
    """32 pixels on a grid of 4 x 4: all that was not told stands in the recipe of the model."""
    read_ = read(folder(tmp_path / "pictures"), LOWRES, degrade={"factor": factor})
    asked = read_.model_copy(update={"autoencoder": first_stage, "backbone": small_unet()})
    objective = denoising(asked, tmp_path / "run", torch.device("cpu"))
    assert objective.model.config.conditioners["one"].stages == stages  # type: ignore[attr-defined]
    assert "before the denoiser sees them" not in caplog.text
    cond = objective.model.conditions(objective.batch(range(2)).fields, 2)
    assert cond.image is not None
    assert cond.image.shape[2:] == (4, 4)


def test_small_pictures_that_lose_something_are_warned_of(
    first_stage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_ = read(folder(tmp_path / "pictures"), {**LOWRES, "stages": 0}, degrade={"factor": 2})
    asked = read_.model_copy(update={"autoencoder": first_stage, "backbone": small_unet()})
    denoising(asked, tmp_path / "run", torch.device("cpu"))
    assert (
        "of 16 pixels a side are shrunk to 4 before the denoiser sees them; conditioners.one.stages=2 keeps"
        in caplog.text
    )


def small_unet() -> Any:
    fields = {"kind": "unet", "width": 8, "multipliers": [1], "blocks": 1, "attention": [], "groups": 1}
    return BackboneConfig.model_validate(fields)


def test_an_upscaler_by_two_enlarges_by_two_and_agrees_with_what_it_was_given(
    first_stage: Path, tmp_path: Path
) -> None:
    read_ = read(folder(tmp_path / "pictures"), LOWRES, degrade={"factor": 2})
    asked = read_.model_copy(update={"autoencoder": first_stage, "backbone": small_unet()})
    train(asked, tmp_path / "run", device="cpu", quiet=True)
    pipeline = Pipeline.load(tmp_path / "run" / "model", device="cpu")
    given = Image.fromarray(np.random.default_rng(0).integers(60, 190, (20, 28, 3), dtype=np.uint8))
    (made,) = pipeline.upscale(picture=given, seed=0, steps=2)
    assert made.size == (56, 40)
    again = torch.nn.functional.interpolate(
        torch.from_numpy(np.array(made)).permute(2, 0, 1)[None].float(), (20, 28), mode="bicubic", antialias=True
    )
    error = (again[0].permute(1, 2, 0) - torch.from_numpy(np.array(given)).float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 45


def test_an_upscaler_begun_before_its_halvings_came_from_the_data_goes_on(first_stage: Path, tmp_path: Path) -> None:
    fields = {"degrade": {"factor": 2}}
    path = folder(tmp_path / "pictures")
    told, untold = (read(path, {**LOWRES, **more}, **fields) for more in ({"stages": 0}, {}))
    told, untold = (
        one.model_copy(update={"autoencoder": first_stage, "backbone": small_unet()}) for one in (told, untold)
    )
    train(told, tmp_path / "run", device="cpu", quiet=True)
    longer = untold.model_copy(update={"training": untold.training.model_copy(update={"images": 16})})
    model = LatentDiffusion.load(train(longer, tmp_path / "run", resume=True, device="cpu", quiet=True))
    assert model.config.conditioners["one"].stages == 0  # type: ignore[attr-defined]
