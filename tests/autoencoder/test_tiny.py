"""The tiny first stage, and the published weights that fit it."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sfumato import image
from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.tiny import Tiny, TinyConfig
from sfumato.convert import taesd
from sfumato.model import belongs
from sfumato.training import recipe, run
from tests.conftest import SHORT
from tests.outside import DATA


def test_latents_are_held_where_the_decoder_can_tell_them() -> None:
    made = FirstStage.model_validate({"kind": "tiny", "width": 8, "channels": 2, "factor": 4}).build()
    assert isinstance(made, Tiny)
    made.encoder[-1].weight.data.zero_()
    made.encoder[-1].bias.data.copy_(torch.tensor([2.0, -5.0]))
    encoded = made.encode(torch.zeros(1, 3, 16, 8))
    assert encoded.latent.shape == (1, 2, 4, 2)
    assert float(encoded.penalty.detach()) == pytest.approx(0.5 * 4.0)
    assert made.decode(encoded.latent).shape == (1, 3, 16, 8)
    torch.testing.assert_close(made.decode(torch.full((1, 2, 2, 2), 1e4)), made.decode(torch.full((1, 2, 2, 2), 2e4)))
    with pytest.raises(ValueError, match="power of two"):
        FirstStage.model_validate({"kind": "tiny", "factor": 6}).build()


def test_published_files_become_a_model_folder(tmp_path: Path) -> None:
    made = FirstStage.model_validate("tiny").build()
    assert sum(p.numel() for p in made.parameters()) == 2_445_063
    for side in ("encoder", "decoder"):
        save_file(getattr(made, side).state_dict(), tmp_path / f"{side}.safetensors")
    folder = taesd.convert(tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors", tmp_path / "model")
    again, images = Codec.load(folder), torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(again.autoencoder.rebuild(images)[1], made.rebuild(images)[1])
    with pytest.raises(ValueError, match=r"do not fit TAESD|not the weights of a TAESD"):
        taesd.convert(tmp_path / "decoder.safetensors", tmp_path / "encoder.safetensors", tmp_path / "other")
    with pytest.raises(ValueError, match="there is no file"):
        taesd.convert(tmp_path / "absent", tmp_path / "encoder.safetensors", tmp_path / "other")
    (tmp_path / "taesd_encoder.pth").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match="is no safetensors file, and nothing is unpickled"):
        taesd.convert(tmp_path / "taesd_encoder.pth", tmp_path / "decoder.safetensors", tmp_path / "other")


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "weights").is_dir(), reason="the published weights are not here")
@pytest.mark.parametrize(("name", "decibels"), [("taesd", 24.8), ("taesd3", 29.0)])
@torch.no_grad()
def test_published_weights_reach_their_published_precision(name: str, decibels: float, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(DATA / "kodak.tar") as packed:
        packed.extractall(tmp_path, filter="data")
    weights = [DATA / "weights" / f"{name}_{side}.safetensors" for side in ("encoder", "decoder")]
    codec = Codec.load(taesd.convert(*weights, tmp_path / "model"))
    found = []
    for path in sorted(tmp_path.rglob("*.png"))[:3]:
        with Image.open(path) as opened:
            picture = image.to_tensor(opened.convert("RGB"))[None]
        again = codec.decode(codec.encode(picture))
        found.append(float(10 * torch.log10(4 / (again - picture).square().mean())))
    assert abs(sum(found) / len(found) - decibels) < 1.5


def test_a_decoder_learns_the_latents_of_another_first_stage(
    first_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Codec.load(first_stage)
    shutil.copytree(first_stage, tmp_path / "stage")
    read = recipe.read(
        "tiny",
        [
            f"autoencoder={{kind: tiny, width: 16, blocks: 1, decodes: {tmp_path / 'stage'}}}",
            "data={kind: emoji, size: 32}",
            *(f"training.{name}={value}" for name, value in {**SHORT, "images": 32}.items()),
        ],
    )
    preview = Codec.load(run.train(read, tmp_path / "preview", device="cpu", quiet=True))
    other = Codec.load(first_stage)
    with torch.no_grad():
        next(other.parameters()).mul_(2.0)
    shutil.rmtree(tmp_path / "stage")
    other.save(tmp_path / "stage")  # another first stage at the same place
    with pytest.raises(ValueError, match=r"the first stage of .* are not those that this run began with"):
        run.train(read, tmp_path / "preview", resume=True, device="cpu", quiet=True)
    shutil.rmtree(tmp_path / "stage")
    shutil.copytree(first_stage, tmp_path / "stage")
    images, noise = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 4, 4)
    assert (preview.factor, preview.channels) == (teacher.factor, teacher.channels)
    torch.testing.assert_close(preview.encode(images, noise), teacher.encode(images, noise))
    torch.testing.assert_close(preview.encode(images, tile=16), teacher.encode(images, tile=16))
    monkeypatch.setattr("sfumato.autoencoder.tiling.WHOLE", 0)
    torch.testing.assert_close(preview.encode(images, tile=16), teacher.encode(images, tile=16))  # by its margins
    assert preview.decode(teacher.encode(images)).shape == images.shape
    assert {name.split(".")[1] for name in preview.state_dict() if "." in name} == {"decoder"}
    shutil.copytree(first_stage, tmp_path / "moved")  # where it lies is not what it is
    elsewhere = Codec(preview.config.model_copy(update={"decodes": tmp_path / "moved"}))
    elsewhere.load_state_dict(preview.state_dict())
    assert elsewhere.fingerprint() == preview.fingerprint()
    older = preview._fingerprint(preview.config.model_dump())
    assert older != preview.fingerprint()
    monkeypatch.setattr(preview, "fingerprint", lambda: older)
    preview.save(tmp_path / "older")
    assert Codec.load(tmp_path / "older").channels == 4
    belongs(Codec.load(tmp_path / "older"), older, "a model made before")
    changed = Codec.load(first_stage)
    changed.shift += 1
    changed.save(tmp_path / "other")
    stranger = Codec(preview.config.model_copy(update={"decodes": tmp_path / "other"}))
    with pytest.raises(ValueError, match="was trained for autoencoder"):
        stranger.encode(images)


def test_sides_that_contradict_the_other_first_stage_are_refused(first_stage: Path) -> None:
    with pytest.raises(ValueError, match=r"channels is 4 in .*; got 5: leave it out"):
        TinyConfig(decodes=first_stage, channels=5).settled()
