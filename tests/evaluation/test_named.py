"""What a command's words mean: which pictures are measured, at which size, in how many channels."""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from sfumato import cli, files
from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Data
from sfumato.data.emoji import EmojiData
from sfumato.evaluation import doors, run
from sfumato.evaluation.doors import Asked
from sfumato.evaluation.reconstruction import Perceptual
from sfumato.evaluation.report import _shown as page_shown
from sfumato.evaluation.report import text
from sfumato.evaluation.run import Looking
from sfumato.evaluation.source import FolderPictures
from sfumato.families.base import Family, Shape
from sfumato.features.network import Description, FeatureNetwork
from sfumato.features.perceptual import PerceptualConfig
from sfumato.model import LatentDiffusion
from sfumato.streams import Stream
from sfumato.training.recipe import DiffusionRecipe, dump, parse
from sfumato.training.run import denoising
from tests.conftest import CODER, diffusion_recipe
from tests.features.test_perceptual import vgg_files
from tests.tasks.test_tasks import CONDITIONERS, built

CPU = torch.device("cpu")


def pictures(path: Path, count: int, width: int = 50) -> Path:
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (34, width, 3), dtype=np.uint8)).save(path / f"{k:02d}.png")
    return path


def stage(path: Path, image_channels: int = 3, size: int | None = None, data: Path | None = None) -> Path:
    """A fresh first stage's folder, with a recipe beside it where a size is told."""
    torch.manual_seed(0)
    coder = {**CODER, "image_channels": image_channels}
    Codec(FirstStage.model_validate({"kind": "kl", "coder": coder})).save(path / "model")
    if size is not None:
        told = {
            "data": {"kind": "folder", "path": str(data or path / "gone"), "size": size, "channels": image_channels}
        }
        (path / "recipe.yaml").write_text(yaml.safe_dump(told))
    return path


def looking() -> Looking:
    network = FeatureNetwork(nn.Flatten(), Description(name="pixels", size=4))
    distance = Perceptual("far", lambda a, b: (a - b).abs().mean((1, 2, 3)), {"name": "far"})
    return Looking(network, distance)


def seeing() -> Looking:
    """A feature network, and no perceptual distance, which is between two pictures."""
    return dataclasses.replace(looking(), perceptual=None)


def told(asked: Asked, look: Looking | None = None) -> dict[str, Any]:
    return doors.evaluate(asked, look or Looking(), CPU, lambda said: None)[0]


def test_a_folder_that_is_named_is_measured_whole_at_the_run_s_size(model_folder: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "real", 12)
    for made, size in ((stage(tmp_path / "a", size=16), 16), (stage(tmp_path / "b"), "as they are")):
        result = told(Asked(made, data=str(folder)))
        record = result["protocol"]["data"]
        assert (record["size"], record["count"]) == (size, 12)
        assert len(result["pictures"]) == 12
    part = told(Asked(model_folder / "autoencoder", data=str(folder)))["protocol"]["data"]
    assert (part["size"], part["count"]) == (32, 12)  # of the model that it is a part of
    own = stage(tmp_path / "c", size=16, data=folder)
    few = len(told(Asked(own))["pictures"])
    assert few == len(told(Asked(own, data=str(folder)))["pictures"]) < 12
    assert told(Asked(own, data=str(folder), size=24))["protocol"]["data"]["size"] == 24


def test_real_pictures_are_made_small_as_those_of_a_training_are(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "real", 3)
    data = {"kind": "folder", "path": str(folder), "size": 16, "held_out": 0}
    part, real = Data.model_validate(data).open("train"), FolderPictures(folder, 16)
    for k in range(3):
        assert real.name(k) == part.field(k, "name")
        assert torch.equal(real.pictures([k])[0], part.image(k).float() / 127.5 - 1)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_pictures_of_any_channels_are_measured(channels: int, tmp_path: Path) -> None:
    made = stage(tmp_path / "run", image_channels=channels)
    folder = pictures(tmp_path / "real", 6)
    if channels == 2:
        for path in folder.iterdir():
            np.save(path.with_suffix(".npy"), np.asarray(Image.open(path))[..., :2])
            path.unlink()
    found = told(Asked(made, data=str(folder), size=16), looking())
    assert found["reconstruction"]["psnr"] > 0
    assert ("far" in found["reconstruction"], "features" in found) == (channels != 2, channels != 2)
    assert ("left out: far, pixels; networks look at 1, 3 or 4 channels, these pictures have 2" in text(found)) == (
        channels == 2
    )


def test_a_folder_beside_a_model_is_held_out_whole_and_the_run_s_data_stay_its_training_set(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "real", 12)
    model, recipe = LatentDiffusion.load(model_folder), doors.read_data(model_folder)
    asked = Asked(model_folder, data=str(folder))
    data = doors._data(asked, recipe, model.size, 3)
    assert (len(data.open("held_out")), data.open("held_out").size) == (12, 32)
    assert data.open("train").fingerprint == doors._data(Asked(model_folder), recipe, 32, 3).open("train").fingerprint
    assert (run.held_out(data).told()["name"], run.titled(data)) == ("real", "emoji")
    assert recipe is not None
    gone = {**recipe, "kind": "folder", "path": str(tmp_path / "gone")}
    alone = doors._data(dataclasses.replace(asked, size=16), gone, model.size, 1)
    assert (len(alone.open("held_out")) < 12, alone.open("train").channels, alone.size) == (True, 1, 16)
    (folder / "val").mkdir()
    (folder / "train").mkdir()
    (folder / "00.png").rename(folder / "val" / "00.png")
    (folder / "01.png").rename(folder / "train" / "01.png")
    assert len(data.open("held_out")) == 1


def test_data_of_a_run_that_are_seen_from_elsewhere_are_its_own_or_told(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A recipe names them from the folder that it was trained in."""
    folder = pictures(tmp_path / "own" / "real", 12)
    recipe = {"kind": "folder", "path": "own/real", "size": 16, "held_out": 0.5, "crops": 3}
    moved = doors._data(Asked(model_folder, data=str(folder)), recipe, 16, 3)
    assert (
        moved.open("train").fingerprint
        == Data.model_validate({**recipe, "path": str(folder)}).open("train").fingerprint
    )
    assert not caplog.text
    with pytest.raises(ValueError, match="pictures are not in own/real, seen from here: start in the folder that"):
        doors._data(Asked(model_folder), recipe, 16, 3)
    other = pictures(tmp_path / "other", 12, width=44)
    doors._data(Asked(model_folder, data=str(other)), recipe, 16, 3)
    assert "the run's own data, own/real, are not there, seen from here" in caplog.text


class Stub(Family):
    """Gray pictures, by way of codes."""

    shape, labels = Shape(3, 32), ()

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def parts(self) -> Mapping[str, Codec]:
        return {"autoencoder": self.codec}

    def learned(self, turn: str) -> Sequence[nn.Module]:
        return []

    def sample(self, noise: Stream, labels: Tensor, guidance: float = 1.0) -> Tensor:
        return torch.zeros(len(labels), 3, 32, 32)


def test_a_family_of_codes_has_its_reconstructions_as_a_ceiling(codec: Codec) -> None:
    recipe = {"kind": "emoji", "size": 32}
    asked = Asked(Path("stub"), images=8)
    rows = doors._family(asked, Stub(codec), recipe, seeing(), lambda said: None)[0]["features"]
    assert [row["images"] for row in rows] == ["images", "reconstructions", "real, one half against the other"]
    assert [row["count"] for row in rows[:2]] == [8, 8]
    told, guided = list[Any](), Stub(codec)
    guided.unnamed = True
    for scale in (1.0, 3.0):
        one = dataclasses.replace(asked, guidance=scale)
        told.append(doors._family(one, guided, recipe, seeing(), lambda said: None)[0]["protocol"])
    assert [t["samples"]["guidance"] for t in told] == [1.0, 3.0]
    with pytest.raises(ValueError, match="leave --guidance out"):
        doors._family(one, Stub(codec), recipe, seeing(), lambda said: None)
    assert told[0]["likelihood"]["held_out"] == EmojiData(size=32).open("held_out").fingerprint


def test_a_family_s_likelihood_is_of_its_own_size_whatever_the_reference_has(codec: Codec, tmp_path: Path) -> None:
    folder = str(pictures(tmp_path / "real", 12))
    asked = Asked(Path("stub"), images=8, data=folder, size=16)
    seen: list[int] = []

    def bits(x: Tensor, *_: Any) -> None:
        seen.append(x.shape[-1])

    stub = Stub(codec)
    stub.bits = bits  # type: ignore[assignment,method-assign]
    doors._family(asked, stub, {"kind": "emoji", "size": 32}, seeing(), lambda said: None)
    assert set(seen) == {32}


def test_a_size_that_nothing_has_is_refused() -> None:
    asked = Asked(Path("runs/x"), size=128)
    with pytest.raises(ValueError, match="makes pictures of 32 pixels; leave it out"):
        doors._side(asked, 32)
    assert doors._side(dataclasses.replace(asked, reference="emoji"), 32) == 128
    assert doors._side(Asked(Path("runs/x")), 32) == 32


def test_a_family_is_measured_where_nothing_is_held_out(codec: Codec, tmp_path: Path) -> None:
    recipe = {"kind": "folder", "path": str(pictures(tmp_path / "all", 12)), "size": 32, "held_out": 0}
    found, _ = doors._family(Asked(Path("stub"), images=8), Stub(codec), recipe, seeing(), lambda said: None)
    assert found["likelihood"] is None
    assert found["features"][0]["count"] == 8


def test_lpips_is_asked_for_by_its_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, heads = vgg_files(tmp_path)
    folder, made = pictures(tmp_path / "real", 2), stage(tmp_path / "run", size=32)
    hashes = {"--perceptual-sha256": files.sha256(network), "--heads-sha256": files.sha256(heads)}
    words = ["evaluate", made, "--data", folder, "--perceptual", network, "--perceptual-heads", heads]
    cli.main([str(w) for w in (*words, *(w for pair in hashes.items() for w in pair))])
    found = json.loads(capsys.readouterr().out)
    value = found["reconstruction"]["LPIPS (vgg16, heads)"]
    assert found["ceiling"]["LPIPS (vgg16, heads)"] == 0.0 < value
    told = found["protocol"]["perceptual"]
    assert (told["sha256"], told["heads"]) == tuple(hashes.values())
    config = PerceptualConfig.model_validate({"kind": "lpips", "network": network, "heads": heads})
    codec, source = Codec.load(made / "model"), doors.FolderPictures(folder, 32)
    real, again = (torch.stack(x) for x in (source.pictures([0, 1]), doors.Rebuilt(codec, source).pictures([0, 1])))
    rounded = [x.add(1).mul(127.5).round() / 127.5 - 1 for x in (real, again)]
    assert value == pytest.approx(float(config.build()(*rounded).mean()), rel=1e-4)
    assert run.perceptual(network).name == "LPIPS (vgg16, vgg)"  # the heads that are installed, and another network
    monkeypatch.setitem(run.TABLE, "vgg16", run.TABLE["vgg16"]._replace(sha256=told["sha256"]))
    assert run.perceptual(network).name == "LPIPS (VGG16)"
    for wrong, sentence in (
        ([*words, "--heads-sha256", "0" * 64], "heads.safetensors has SHA-256"),
        ([*words, "--perceptual-sha256", "0" * 64], "vgg16.pth has SHA-256"),
        ([*words[:4], "--perceptual-heads", heads], "name the file with --perceptual"),
    ):
        with pytest.raises(SystemExit):
            cli.main([str(w) for w in wrong])
        assert sentence in capsys.readouterr().err


def test_numbers_of_what_is_not_measured_are_refused(model_folder: Path, codec: Codec, tmp_path: Path) -> None:
    pictures(tmp_path / "real", 12)
    asks = [
        (
            Asked(tmp_path / "real", reference=str(tmp_path / "real"), images=8),
            "--images would do nothing, for pictures",
        ),
        (
            Asked(model_folder / "autoencoder", images=8, captions=3),
            "--images and --captions would do nothing, for a first",
        ),
        (Asked(model_folder, images=8), "generated for --features or --clip"),
    ]
    for asked, words in asks:
        with pytest.raises(ValueError, match=words):
            doors.evaluate(asked, run.Looking(), torch.device("cpu"), lambda said: None)
    stub: Any = Stub(codec)
    with pytest.raises(ValueError, match="leave --perceptual out"):
        doors._family(Asked(Path("x")), stub, {"kind": "emoji", "size": 32}, looking(), lambda said: None)
    with pytest.raises(ValueError, match="--captions would do nothing, for this model is no diffusion"):
        doors._family(Asked(Path("x"), captions=3), stub, {"kind": "emoji", "size": 32}, seeing(), lambda said: None)


def test_what_a_first_stage_and_a_family_do_nothing_with_is_refused(model_folder: Path, codec: Codec) -> None:
    stage, clip = model_folder / "autoencoder", run.Looking(clip=(looking().network, lambda texts: texts))  # type: ignore[arg-type]
    asks: list[tuple[Asked, run.Looking, str]] = [
        (Asked(stage, size=128), run.Looking(), "leave --size out"),
        (Asked(stage), clip, "leave --clip out"),
        (Asked(stage, dtype=torch.bfloat16), run.Looking(), "--precision would do nothing"),
        (
            Asked(model_folder, reference="emoji", each=True),
            run.Looking(),
            "--reference and --one-each would do nothing",
        ),
    ]
    for asked, look, words in asks:
        with pytest.raises(ValueError, match=words):
            doors.evaluate(asked, look, torch.device("cpu"), lambda said: None)


def test_guidance_of_a_model_that_hears_nothing_is_none(model_folder: Path) -> None:
    deaf, words = built({}).model, LatentDiffusion.load(model_folder)
    held = built({"small": CONDITIONERS["small"]}).model
    for model, guidance in ((deaf, 1.0), (held, 1.0), (words, 3.0)):
        assert run.requested(model, None, None, None, None).guidance == guidance
    for model in (deaf, held):
        with pytest.raises(ValueError, match="leave --guidance out"):
            run.requested(model, None, 5.0, None, None)


@pytest.mark.parametrize("text", ["stage: [", "- a"])
def test_damaged_files_of_a_model_are_told(text: str, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"model.yaml (is damaged|has no format number)"):
        doors.evaluate(Asked(tmp_path / "bad"), run.Looking(), torch.device("cpu"), lambda said: None)
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"recipe.yaml (is not YAML|must be a mapping)"):
        doors.evaluate(Asked(tmp_path / "run" / "model"), run.Looking(), torch.device("cpu"), lambda said: None)


def test_pictures_that_can_be_seen_through_are_shown_over_white() -> None:
    clear = torch.tensor([1.0, -1.0, -1.0, -1.0])[:, None, None].expand(4, 16, 16)
    assert bool((page_shown(clear) == 1).all())
    assert page_shown(torch.zeros(1, 16, 16)).shape[0] == 3


def test_a_reference_that_is_not_there_or_knows_no_twins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        doors.real("nowhere", 32)
    with pytest.raises(ValueError, match="are twins is not known"):
        doors.real(str(pictures(tmp_path / "real", 4)), 32, each=True)


def test_a_model_of_small_pictures_is_not_measured_on_data_without(first_stage: Path, tmp_path: Path) -> None:
    small = {"kind": "emoji", "size": 32, "degrade": {"factor": 4}}
    fields = dump(diffusion_recipe(first_stage, images=16))
    fields |= {"data": small, "conditioners": {"small": {"kind": "lowres", "width": 8, "dropout": 0.0}}}
    read = parse(fields)
    assert isinstance(read, DiffusionRecipe)
    model = denoising(read, tmp_path / "run", torch.device("cpu")).model
    run.told(model, Data.model_validate(small))
    with pytest.raises(ValueError, match="was told the lowres of every picture"):
        run.told(model, Data.model_validate({"kind": "emoji", "size": 32}))
