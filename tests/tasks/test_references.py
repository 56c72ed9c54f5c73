"""References from end to end: embeddings of a folder by a scripted network, a model trained with them, pictures by them."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import sfumato
from sfumato import cli, files
from sfumato.data.base import Data, Part
from sfumato.features import network as networks
from sfumato.features.retrieval import embedded
from sfumato.tasks import metadata
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.reference import Bank, looked, nearest
from sfumato.tasks.requests import Generate
from sfumato.training import recipe, run
from sfumato.training.fitted import seen
from tests.conftest import diffusion_recipe
from tests.features.test_network import save

TEXT = "{name: Miniature, size: 16}"


class Miniature(nn.Module):
    """The picture at 2 x 2 pixels, (B, 12), in its values' order."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, [2, 2]).flatten(1)


class Other(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -F.adaptive_avg_pool2d(x, [2, 2]).flatten(1)


def pictures(folder: Path, count: int = 12) -> Path:
    """Pictures of noise at 4 x 4 places: each of its own colours, none square."""
    folder.mkdir(parents=True)
    for k in range(count):
        rng = np.random.default_rng(k)
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((52 + k, 44), Image.Resampling.BICUBIC).save(folder / f"{k:02}.png")
    return folder


def data(folder: Path, network: Path, **more: Any) -> dict[str, Any]:
    embed = {"network": str(network), "cache": str(folder.parent / "embeddings"), **more}
    return {"kind": "folder", "path": str(folder), "size": 32, "held_out": 0.2, "embed": embed}


def opened(fields: dict[str, Any], part: str = "train") -> Part:
    return Data.model_validate(fields).open(part)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("references")
    pictures(folder / "pictures")
    save(Miniature(), folder / "mini.pt", TEXT)
    return folder


def trained(first_stage: Path, place: Path, name: str, conditioners: dict[str, Any], **embed: Any) -> Path:
    """The model folder of a short training with these conditioners."""
    fields = recipe.dump(diffusion_recipe(first_stage, images=64))
    fields |= {"conditioners": conditioners, "data": data(place / "pictures", place / "mini.pt", **embed)}
    return run.train(recipe.parse(fields), place / "runs" / name, device="cpu", quiet=True)


@pytest.fixture(scope="module")
def model(first_stage: Path, place: Path) -> Path:
    """Reads its own embedding, and neighbours as tokens."""
    near = {"kind": "reference", "field": "near", "width": 16, "door": "tokens", "most": 2}
    both = {"picture": {"kind": "reference", "width": 16}, "near": near}
    return trained(first_stage, place, "both", both, neighbours=3)


@pytest.fixture
def pipeline(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pipeline:
    monkeypatch.chdir(tmp_path)  # what is kept of banks lies where the user is
    return sfumato.load(model, device="cpu")


def test_data_tell_embeddings_and_those_of_the_nearest_others(place: Path) -> None:
    fields = data(place / "pictures", place / "mini.pt", neighbours=2)
    part, apart = opened(fields), opened(fields, "held_out")
    network = networks.opened(place / "mini.pt")
    rows = embedded(network, [part.image(k).float() / 127.5 - 1 for k in range(len(part))])
    unit = F.normalize(rows, dim=1)
    likeness = (unit @ unit.T).fill_diagonal_(-2)
    for k in range(len(part)):
        told = part.told(k)
        torch.testing.assert_close(told["reference"], rows[k])
        torch.testing.assert_close(told["near"], rows[likeness[k].topk(2).indices])
    assert "near" not in part.fields(0)
    outside = apart.told(0)
    wanted = unit @ F.normalize(outside["reference"], dim=0)
    torch.testing.assert_close(outside["near"], rows[wanted.topk(2).indices])
    again = pickle.loads(pickle.dumps(opened(fields))).told(3)  # parts go to other processes
    torch.testing.assert_close(again["near"], part.told(3)["near"])
    kept = list((place / "embeddings").glob("*.safetensors"))
    assert len(kept) == 2
    with pytest.raises(ValueError, match="too few other pictures"):
        opened(data(place / "pictures", place / "mini.pt", neighbours=50)).told(0)
    with pytest.raises(ValueError, match="has SHA-256"):
        opened(data(place / "pictures", place / "mini.pt", sha256="0" * 64)).told(0)


def test_squares_of_one_picture_are_not_neighbours(place: Path) -> None:
    part = opened({**data(place / "pictures", place / "mini.pt", neighbours=1), "crops": 3})
    rows = torch.stack([part.told(k)["reference"] for k in range(len(part))])
    for k in range(len(part)):
        found = int((rows - part.told(k)["near"]).abs().sum(1).argmin())
        assert found // 3 != k // 3


def test_the_model_knows_its_network_and_sees_what_training_saw(model: Path, place: Path, pipeline: Pipeline) -> None:
    config = pipeline.model.config.conditioners["picture"].model_dump()
    assert (config["embedding"], config["usual"]) == (12, 1)
    assert config["looks"]["sha256"] == files.sha256(place / "mini.pt")
    assert pipeline.model.conditions.reader("near").most == 3  # as many as it was trained with
    part = opened(data(place / "pictures", place / "mini.pt"))
    path = part.stored(0)
    assert isinstance(path, Path)
    reader = pipeline.model.conditions.reader("reference")
    with Image.open(path) as shown:
        shown.load()
    for one in (path, shown):
        torch.testing.assert_close(looked(pipeline.model, reader, [one])[0], part.told(0)["reference"])
    assert not any("network" in name for name in pipeline.model.conditions.state_dict())
    found = nearest(pipeline.model, reader, [path], Bank(place / "pictures", 32, 3), 3)
    torch.testing.assert_close(found[0], part.told(0)["reference"])
    assert found.shape == (3, 12)


def test_pictures_are_made_by_reference_and_by_bank(pipeline: Pipeline, place: Path) -> None:
    one, two = place / "pictures" / "00.png", place / "pictures" / "01.png"
    asked: dict[str, Any] = {"seed": 0, "steps": 3, "guidance": 40.0}  # so short a training listens little
    made = {
        "nothing": pipeline.generate(**asked),
        "one": pipeline.generate(reference=one, **asked),
        "two": pipeline.generate(reference=two, **asked),
        "both": pipeline.generate(reference=[one, two], **asked),
        "bank": pipeline.generate(reference=one, bank=place / "pictures", **asked),
        "fewer": pipeline.generate(reference=one, bank=place / "pictures", neighbours=1, **asked),
        "vary": pipeline.vary(picture=one, bank=place / "pictures", **asked),
        "plain": pipeline.vary(picture=one, **asked),
    }
    assert len({np.array(m[0]).tobytes() for m in made.values()}) == len(made)
    several = pipeline.generate(reference=one, count=2, batch=1, **asked)
    assert np.array(several[0]).tobytes() == np.array(made["one"][0]).tobytes()
    metadata.save(made["both"][0], Path("a.png"))
    assert metadata.read(Path("a.png"))["reference"] == "00.png, 01.png"
    assert len(list(Path("runs/embeddings").iterdir())) == 1  # of the bank


def test_a_model_that_reads_one_of_the_two_takes_either(first_stage: Path, place: Path, tmp_path: Path) -> None:
    folder = trained(first_stage, place, "one", {"picture": {"kind": "reference", "width": 16}})
    shown, bank = str(place / "pictures" / "00.png"), str(place / "pictures")
    for words in ([], ["--bank", bank, "--neighbours", "2"], ["--reference", shown]):
        cli.main([
            "generate", str(folder), "--reference", shown, *words, "--steps", "1", "--seed", "0", "--out", str(tmp_path)
        ])  # fmt: skip
    made = [p.read_bytes() for p in sorted(tmp_path.glob("*.png"))]
    assert len(set(made)) == 3
    assert metadata.read(tmp_path / "00001-0.png")["bank"] == "pictures"


def test_what_cannot_be_done_is_said_in_a_sentence(
    pipeline: Pipeline, place: Path, model_folder: Path, model: Path, tmp_path: Path
) -> None:
    shown, bank = place / "pictures" / "00.png", place / "pictures"
    asks: list[tuple[dict[str, Any], str]] = [
        ({"reference": "nowhere.png"}, "there is no file nowhere.png"),
        ({"reference": []}, "list of pictures is empty"),
        ({"bank": bank}, "give that as reference"),
        ({"reference": shown, "bank": "nowhere"}, "there is no folder nowhere"),
        ({"reference": shown, "neighbours": 3}, "give both or neither"),
        ({"reference": shown, "bank": bank, "neighbours": 100}, "100 neighbours of a bank of 12"),
        ({"reference": shown, "bank": bank, "neighbours": 5}, "5 embeddings as near, this model reads 3"),
        ({"reference": [shown] * 21}, "21 embeddings as reference"),
    ]
    for fields, words in asks:
        with pytest.raises(ValueError, match=words):
            pipeline.generate(**fields)
    with pytest.raises(ValueError, match="trained without references"):
        sfumato.load(model_folder, device="cpu").generate(reference=shown)
    other = save(Other(), tmp_path / "other.pt", TEXT)
    with pytest.raises(ValueError, match="use the same network"):
        seen(pipeline.model.config.conditioners["picture"], opened(data(bank, other)))
    reader = pipeline.model.conditions.reader("reference")
    reader.network = other
    with pytest.raises(ValueError, match="has SHA-256"):
        list(reader.opened())
    reader.network = tmp_path / "gone.pt"
    with pytest.raises(ValueError, match="name its place as `network`"):
        reader.opened()
    assert Generate(reference=[shown]).reference == [shown]


def test_damaged_pictures_of_a_bank_are_left_out_and_told(
    pipeline: Pipeline, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bank = pictures(tmp_path / "bank", 6)
    (bank / "03.png").write_bytes(b"no picture")
    shown = place / "pictures" / "00.png"
    for _ in range(2):  # made, and read from the cache
        assert pipeline.generate(reference=shown, bank=bank, seed=0, steps=1)
        assert caplog.text.count("1 of 6 pictures of the bank cannot be read and are left out") == 1
        caplog.clear()
    with pytest.raises(ValueError, match="neighbours of a bank of 5"):
        pipeline.generate(reference=shown, bank=bank, neighbours=6, steps=1)
