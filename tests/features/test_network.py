"""Feature networks are files: checked, described, prepared as they say."""

import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sfumato import files
from sfumato.features.files import script
from sfumato.features.network import Description, FeatureNetwork, opened


class Looks(nn.Module):
    """Mean colours, the picture itself and some logits."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = x.mean((2, 3))
        return pooled, x, torch.cat([pooled, -pooled], 1)


class Bytes(nn.Module):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8
        return x.float().mean((2, 3)) if return_features else x.float()[:, :2].mean((2, 3))


def save(network: nn.Module, path: Path, text: str = "") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(str(path))
    if text:
        path.with_suffix(".yaml").write_text(text)
    return path


def test_a_script_is_opened_only_with_its_hash(tmp_path: Path) -> None:
    path = save(Looks(), tmp_path / "looks.pt")
    assert not script(path, files.sha256(path)).training
    with pytest.raises(ValueError, match="has SHA-256"):
        script(path, "0" * 64)
    with pytest.raises(ValueError, match="there is no feature network"):
        script(tmp_path / "none.pt", None)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="is not TorchScript"):
        script(tmp_path / "text.pt", None)


def test_a_description_stands_beside_the_file(tmp_path: Path) -> None:
    path = save(Looks(), tmp_path / "looks.pt", "{name: Looks, size: 8, outputs: [pooled, spatial, logits]}")
    network = opened(path)
    found = network([torch.full((3, 16, 16), 0.2), torch.full((3, 8, 8), -1.0)])
    assert {name: tuple(rows.shape) for name, rows in found.items()} == {
        "pooled": (2, 3), "spatial": (2, 192), "logits": (2, 6)
    }  # fmt: skip
    torch.testing.assert_close(found["pooled"][0], torch.full((3,), 153 / 127.5 - 1))  # rounded to 8 bits
    told = network.told()
    assert told["sha256"] == files.sha256(path)
    assert told["resize"] == "bicubic, antialiased, to 8 x 8"
    path.with_suffix(".yaml").write_text("{name: Looks, sizes: 8}")
    with pytest.raises(ValueError, match="sizes: unknown key"):
        opened(path)
    path.with_suffix(".yaml").write_text("{name: Looks, sha256: " + "a" * 64 + "}")
    with pytest.raises(ValueError, match="has SHA-256"):
        opened(path)


def test_bytes_and_keywords_reach_networks_that_want_them(tmp_path: Path) -> None:
    text = "{name: Inception, size: 4, resize: bilinear, bytes: true, call: {return_features: true}}"
    found = opened(save(Bytes(), tmp_path / "b.pt", text))([torch.ones(1, 4, 4), torch.full((4, 4, 4), -1.0)])
    torch.testing.assert_close(found["pooled"], torch.full((2, 3), 255.0))  # gray thrice; transparent over white


def test_the_resize_is_that_of_pillow() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (37, 41, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BICUBIC), dtype=np.float32)
    network = FeatureNetwork(nn.Identity(), Description(name="x", size=16, mean=(0, 0, 0), std=(1 / 255,) * 3))
    found = network.prepared(torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1)
    assert float((found - torch.from_numpy(wanted).permute(2, 0, 1)).abs().max()) < 1.5  # Pillow rounds twice


def test_what_was_not_described_is_refused() -> None:
    network = FeatureNetwork(nn.Flatten(0), Description(name="flat", size=4))
    with pytest.raises(ValueError, match="each must be a tensor"):
        network([torch.zeros(3, 4, 4)])
    with pytest.raises(ValueError, match="1, 3 or 4 channels"):
        network([torch.zeros(2, 4, 4)])
    noisy = FeatureNetwork(nn.Dropout(0.5), Description(name="noisy", size=None)).train()
    assert float(noisy([torch.ones(3, 4, 4)])["pooled"].min()) == 1.0


def _mean(network: FeatureNetwork) -> Tensor:
    return network([torch.ones(3, 4, 4)])["pooled"]


@pytest.mark.slow
def test_a_network_goes_to_other_processes(tmp_path: Path) -> None:
    network = opened(save(Looks(), tmp_path / "looks.pt"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply(_mean, (network,)), torch.ones(1, 3))


def test_the_published_inception_is_known_by_its_name_and_resizes_itself(tmp_path: Path) -> None:
    network = opened(save(Bytes(), tmp_path / "inception-2015-12-05.pt"))
    assert network.description.name == "Inception"
    rows = network([torch.full((3, 16, 16), 1.0), torch.full((3, 8, 12), -1.0)])["pooled"]
    torch.testing.assert_close(rows, torch.tensor([[255.0] * 3, [0.0] * 3]))
