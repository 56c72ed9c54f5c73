"""The model in the package: what it weighs, what its card says, and that it draws what it is asked for."""

from pathlib import Path

import pytest
import torch

import sfumato
from sfumato import files, image, shipped
from sfumato.data.emoji import EmojiData
from sfumato.evaluation.captions import Matcher, chosen, ranks, shares
from tests.cli.test_cli import call

FOLDER = shipped.MODELS / "emoji"
SECTIONS = ("Use", "Data", "Licence", "Recipe", "Numbers", "Skin tones", "What it cannot do", "Hash")


def test_all_models_in_the_package_are_at_most_25_megabytes_and_in_half_precision() -> None:
    assert shipped.names() == ["emoji"]
    assert sum(path.stat().st_size for path in shipped.MODELS.rglob("*")) < 25e6
    weights = files.load_tensors(FOLDER / "denoiser.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_the_card_says_all_that_a_card_must_and_its_hash_is_that_of_the_model() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in SECTIONS:
        assert f"\n## {name}\n" in card, name
    assert files.sha256(FOLDER / "model.yaml") in card
    sealed = set(files.opened(FOLDER, "diffusion")["files"])  # raises where a file is not the one that was sealed
    inside = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert inside == sealed | {"model.yaml", "README.md"}


@pytest.mark.parametrize("steps", [None, 25])
def test_it_draws_what_it_is_asked_for_in_few_steps_and_in_many(steps: int | None) -> None:
    data = EmojiData(size=64)
    part, matcher = data.open("train"), Matcher(data)
    indices = chosen(part, 24)
    captions = [part.fields(k)["caption"][0] for k in indices]
    made = sfumato.load("emoji", device="cpu").generate(
        prompt=captions, count=len(captions), seed=0, **({} if steps is None else {"steps": steps})
    )
    tensors = torch.stack([image.to_tensor(picture) for picture in made])
    found = shares(ranks(tensors, matcher.reference, matcher.own(part, indices)))
    assert found["top10"] > 0.75
    others = matcher.own(part, [*indices[1:], indices[0]])
    assert shares(ranks(tensors, matcher.reference, others))["top10"] < 0.25


def test_the_first_command_of_the_readme_draws_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "woman firefighter: dark skin tone"
    code, _, err = call("generate", "emoji", "--prompt", words, "--seed", 0, capsys=capsys)
    assert (code, Path("outputs/00000-0.png").is_file()) == (0, True), err
    data = EmojiData(size=64)
    part, matcher = data.open("all"), Matcher(data)
    (asked,) = (k for k in range(len(part)) if words in part.fields(k)["caption"])
    made = image.to_tensor(image.read(Path("outputs/00000-0.png")))[None]
    assert int(ranks(made, matcher.reference, matcher.own(part, [asked]))) < 3  # of some 3,900
