"""The emoji that ship: whole, joined, captioned, and split so that held-out pictures have no twin in training."""

import math
import re
from importlib import resources
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from sfumato.data.base import Data
from sfumato.data.emoji import EmojiData, EmojiPart, drawn, shipped
from sfumato.data.glyphs import Font, installed, kind

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
    dark = (parts["all"].pictures < 240).any(1)
    assert float(dark.flatten(1).float().mean(1).min()) > 0.002
    rim = torch.ones(64, 64, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    assert not dark[:, rim].any()  # ink on the border would be ink beyond it
    spans = torch.maximum(dark.any(1).sum(1), dark.any(2).sum(1)).float()
    assert float(spans.median()) > 50  # and the square is filled


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
    assert all(c == c.lower() and c.strip() and not set(c) & set("“”‘’") for c in captions)
    assert 'japanese "here" button' in captions
    norway = next(r for r in parts["all"].rows if "flag: norway" in r.captions)
    assert "flag: bouvet island" in norway.captions  # equal pictures are merged, their names kept


@pytest.mark.parametrize(
    ("text", "base", "tone", "gender"),
    [
        ("👩🏿‍🚒", "1f9d1-1f692", "dark", "woman"),
        ("🧑‍🚒", "1f9d1-1f692", "", ""),
        ("🏃🏽‍♀️", "1f3c3", "medium", "woman"),
        ("👨‍👩‍👧", "1f46a", "", "man,woman,girl"),
        ("👭🏻", "1f46b", "light", "woman"),
        ("👩🏽‍🤝‍👨🏿", "1f46b", "medium,dark", "woman,man"),
        ("💏🏾", "1f48f", "medium-dark", ""),
        ("👨🏻‍❤️‍💋‍👨🏻", "1f48f", "light", "man"),
        ("🫱🏻‍🫲🏿", "1f91d", "light,dark", ""),
        ("👸🏿", "1fac5", "dark", "woman"),
        ("🧑‍🎄", "1f385", "", ""),
        ("👩‍🦰", "1f9d1-1f9b0", "", "woman"),
        ("♀️", "2640", "", ""),
        ("➡️", "27a1", "", ""),
        ("❤️", "2764", "", ""),
        ("🇯🇵", "1f1ef-1f1f5", "", ""),
    ],
)
def test_variants_are_traced_to_their_base(text: str, base: str, tone: str, gender: str) -> None:
    assert kind(text) == (base, tone, gender, "")


def test_who_faces_right_is_a_variant_too() -> None:
    assert kind("🚶🏽‍♀️‍➡️") == ("1f6b6", "medium", "woman", "right")


def test_a_family_is_a_base_with_its_variants(parts: dict[str, EmojiPart]) -> None:
    for part in parts.values():
        assert sorted(k for family in part.families for k in family) == list(range(len(part)))
        bases = [{part.rows[k].base for k in family} for family in part.families]
        assert all(len(b) == 1 for b in bases)
        assert len(set.union(*bases)) == len(bases)


def test_variants_of_one_base_are_told_apart(parts: dict[str, EmojiPart]) -> None:
    assert all(row.base for row in parts["all"].rows)
    people = [r for r in parts["all"].rows if r.group == "People & Body" and not r.captions[0].startswith("family")]
    assert len({r[4:8] for r in people}) == len(people)


def test_smaller_sizes_are_means_of_the_sheet(parts: dict[str, EmojiPart]) -> None:
    small = EmojiData(size=16).open("all").pictures.float()
    mean = torch.nn.functional.avg_pool2d(parts["all"].pictures.float(), 4)
    assert float((small - mean).abs().max()) <= 0.51
    assert EmojiData(size=16).open("train").fingerprint != parts["train"].fingerprint


def test_the_sheet_says_where_it_is_from() -> None:
    facts, rows, _ = shipped()
    assert facts["font"] == "Noto Color Emoji Regular"
    assert re.match(r"Version \d", facts["font_version"])
    assert re.fullmatch(r"[0-9a-f]{64}", facts["font_sha256"])
    licence = (resources.files("sfumato") / "data" / "sheet" / "LICENSE.txt").read_text(encoding="utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence
    assert "Unicode, Inc." in licence
    assert len({row.group for row in rows}) == 9


def test_fonts_and_parts_that_are_not_there_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.data.glyphs.features.check", lambda name: True)
    with pytest.raises(ValueError, match="fonts-noto-color-emoji"):
        EmojiData(size=48, font=Path("no/font.ttf")).open()
    with pytest.raises(ValueError, match="it has train, held_out, combinations, all"):
        EmojiData().open("test")
    with pytest.raises(ValidationError, match="known kinds: emoji, folder"):
        Data.model_validate({"kind": "emojis"})


def test_where_no_font_is_installed_other_sizes_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.data.glyphs.FOLDERS", ())
    with pytest.raises(ValueError, match=r"sizes other than 8, 16, 32 and 64.*fonts-noto-color-emoji"):
        EmojiData(size=48).open()


def test_a_file_that_is_no_emoji_font_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ttf").write_bytes(b"no font")
    with pytest.raises(ValueError, match="NotoColorEmoji"):
        EmojiData(font=tmp_path / "a.ttf").open()


def _font() -> Path:
    try:
        Font(installed())
    except ValueError as error:
        pytest.skip(str(error))
    return installed()


def test_glyphs_that_are_not_one_good_picture_are_found() -> None:
    font = Font(_font())
    assert font.draw("😀")[1] == font.draw("👩🏿‍🚒")[1] == ""
    assert font.draw("😀😀")[1] == "does not join"
    assert font.draw("👩‍👩")[1] == "does not join"  # no such emoji: two women beside each other
    assert font.draw("\U0010fffe")[1] in ("missing", "blank", "does not join")
    assert font.draw(" ")[1] in ("blank", "does not join")


def test_the_machine_draws_what_ships(parts: dict[str, EmojiPart], monkeypatch: pytest.MonkeyPatch) -> None:
    path = _font()
    rows = parts["all"].rows[::150]
    monkeypatch.setattr("sfumato.data.emoji.shipped", lambda: ({"size": 64}, rows, None))
    drawn.cache_clear()
    anew = EmojiData(font=path).open("all").pictures.float()
    drawn.cache_clear()
    assert anew.shape == (len(rows), 3, 64, 64)
    error = (anew - parts["all"].pictures[::150].float()).square().mean()
    assert 10 * math.log10(255**2 / float(error)) > 40
    assert EmojiData(size=48).open("all").image(0).shape == (3, 48, 48)
    drawn.cache_clear()


def test_without_raqm_nothing_is_drawn_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.data.glyphs.features.check", lambda name: name != "fribidi")
    with pytest.raises(ValueError, match="libfribidi0"):
        EmojiData(size=48, font=Path("no/font.ttf")).open()


def test_sided_pictures_are_not_mirrored(parts: dict[str, EmojiPart]) -> None:
    mirrored = {c for k, row in enumerate(parts["all"].rows) if parts["all"].mirrors(k) for c in row.captions}
    assert {"grinning face", "red apple", "woman firefighter: dark skin tone"} <= mirrored
    assert not [c for c in mirrored if "left" in c or c.startswith("flag:") or "right" in c.replace("bright", "")]
    assert not mirrored & {"waxing crescent moon", "1st place medal", "chart increasing"}
    assert "handshake: dark skin tone" in mirrored
    assert not [c for c in mirrored if c.count("skin tone") > 1]  # who stands on which side


def test_no_mirrored_picture_is_another_emoji(parts: dict[str, EmojiPart]) -> None:
    part = EmojiData(size=32).open("all")
    pictures, turned = (p.flatten(1).float() for p in (part.pictures, part.pictures.flip(-1)))
    nearness = -10 * (torch.cdist(turned, pictures).square() / pictures.shape[1] / 255.0**2).clamp(min=1e-9).log10()
    own = nearness.diagonal()
    best, which = nearness.max(1)
    wrong = [
        (part.rows[k].captions, part.rows[j].captions)
        for k, j in enumerate(which.tolist())
        if part.mirrors(k) and part.rows[k].base != part.rows[j].base and best[k] > max(26.5, float(own[k]) + 3)
    ]
    assert not wrong


def test_fields_name_the_group(parts: dict[str, EmojiPart]) -> None:
    fields = parts["train"].fields(0)
    assert set(fields) == {"caption", "label", "group", "name"}
    assert parts["train"].labels[fields["label"]] == fields["group"] == "Smileys & Emotion"
