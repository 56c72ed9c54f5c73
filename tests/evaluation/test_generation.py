"""Images from anywhere, looked at once, in one table with its ceiling; results that compare and those that do not."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sfumato import image
from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.data.base import Data
from sfumato.data.emoji import EmojiData
from sfumato.evaluation import generation, protocol, run
from sfumato.evaluation.gather import gather, key
from sfumato.evaluation.outside import Outside
from sfumato.evaluation.report import report, text
from sfumato.evaluation.source import Chosen, FolderPictures, PartPictures, Rebuilt, Sampled, Source
from sfumato.features import inception
from sfumato.features.network import Description, FeatureNetwork
from sfumato.model import LatentDiffusion
from sfumato.tasks.generate import generate
from sfumato.tasks.requests import Generate
from tests.conftest import CODER
from tests.features.test_network import save
from tests.tasks.test_tasks import built


class Small(nn.Module):
    """Colours on a 2 x 2 grid, a map, and logits."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        small = nn.functional.adaptive_avg_pool2d(x, (2, 2))
        return small.flatten(1), small, small.flatten(1)[:, :4] * 5


def network(name: str = "Small") -> FeatureNetwork:
    return FeatureNetwork(Small(), Description(name=name, size=16, outputs=("pooled", "spatial", "logits")))


def emoji(count: int = 80) -> Source:
    return Chosen(PartPictures(EmojiData(size=16).open("train"), "emoji, train"), count)


def folder(path: Path, count: int, side: int = 16, shade: float = 0.0) -> Path:
    rng = torch.Generator().manual_seed(0)
    for k, picture in enumerate(image.to_pil(torch.rand(count, 3, side, side, generator=rng) * 2 - 1 + shade)):
        path.mkdir(exist_ok=True)
        picture.save(path / f"{k:03d}.png")
    return path


def test_features_are_computed_once_and_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, source = network(), FolderPictures(folder(tmp_path / "a", 40))
    first = gather(net, source, cache=tmp_path / "cache")
    torch.testing.assert_close(first["pooled"], torch.cat([net(source.pictures([k]))["pooled"] for k in range(40)]))
    monkeypatch.setattr(Small, "forward", None)
    assert torch.equal(gather(net, source, cache=tmp_path / "cache")["pooled"], first["pooled"])
    with monkeypatch.context() as patch:  # where another process has none, all work together
        patch.setattr("sfumato.distributed.all_of", lambda flag: False)
        with pytest.raises(TypeError):
            gather(net, source, cache=tmp_path / "cache")
    other = FeatureNetwork(Small(), Description(name="Small", size=16, resize="bilinear"))
    image.to_pil(torch.zeros(1, 3, 16, 16))[0].save(tmp_path / "a" / "000.png")
    keys = {key(net, source), key(other, source), key(net, FolderPictures(tmp_path / "a")), key(net, Chosen(source, 9))}
    assert len(keys) == 4
    (next((tmp_path / "cache").iterdir())).write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged"):
        gather(net, source, cache=tmp_path / "cache")


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_features(tmp_path: Path, model_folder: Path) -> None:
    path = save(Small(), tmp_path / "small.pt", "{name: Small, size: 16, outputs: [pooled, spatial, logits]}")
    from sfumato.features.network import opened

    model = LatentDiffusion.load(model_folder)
    part = EmojiData(size=32).open("train")
    for source in (
        FolderPictures(folder(tmp_path / "a", 70)),
        Sampled(model, Generate(seed=3, steps=1), 40, part),
        Rebuilt(model.codec, Chosen(PartPictures(part, "emoji"), 40)),
    ):
        one, three = gather(opened(path), source), gather(opened(path), source, workers=3)
        for name in one:
            torch.testing.assert_close(
                one[name], three[name], atol=2e-3, rtol=0
            )  # threads round, and 8 bits after them


def test_samples_are_those_of_their_seeds(model_folder: Path) -> None:
    model, part = LatentDiffusion.load(model_folder), EmojiData(size=32).open("train")
    request = Generate(seed=3, steps=2, sampler="euler_ancestral")
    source = Sampled(model, request, 5, part)
    assert len({source.caption(k) for k in range(5)}) == 5
    several = source.pictures([4, 1, 2])
    torch.testing.assert_close(source.pictures([1])[0], several[1], atol=1e-4, rtol=0)
    assert source.told() != Sampled(model, Generate(seed=3, steps=3), 5, part).told()
    label = str(part.fields(source.order[1])["label"])
    asked = {**request.model_dump(), "seed": 4, "prompt": source.caption(1), "label": label}
    (made,) = generate(model, Generate(**asked))
    torch.testing.assert_close(several[1], made.pictures[0], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="wants caption"):
        Sampled(model, request, 5)
    with pytest.raises(ValueError, match="fixed seed"):
        Sampled(model, Generate(), 5, part)


def test_folders_give_pictures_as_they_are_or_at_a_size(tmp_path: Path) -> None:
    folder(tmp_path / "a", 2, 21)
    assert FolderPictures(tmp_path / "a").pictures([1])[0].shape == (3, 21, 21)
    assert FolderPictures(tmp_path / "a", 8).pictures([0])[0].shape == (3, 8, 8)
    whole, cut = FolderPictures(tmp_path / "a"), FolderPictures(tmp_path / "a", multiple=8)
    assert torch.equal(cut.pictures([0])[0], whole.pictures([0])[0][:, 2:18, 2:18])
    with pytest.raises(ValueError, match="there is no folder"):
        FolderPictures(tmp_path / "none")
    with pytest.raises(ValueError, match="smaller than 32"):
        FolderPictures(tmp_path / "a", multiple=32).pictures([0])


def test_a_table_has_its_ceiling_and_every_name_its_network(tmp_path: Path, codec: Codec) -> None:
    real, bad = emoji(), FolderPictures(folder(tmp_path / "a", 40, shade=-1.5))
    subjects = {"images": bad, "reconstructions": Rebuilt(codec, Chosen(real, 40)), "copies": real}
    found = generation.table(network(), real, subjects)
    rows = {row["images"]: row for row in found["rows"]}
    halves = rows["real, one half against the other"]
    name = "Fréchet distance (Small)"
    assert rows["copies"][name] == pytest.approx(0, abs=1e-5)
    assert rows["copies"]["coverage (Small)"] == rows["copies"]["precision (Small)"] == 1.0
    assert halves[name] < rows["images"][name]
    assert (halves["count"], halves["against"]) == (40, 40)
    assert rows["images"]["precision (Small)"] < 0.5 < halves["precision (Small)"]
    measures = {
        "spatial Fréchet distance (Small)",
        "kernel distance (Small)",
        "Inception score (Small)",
        "recall (Small)",
        "density (Small)",
    }
    assert measures <= set(halves)
    assert not [n for n in halves if "FID" in n or "KID" in n]
    published = network("Inception")
    named_alike = generation.table(published, real, {"images": bad})["rows"][0]
    assert "Fréchet distance (Inception)" in named_alike
    assert not {"FID", "KID"} & set(named_alike)
    published.description = published.description.model_copy(update={"sha256": inception.SHA256})
    by_hash = generation.table(published, real, {"images": bad})["rows"][0]
    assert {"FID", "sFID", "KID", "Inception score", "precision"} <= set(by_hash)
    assert found["protocol"]["images"] == 40
    assert found["protocol"]["reference"]["chosen"] == 80
    assert "Small" in protocol.sentence(found["protocol"])
    with pytest.raises(ValueError, match="needs four images"):
        generation.table(network(), emoji(3), {"images": bad})


def test_extremes_name_the_nearest_real_image(monkeypatch: pytest.MonkeyPatch) -> None:
    real = {"pooled": torch.arange(20.0)[:, None]}
    fake = {"pooled": torch.tensor([[3.0], [100.0], [7.375], [5.125]])}
    near, far, half, eighth = (0, 3, 0.0), (1, 19, 81.0), (2, 7, 0.375), (3, 5, 0.125)
    order = [near, eighth, half, far]
    assert generation.extreme(real, fake, at_once=3) == {"best": order, "median": order, "worst": order[::-1]}
    monkeypatch.setattr(generation, "SHOWN", 2)
    few = {"best": [near, eighth], "median": [eighth, half], "worst": [far, half]}
    assert generation.extreme(real, fake, at_once=3) == few


def test_results_compare_only_where_they_were_measured_alike(codec: Codec) -> None:
    look = run.Looking(network())
    one = run.evaluate_codec(codec, emoji(40), look)
    assert json.loads(json.dumps(one)) == one | {"extremes": json.loads(json.dumps(one["extremes"]))}
    other = copy.deepcopy(one)
    other["subject"] = {"autoencoder": "another"}
    other["reconstruction"]["psnr"] += 1
    pair = protocol.compared(one, other)["reconstruction.psnr"]
    assert pair[1] - pair[0] == pytest.approx(1)
    assert "features.reconstructions.Fréchet distance (Small)" in protocol.compared(one, other)
    for change in (
        run.evaluate_codec(codec, emoji(39), look),
        run.evaluate_codec(codec, emoji(40), run.Looking(network("Other"))),
        run.evaluate_codec(codec, emoji(40)),
    ):
        with pytest.raises(ValueError, match="measured otherwise and do not compare"):
            protocol.compared(one, change)
    with pytest.raises(ValueError, match="has no protocol"):
        protocol.check(one, {"psnr": 1.0})


def test_originals_against_themselves_are_the_ceiling(codec: Codec) -> None:
    found = run.evaluate_codec(codec, emoji(40))
    assert found["ceiling"]["psnr"] == 100
    assert found["ceiling"]["ssim"] == pytest.approx(1.0)
    assert found["reconstruction"]["psnr"] < 30
    assert len(found["pictures"]) == 40


def test_a_page_holds_tables_pictures_and_protocol(codec: Codec, tmp_path: Path) -> None:
    source = emoji(40)
    found = run.evaluate_codec(codec, source, run.Looking(network("<Small>")))
    again = Rebuilt(codec, source)
    page = report(tmp_path / "page.html", found, title="a & b", again=again, images=again, reference=source).read_text()
    for words in ("Worst reconstructions", "Median reconstructions", "Best reconstructions", "Latents, channel by channel",
                  "originals against themselves", "one half against the other", "Fréchet distance (&lt;Small&gt;)",
                  "a &amp; b", "bicubic, antialiased", "Worst images", "Protocol"):  # fmt: skip
        assert words in page
    assert "<Small>" not in page
    assert not re.search(r'src="(?!data:)|href=|http', page)
    assert page.count("data:image/png") == 6 * 8
    told = text(found)
    assert "Fréchet distance (<Small>)" in told
    assert "40 images against 40 of emoji, train" in told


def test_a_codebook_is_on_the_page(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec = Codec(FirstStage.model_validate({"kind": "vq", "coder": CODER, "codebook": {"size": 5}})).eval()
    codec.autoencoder.codebook.embedding.weight.data.normal_()
    source = emoji(8)
    found = run.evaluate_codec(codec, source)
    told = codec.autoencoder.codes(torch.stack(source.pictures(range(8)))).flatten()
    shares = told.bincount().double() / len(told)
    used = int((shares > 0).sum())
    codes = found["latents"]["codes"]
    assert (codes["used"], codes["drawn"]) == (used, 8 * 2 * 2)
    assert codes["perplexity"] == pytest.approx(float(torch.distributions.Categorical(shares).entropy().exp()))
    page = report(tmp_path / "page.html", found, title="codes").read_text()
    assert f"{used} of 5 ({20 * used:.1f} %)" in page


def test_samples_stand_beside_reconstructions_and_real_images(model_folder: Path, tmp_path: Path) -> None:
    model, data = LatentDiffusion.load(model_folder), EmojiData(size=32)
    reference = Chosen(PartPictures(data.open("train"), "emoji, train"), 30)
    found = run.evaluate_model(
        model, data, captions=2, steps=1, images=12, look=run.Looking(network()), reference=reference
    )
    assert [row["images"] for row in found["features"]] == [
        "samples",
        "reconstructions",
        "real, one half against the other",
    ]
    assert [row["count"] for row in found["features"]] == [12, 12, 12]
    assert found["subject"]["samples"]["steps"] == 1
    assert found["protocol"]["features"]["name"] == "Small"
    near = found["pictures"]  # every sample's nearest training picture
    assert sorted(row["index"] for row in near) == list(range(12))
    train = PartPictures(data.open("train"), "emoji, train")
    assert all(row["nearest_name"] == train.name(row["nearest"]) for row in near)
    assert found["memorising"]["pairs"] == [[r["index"], r["nearest"], r["distance"]] for r in near[:8]]
    assert "so many by chance" in text(found)
    page = report(tmp_path / "page.html", found, title="t", images=train, reference=train, train=train).read_text()
    assert "Nearest to the training set" in page


class Reads(nn.Module):
    """Captions of a table, as features."""

    def __init__(self, table: dict[str, Tensor]) -> None:
        super().__init__()
        self.table = table

    def forward(self, captions: list[str]) -> Tensor:
        return torch.stack([self.table[c] for c in captions])


def test_clip_scores_know_own_captions_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    source, net = emoji(20), FeatureNetwork(nn.Flatten(), Description(name="C", size=4))
    seen = net(source.pictures(range(20)))["pooled"]
    table = {str(source.caption(k)): seen[k] for k in range(20)}
    rows, told = run.aligned({"images": source}, run.Looking(clip=(net, Reads(table))))
    assert rows[0]["CLIP score (C)"] == pytest.approx(100)
    assert rows[0]["CLIP score (C), captions of others"] < 99
    assert told["clip"]["name"] == "C"
    few = emoji(20)
    monkeypatch.setattr(few, "caption", lambda k: None if k % 2 else source.caption(k))
    rows, _ = run.aligned({"images": few}, run.Looking(clip=(net, Reads(table))))
    assert (rows[0]["count"], rows[0]["CLIP score (C)"]) == (10, pytest.approx(100))
    monkeypatch.setattr(few, "caption", lambda k: None)
    assert run.aligned({"images": few}, run.Looking(clip=(net, Reads(table))))[0] == []
    flipped = {c: -v for c, v in table.items()}
    assert run.aligned({"images": source}, run.Looking(clip=(net, Reads(flipped))))[0][0]["CLIP score (C)"] == 0


def test_how_conditions_are_derived_is_part_of_what_is_told(model_folder: Path) -> None:
    """A part's fingerprint says nothing of it, and caches of features go by what is told."""
    model, request = LatentDiffusion.load(model_folder), Generate(seed=1, steps=1)
    plain, degraded, blind = (
        Sampled(model, request, 4, EmojiData.model_validate({"size": 32, **more}).open("train")).told()
        for more in ({}, {"degrade": {"factor": 4}}, {"degrade": {"factor": 4, "how": "blind"}})
    )
    assert "derived" not in plain
    assert degraded != blind
    assert degraded["derived"][0]["factor"] == 4


def test_a_model_that_is_told_squares_is_measured_by_whole_pictures(tmp_path: Path) -> None:
    squares = {"kind": "folder", "path": str(folder(tmp_path / "a", 4, 32)), "size": 32, "held_out": 0, "crops": 3}
    data, model = Data.model_validate(squares), built({"frame": {"kind": "frame", "width": 8}}).model
    assert (len(run.trained(data, False, model)), len(run.trained(data, False))) == (4, 12)
    request = Generate(seed=0, steps=1)
    source = Sampled(model, request, 3, data.open("train"))
    made = next(iter(generate(model, request.model_copy(update={"count": 3})))).pictures
    torch.testing.assert_close(torch.stack(source.pictures(range(3))), made)


def test_real_images_cover_as_the_best_of_models_would() -> None:
    rows = torch.randn(1200, 4, generator=torch.Generator().manual_seed(0))
    made = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    one, two = generation.halves({"pooled": rows})
    best = generation.against({"pooled": rows}, {"pooled": made}, network().description)["coverage (Small)"]
    found = generation.apart(two, one, 300, 1200, network().description)["coverage (Small)"]
    assert best == pytest.approx(1 - 1.25**-5, abs=0.05)
    assert found == pytest.approx(best, abs=0.06)
    assert generation.against(two, one, network().description)["coverage (Small)"] > 0.9


def test_images_are_asked_for_captions_before_they_are_looked_at(tmp_path: Path) -> None:
    look = run.Looking(network(), clip=(network(), Reads({})))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none of the 4 images has a caption"):
        run.evaluate_images(FolderPictures(folder(tmp_path / "a", 4)), emoji(8), look)


def test_pictures_of_several_sizes_tell_all_scales(tmp_path: Path, codec: Codec) -> None:
    folder(tmp_path / "a", 2, 48)
    image.to_pil(torch.zeros(1, 3, 200, 200))[0].save(tmp_path / "a" / "large.png")
    source = FolderPictures(tmp_path / "a", multiple=8)
    assert source.sides() == {(48, 48), (200, 200)}
    assert run._compared(source, run.Looking())["pairs"]["ms_ssim_scales"] == [3, 5]
    assert run._compared(Chosen(source, 1), run.Looking())["pairs"]["ms_ssim_scales"] == 3


def test_samples_are_held_against_pictures_of_their_own_kind(model_folder: Path, tmp_path: Path) -> None:
    """Whether a model repeats its training part does not hang on what else it is measured on."""
    model, data = LatentDiffusion.load(model_folder), EmojiData(size=32)
    other = Outside(path=folder(tmp_path / "noise", 8, 32), trained=data, size=32)
    found = [
        run.evaluate_model(model, d, captions=1, steps=1, images=8, look=run.Looking(network()))["memorising"]
        for d in (data, other)
    ]
    assert found[0] == found[1]
