"""Recipes: every shipped one parses and builds, and every fault is told with its place."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sfumato import shipped
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.vq import VQConfig
from sfumato.conditioning.base import Sizes
from sfumato.families.base import Shape
from sfumato.model import DiffusionConfig
from sfumato.training import recipe
from sfumato.training.card import card


@pytest.mark.parametrize("name", recipe.shipped())
def test_every_shipped_recipe_parses_and_builds(name: str) -> None:
    read = recipe.read(name)
    assert recipe.parse(recipe.dump(read)) == read
    with torch.device("meta"):
        if isinstance(read, recipe.AutoencoderRecipe):
            read.autoencoder.build()
        elif isinstance(read, recipe.DistillationRecipe):
            assert read.teacher.parts[-1] == "model"
        elif isinstance(read, recipe.DecoderRecipe):
            assert read.start.parts[-1] == "model"
        elif isinstance(read, recipe.FinetuningRecipe):
            assert (shipped.folder(read.start) / "model.yaml").is_file()
        elif isinstance(read, recipe.FamilyRecipe):
            codes = VQConfig.model_validate({"coder": {"factor": 4, "channels": 4}})
            read.family.build(Shape(3, read.data.size), ("a", "b"), Codec(codes) if read.autoencoder else None)
        else:
            read.backbone.build(4, Sizes())


def test_images_are_counted_in_thousands_and_millions() -> None:
    read = recipe.read("emoji", ["training.images=2M", "training.preview=1.5k", "training.seed=3"])
    assert (read.training.images, read.training.preview, read.training.seed) == (2_000_000, 1_500, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["training.imags=3"], "training.imags: unknown key"),
        (["training.batch=many"], "training.batch: .*valid integer"),
        (["training.images=3G"], "50k or 2M"),
        (["backbone.kind=unett"], "unknown kind 'unett'; known kinds: dit, unet"),
        (["training.images"], "key.sub=value"),
        (["training.images=["], "not YAML"),
        (["stage.x=1"], "stage"),
        (["prediction=epsilon"], "prediction"),
    ],
)
def test_faults_are_told_with_their_place(changes: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipe.read("emoji", changes)


@pytest.mark.parametrize(
    "schedule",
    [
        "linear",
        "{kind: linear, shift: 2}",
        "cosine",
        "sigmoid",
        "{kind: betas, zero_terminal: true}",
        "{kind: betas, form: cosine}",
    ],
)
def test_noise_is_not_predicted_where_sampling_begins_in_nothing_else(schedule: str) -> None:
    with pytest.raises(
        ValueError, match=r"prediction noise says nothing of the picture .* choose prediction flow or v"
    ):
        recipe.read("photo-noise", [f"schedule={schedule}"])
    for other in ("flow", "v", "clean", "edm"):
        recipe.read("photo-noise", [f"schedule={schedule}", f"prediction={other}"])


@pytest.mark.parametrize("schedule", ["betas", "{kind: betas, form: linear}", "exploding"])
def test_noise_is_predicted_where_something_of_the_picture_is_left(schedule: str) -> None:
    assert isinstance(recipe.read("photo-noise", [f"schedule={schedule}"]), recipe.DiffusionRecipe)


def test_a_recipe_that_is_not_there_or_not_yaml_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of decoder, emoji, emoji-autoencoder, emoji-codes, emoji-few"):
        recipe.read("emojo")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        recipe.read(str(tmp_path / "a.yaml"))
    (tmp_path / "binary").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="is not text"):
        recipe.read(str(tmp_path / "binary"))
    (tmp_path / "b.yaml").write_text("- a")
    with pytest.raises(ValueError, match="must be a mapping"):
        recipe.read(str(tmp_path / "b.yaml"))


def test_a_short_choice_can_be_overridden_inside() -> None:
    fields = recipe.override({"data": "emoji"}, ["data.size=32"])
    assert fields == {"data": {"kind": "emoji", "size": 32}}


def faults(value: Any, schema: dict[str, Any], parts: dict[str, Any], place: str = "recipe") -> list[str]:
    """What a JSON schema finds wrong with a value: as much of the standard as our schema is written in."""
    if "$ref" in schema:
        return faults(value, parts[schema["$ref"].rpartition("/")[2]], parts, place)
    found: list[str] = []
    for one in schema.get("allOf", ()):
        found += faults(value, one, parts, place)
    if "anyOf" in schema:
        tried = [faults(value, one, parts, place) for one in schema["anyOf"]]
        if all(tried):
            found += min(tried, key=len)
    if "const" in schema and value != schema["const"]:
        found.append(f"{place} is not {schema['const']}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place} is none of {schema['enum']}")
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    kinds["null"] = type(None)
    known = schema.get("type")
    if known is not None and (not isinstance(value, kinds[known]) or (known != "boolean" and isinstance(value, bool))):
        return [*found, f"{place} is no {known}"]
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{place} does not match")
    if isinstance(value, dict):
        own, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{place} has no {name}" for name in schema.get("required", ()) if name not in value]
        for name, inner in value.items():
            if name in own or isinstance(other, dict):
                found += faults(inner, own.get(name, other), parts, f"{place}.{name}")
            elif other is False:
                found.append(f"{place}.{name} is unknown")
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        for k, inner in enumerate(value):
            found += faults(inner, first[k] if k < len(first) else schema.get("items", {}), parts, f"{place}.{k}")
    return found


@pytest.mark.parametrize("name", recipe.shipped())
def test_the_schema_takes_every_shipped_recipe(name: str) -> None:
    schema, fields = recipe.schema(), recipe.load_yaml(name)
    assert faults(fields, schema, schema["$defs"]) == []
    assert faults(
        {**fields, "stage": "family" if fields["stage"] != "family" else "diffusion"}, schema, schema["$defs"]
    )
    assert faults({**fields, "trainings": {}}, schema, schema["$defs"])
    assert faults(recipe.dump(recipe.parse(fields)), schema, schema["$defs"]) == []


def test_the_schema_knows_every_kind() -> None:
    text = yaml.safe_dump(recipe.schema())
    for kind in ("unet", "kl", "vq", "identity", "text", "label", "emoji", "folder", "lpips", "torchscript"):
        assert f"const: {kind}" in text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("emoji", 'prompt="...", count'),
        ("photo-label", 'label="...", count'),
        ("photo", "generate(count"),
        ("gan", "generate(count"),
    ],
)
def test_a_models_card_shows_how_this_model_is_asked(name: str, told: str) -> None:
    made = card(recipe.read(name, ["data.path=PICTURES"] if name.startswith("photo") else []))
    assert told in made
    assert "null" not in made


def test_the_card_of_a_family_of_classes_asks_for_one() -> None:
    assert 'generate(label="...", count' in card(recipe.read("gan", []), ("cat", "dog"))


def test_new_recipes_denoise_latents_of_variance_one_and_older_models_stay_as_they_were() -> None:
    fields = {
        "stage": "diffusion",
        "autoencoder": "a",
        "backbone": {"kind": "unet"},
        "prediction": "edm",
        "data": "emoji",
    }
    read = recipe.parse({**fields, "training": {"images": 1}})
    assert isinstance(read, recipe.DiffusionRecipe)
    assert read.data_std == 1.0
    assert DiffusionConfig.model_validate({"backbone": {"kind": "unet"}}).data_std == 0.5


@pytest.mark.parametrize(("said", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'off'", "off")])
def test_compile_is_read_as_written_though_yaml_takes_on_and_off_for_truth_values(said: str, meant: str) -> None:
    assert recipe.read("emoji", [f"training.compile={said}"]).training.compile == meant


def test_v_is_not_predicted_where_noise_explodes() -> None:
    with pytest.raises(ValueError, match=r"as large as its noise.*choose prediction edm"):
        recipe.read("photo-noise", ["schedule=exploding", "prediction=v"])
    recipe.read("photo-noise", ["schedule=exploding", "prediction=edm"])


def test_a_recipe_file_says_each_key_once_and_knows_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("stage: autoencoder\ntraining: {images: 8}\ntraining: {batch: 4}\n")
    with pytest.raises(ValueError, match="the key 'training' stands twice"):
        recipe.load_yaml(str(path))
    path.write_text("a: &x {one: 1}\nb: {<<: *x, two: 2}\n")
    assert recipe.load_yaml(str(path))["b"] == {"one": 1, "two": 2}
    path.write_text("base: &base {x: 1}\na: {b: &mid {<<: *base, x: 2}}\nleaf: {<<: *mid}\n1: a\n'1': b\n")
    assert recipe.load_yaml(str(path))["leaf"] == {"x": 2}
    monkeypatch.setenv("HOME", str(tmp_path))
    path.write_bytes("data: {kind: folder, path: ~/pictures, cache: ~/kept}\nprompts: [~/a]\n".encode("utf-16"))
    found = recipe.load_yaml(str(path))
    assert found["data"] == {"kind": "folder", "path": str(tmp_path / "pictures"), "cache": str(tmp_path / "kept")}
    assert found["prompts"] == ["~/a"]


def test_a_fault_names_the_key_as_the_recipe_has_it() -> None:
    fields = {"stage": "autoencoder", "autoencoder": {"kind": "kl"}, "data": "emoji", "training": {"images": "few"}}
    with pytest.raises(ValueError, match=r"^mine\.yaml: training\.images: "):
        recipe.parse(fields, "mine.yaml")
    with pytest.raises(ValueError, match=r"training\.flip.*|flip is a number, and true is none"):
        recipe.parse({**fields, "training": {"images": 8, "flip": True}}, "mine.yaml")
    with pytest.raises(ValueError, match=r"training\.seed"):
        recipe.parse({**fields, "training": {"images": 8, "seed": 2**64}}, "mine.yaml")
