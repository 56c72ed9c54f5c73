"""The emoji that ship: whole, joined, captioned, and split so that held-out pictures have no twin in training."""

import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from sfumato.data.base import Data
from sfumato.data.emoji import EmojiData, EmojiPart, shipped
from sfumato.data.glyphs import kind

PARTS = ("train", "held_out", "combinations")


@pytest.fixture(scope="module")
def parts() -> dict[str, EmojiPart]:
    return {name: EmojiData().open(name) for name in (*PARTS, "all")}


def test_the_parts_make_the_whole(parts: dict[str, EmojiPart]) -> None:
    assert len(parts["all"]) == sum(len(parts[p]) for p in PARTS) > 3400
    assert len({row.code for row in parts["all"].rows}) == len(parts["all"])
    share = len(parts["held_out"].families) / len(parts["all"].families)
    assert 0.04 < share < 0.06


def test_no_picture_is_blank_or_clipped(parts: dict[str, EmojiPart]) -> None:
    inked = (parts["all"].pictures < 250).any(1).flatten(1).float().mean(1)
    assert float(inked.min()) > 0.002
    corners = parts["all"].pictures[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert float((corners > 240).float().mean()) > 0.99


def test_no_held_out_picture_has_a_near_twin_in_training(parts: dict[str, EmojiPart]) -> None:
    held, train = (parts[p].pictures.flatten(1).float() for p in ("held_out", "train"))
    error = torch.cdist(held, train).square() / held.shape[1]
    assert float((10 * torch.log10(255.0**2 / error)).max()) < 24.0


def test_bases_are_not_shared_between_train_and_held_out(parts: dict[str, EmojiPart]) -> None:
    assert not {r.base for r in parts["held_out"].rows} & {r.base for r in parts["train"].rows}


def test_each_held_out_combination_was_seen_in_its_parts_only(parts: dict[str, EmojiPart]) -> None:
    train = {(r.base, r.tone, r.gender) for r in parts["train"].rows}
    assert len(parts["combinations"]) > 100
    for r in parts["combinations"].rows:
        assert (r.base, r.tone, r.gender) not in train
        assert any(b == r.base and t == r.tone for b, t, _ in train)
        assert any(b == r.base and g == r.gender for b, _, g in train)
        assert any(t == r.tone and g == r.gender for _, t, g in train)


def test_captions_are_the_names_people_use(parts: dict[str, EmojiPart]) -> None:
    captions = {c for row in parts["all"].rows for c in row.captions}
    for wanted in (
        "red heart",
        "grinning face",
        "flag: japan",
        "woman firefighter: dark skin tone",
        "flag: norway",
    ):
        assert wanted in captions
    assert all(c == c.lower() and c.strip() for c in captions)
    norway = next(r for r in parts["all"].rows if "flag: norway" in r.captions)
    assert "flag: bouvet island" in norway.captions  # equal pictures are merged, their names kept


@pytest.mark.parametrize(
    ("text", "base", "tone", "gender"),
    [
        ("👩🏿‍🚒", "1f9d1-1f692", "dark", "woman"),
        ("🧑‍🚒", "1f9d1-1f692", "", ""),
        ("🏃🏽‍♀️", "1f3c3", "medium", "woman"),
        ("👨‍👩‍👧", "1f46a", "", "man,woman,girl"),
        ("👭🏻", "1f9d1-1f91d-1f9d1", "light", ""),
        ("👩🏽‍🤝‍👨🏿", "1f9d1-1f91d-1f9d1", "medium,dark", "woman,man"),
        ("❤️", "2764", "", ""),
        ("🇯🇵", "1f1ef-1f1f5", "", ""),
    ],
)
def test_variants_are_traced_to_their_base(text: str, base: str, tone: str, gender: str) -> None:
    assert kind(text) == (base, tone, gender)


def test_smaller_sizes_are_means_of_the_sheet(parts: dict[str, EmojiPart]) -> None:
    small = EmojiData(size=16).open("all").pictures.float()
    mean = torch.nn.functional.avg_pool2d(parts["all"].pictures.float(), 4)
    assert float((small - mean).abs().max()) <= 0.51
    assert EmojiData(size=16).open("train").fingerprint != parts["train"].fingerprint


def test_the_sheet_says_where_it_is_from() -> None:
    facts, rows, _ = shipped()
    assert facts["font"] == "Noto Color Emoji Regular"
    assert re.fullmatch(r"[0-9a-f]{64}", facts["font_sha256"])
    assert len({row.group for row in rows}) == 9


def test_sizes_fonts_and_parts_that_are_not_there_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="choose 8, 16, 32 or 64"):
        EmojiData(size=48).open()
    with pytest.raises(ValueError, match="fonts-noto-color-emoji"):
        EmojiData(size=48, font=Path("no/font.ttf")).open()
    with pytest.raises(ValueError, match="it has train, held_out, combinations, all"):
        EmojiData().open("test")
    with pytest.raises(ValidationError, match="known kinds: emoji, folder"):
        Data.model_validate({"kind": "emojis"})


def test_without_raqm_nothing_is_drawn_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.data.glyphs.features.check", lambda name: name != "fribidi")
    with pytest.raises(ValueError, match="libfribidi0"):
        EmojiData(size=48, font=Path("no/font.ttf")).open()


def test_sided_pictures_are_not_mirrored(parts: dict[str, EmojiPart]) -> None:
    mirrored = {c for k, row in enumerate(parts["all"].rows) if parts["all"].mirrors(k) for c in row.captions}
    assert "grinning face" in mirrored
    assert not [c for c in mirrored if "left" in c.split() or "right" in c.split() or c.startswith("flag:")]
