"""Feature networks are files: checked, described, prepared as they say."""

import multiprocessing
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sfumato import files
from sfumato.features import inception, network
from sfumato.features.files import script
from sfumato.features.network import Description, FeatureNetwork, opened
from sfumato.features.retrieval import neighbours


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


class Block(nn.Module):
    def __init__(self, of: int) -> None:
        super().__init__()
        self.conv, self.tower = nn.Conv2d(of, 9, 1), nn.Conv2d(of, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x)], 1)


class Graph(nn.Module):
    """The published file's form and words, with few layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        stem = nn.Conv2d(3, 4, 5, 16)
        self.layers = nn.Sequential(OrderedDict(conv=stem, mixed_6=Block(4), pool2=nn.AvgPool2d(19)))
        self.output = nn.Linear(12, 10)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        height, width = img.shape[2], img.shape[3]
        theta = torch.eye(2, 3)
        theta[0, 2] += theta[0, 0] / width - theta[0, 0] / 299
        theta[1, 2] += theta[1, 1] / height - theta[1, 1] / 299
        grid = nn.functional.affine_grid(theta[None].repeat(len(img), 1, 1), [len(img), 3, 299, 299], False)
        x = nn.functional.grid_sample(img.float(), grid, "bilinear", "border", False)
        features = self.layers((x - 128) / 128).reshape(len(img), -1)
        if return_features:
            return features
        return (
            nn.functional.linear(features, self.output.weight) if no_output_bias else self.output(features)
        ).softmax(1)


def test_the_published_inception_is_known_by_its_hash_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Graph(), tmp_path / "inception-2015-12-05.pt")
    stranger = opened(path)
    assert (stranger.description.name, stranger.description.published) == ("inception-2015-12-05", False)
    pictures = [torch.rand(3, 64, 48) * 2 - 1, torch.rand(3, 299, 299) * 2 - 1]
    assert set(stranger(pictures)) == {"pooled"}
    known = network.KNOWN[inception.SHA256]
    monkeypatch.setattr(inception, "SHA256", files.sha256(path))
    monkeypatch.setitem(network.KNOWN, files.sha256(path), known)
    made = opened(path)
    assert (made.description.name, made.description.published) == ("Inception", True)
    assert made.told()["resize"] == "by the network itself to 299 x 299, bilinear, not antialiased"
    found, whole = made(pictures), Graph().eval()
    for k, picture in enumerate(pictures):
        seen = made.prepared(picture)[None]
        values = nn.functional.interpolate((seen.float() - 128) / 128, 299) if k else None
        torch.testing.assert_close(found["pooled"][k], whole(seen, True)[0])
        torch.testing.assert_close(found["logits"][k].softmax(0), whole(seen, no_output_bias=True)[0])
        if values is not None:
            block = whole.layers.mixed_6.conv(whole.layers.conv(values))
            torch.testing.assert_close(found["spatial"][k], block[0, :7].flatten())
    assert found["spatial"].shape == (2, 7 * 19 * 19)
    path.with_suffix(".yaml").write_text("name: mine")
    with pytest.raises(ValueError, match="says otherwise what the published Inception wants"):
        opened(path)


def test_an_inception_that_is_built_otherwise_gives_its_pooled_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(Bytes(), tmp_path / "renamed.pt")
    known = network.KNOWN[inception.SHA256]
    monkeypatch.setattr(inception, "SHA256", files.sha256(path))
    monkeypatch.setitem(network.KNOWN, files.sha256(path), known)
    made = opened(path)
    rows = made([torch.full((3, 16, 16), 1.0), torch.full((3, 8, 12), -1.0)])
    assert set(rows) == {"pooled"}
    assert made.told()["outputs"] == ["pooled"]
    torch.testing.assert_close(rows["pooled"], torch.tensor([[255.0] * 3, [0.0] * 3]))


def test_a_network_that_does_not_take_its_pictures_says_so() -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x.float(), torch.zeros(1, 3, 99, 99))

    own = FeatureNetwork(Narrow(), Description(name="narrow", size=16))
    with pytest.raises(
        ValueError, match=r"narrow does not take .* pictures of 16x16 .*; mend what stands in its YAML file"
    ):
        own([torch.zeros(3, 16, 16)])


def test_features_are_as_exact_while_networks_run_in_half_precision() -> None:
    """A held-out loss asks for embeddings inside a training's autocast, and they are kept."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 32))
    look = FeatureNetwork(linear, Description(name="linear", size=8))
    pictures, bank = list(torch.rand(3, 3, 8, 8) * 2 - 1), torch.randn(40, 32)
    rows = look(pictures)["pooled"]
    found = neighbours(rows, bank, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(look(pictures)["pooled"], rows)
        assert all(torch.equal(a, b) for a, b in zip(neighbours(rows, bank, 5), found, strict=True))
