"""Scenes: what is said of them is true, what is held out is never shown, and a scene is a function of seed and index."""

import re
import tracemalloc

import numpy as np
import pytest
import torch

from sfumato import streams
from sfumato.data import loader, scenes
from sfumato.data.base import Data
from sfumato.data.emoji import shipped
from sfumato.data.scenes import COLOURS, INVERSE, NAMES, ScenesPart, Thing


def opened(part: str = "train", **more: object) -> ScenesPart:
    found = Data.model_validate({"kind": "scenes", "count": 400, **more}).open(part)
    assert isinstance(found, ScenesPart)
    return found


PAIR = re.compile(r"^(?:an? )?(.+?) (left of|right of|above|below) (?:an? )?(.+?)(?:, with .*| on .*)?$")


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_what_a_caption_says_is_where_the_boxes_are(part: str) -> None:
    data, told = opened(part), 0
    for index in range(40):
        facts = data.fields(index)
        places = {name: ((x0 + x1) / 2, (y0 + y1) / 2) for name, x0, y0, x1, y1 in facts["boxes"]}
        for caption in facts["caption"]:
            assert all(re.sub(r"^an? ", "", name) in caption for name in places), caption
            if not (said := PAIR.match(caption)):
                continue
            told += 1
            (ax, ay), (bx, by) = places[said[1]], places[said[3]]
            assert {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}[said[2]], caption
    assert told > 60


def test_no_held_out_fact_is_in_training_and_the_other_part_shows_only_them() -> None:
    train, apart = opened(), opened("held_out")
    shown = {f for k in range(400) for f in train.scene(k).facts()}
    asked = {apart.scene(k).facts()[0] for k in range(40)}
    assert not any(f.held_out for f in shown)
    assert all(f.held_out for f in asked)
    assert not shown & asked
    kinds = {t.kind for k in range(400) for t in train.scene(k).things}
    assert kinds == set(range(len(NAMES)))  # each thing is seen, in other company
    every = [scenes.Fact(a, r, b) for a in range(64) for b in range(64) for r in INVERSE if a != b]
    assert 0.08 < sum(f.held_out for f in every) / len(every) < 0.12


def test_boxes_maps_and_masks_tell_of_the_same_pixels() -> None:
    part = opened()
    for index in range(30):
        facts, scene, masks = part.fields(index), part.scene(index), part.masks(index)
        assert facts["things"] == part.field(index, "things")
        assert [part.class_names["things"][k] for k in facts["things"]] == [name for name, *_ in facts["boxes"]]
        numbers = torch.from_numpy(facts["map"])
        for thing, mask, (name, *corners) in zip(scene.things, masks, facts["boxes"], strict=True):
            assert name == NAMES[thing.kind]
            assert part.class_names["map"][thing.kind + 1] == part.class_names["boxes"][thing.kind] == name
            assert bool((numbers[mask] == thing.kind + 1).all())
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert corners == pytest.approx([int(v) / 64 for v in box])
            assert thing.left <= int(columns.min())
            assert int(columns.max()) < thing.left + thing.side
        assert int(masks.sum(0).max()) <= 1
        assert bool(((numbers > 0) == masks.any(0)).all())


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    one, two = opened(), opened()
    assert torch.equal(one.image(7), two.image(7))
    assert one.fields(7)["caption"] == two.fields(7)["caption"]
    assert one.fingerprint == two.fingerprint
    other = opened(seed=1)
    assert not torch.equal(one.image(7), other.image(7))
    assert one.fingerprint != other.fingerprint != opened(size=32, seed=1).fingerprint
    assert opened(size=32).image(0).shape == (3, 32, 32)
    assert len(opened(count=10)) == 10
    assert len(opened("held_out", count=10)) == 1


def test_things_stand_apart_and_sideways_ones_are_not_mirrored() -> None:
    part = opened()
    for index in range(60):
        things = part.scene(index).things
        assert all(scenes.apart(a, b, 3) for k, a in enumerate(things) for b in things[k + 1 :])
        assert all(14 <= t.side <= 32 for t in things)
        sided = any(" left of " in c or " right of " in c for c in part.fields(index)["caption"])
        assert part.mirrors(index) is not sided
    assert not scenes.apart(Thing(0, 0, 0, 20), Thing(1, 15, 0, 20), 2)
    assert not scenes.apart(Thing(0, 0, 0, 20), Thing(1, 30, 30, 20), 2)  # neither beside nor below


def test_a_picture_on_white_loses_its_ground_and_nothing_else() -> None:
    picture = torch.full((3, 32, 32), 255.0)
    picture[:, 8:24, 6:26] = torch.tensor([200.0, 30.0, 30.0])[:, None, None]
    picture[:, 12:20, 12:20] = 255.0  # white inside stays
    picture[:, 7, 6:26] = picture[:, 7, 6:26] * 0.5 + 0.5 * torch.tensor([200.0, 30.0, 30.0])[:, None]
    colour, alpha = scenes.cut(picture)
    assert colour.shape == (3, 20, 20)
    assert float(alpha[0, 2:17].min()) > 0.99
    assert torch.allclose(colour[:, 10, 1], torch.tensor([200.0, 30.0, 30.0]), atol=1)
    assert torch.allclose(alpha[0, 1], torch.full((20,), 0.5), atol=0.05)
    assert float(alpha[0, 9, 10]) == 1
    small, cover = scenes.glyph(3, 14)
    assert small.shape == (3, 14, 14)
    assert np.isclose(float(cover.max()), 1, atol=0.02)


def test_a_huge_count_takes_no_memory_and_is_learned_from_some() -> None:
    tracemalloc.start()
    try:
        part = opened(count=10**12)
        drawn = [loader.draw(part, 0, position) for position in range(100)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(drawn)) == 100
    assert max(drawn) > 10**11
    assert peak < 1 << 20
    assert part.image(drawn[0]).shape == (3, 64, 64)
    assert len(part.telling("caption")) == scenes.TELLING
    assert len(opened(count=400).telling("caption")) == 400


def test_scenes_of_one_thing_have_no_held_out_ones() -> None:
    assert len(opened(count=10, most=1)) == 10
    with pytest.raises(ValueError, match=r"data.most is 1, give 2 or more"):
        opened("held_out", count=10, most=1)


def test_scenes_too_small_for_some_emoji_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.size is at least 12"):
        opened(size=11)
    smallest = opened(size=12)
    assert all(x1 > x0 and y1 > y0 for k in range(50) for _, x0, y0, x1, y1 in smallest.fields(k)["boxes"])


def grounds(how: str, one: str = "blue", other: str = "yellow", size: int = 48) -> list[torch.Tensor]:
    """Several grounds of one kind, (3, size, size)."""
    return [scenes.grounded((how, one, other), size, streams.generator(0, "ground", k)) for k in range(12)]


def away(pixels: torch.Tensor, name: str) -> torch.Tensor:
    """The largest distance of any channel from a named colour, of each pixel of (3, ...)."""
    colour = torch.tensor(COLOURS[name]).float()
    return (pixels.flatten(1).float() - colour[:, None]).abs().amax(0)


@pytest.mark.parametrize("name", COLOURS)
def test_a_plain_ground_is_one_colour_near_its_name_s(name: str) -> None:
    for pixels in grounds("plain", name):
        assert bool((pixels == pixels[:, :1, :1]).all())
        assert float(away(pixels, name).max()) <= 12.001
    assert min(COLOURS, key=lambda other: float(away(pixels, other).max())) == name


def test_a_graded_ground_goes_from_one_colour_to_the_other() -> None:
    for pixels in grounds("graded"):
        for name in ("blue", "yellow"):
            assert float(away(pixels, name).min()) <= 12.001
        span = max(abs(a - b) for a, b in zip(COLOURS["blue"], COLOURS["yellow"], strict=True)) + 24
        assert max(float(pixels.diff(dim=axis).abs().max()) for axis in (1, 2)) < 1.5 * span / 48


@pytest.mark.parametrize(("one", "step"), [("blue", 22), ("yellow", -22)])
def test_textures_are_of_two_shades_and_what_they_are_called(one: str, step: int) -> None:
    for how in scenes.TEXTURES:
        for pixels in grounds(how, one):
            plain = pixels.amin((1, 2)) if step > 0 else pixels.amax((1, 2))
            assert float(away(plain[:, None], one)) <= 12.001
            marks = (pixels - plain[:, None, None]) / step
            assert bool(((marks - marks.round()).abs() < 1e-4).all())
            pattern = marks.round()[0].bool()
            assert 0.1 < float(pattern.float().mean()) < 0.7
            flat = bool((pattern == pattern[:, :1]).all())
            crossed = pattern ^ pattern[:1]  # of a check the first row again or its opposite, in every row
            assert flat == (how == "striped")
            assert bool((crossed == crossed[:, :1]).all()) == (how != "speckled")
            assert not bool((pattern == pattern[:1]).all())


def test_the_ground_s_words_are_those_that_are_drawn() -> None:
    part, told = opened(most=2), set()
    for index in range(80):
        said = part.fields(index)["caption"][-1].partition(" on a ")[2]
        how, *names = said.replace("ground from ", "graded ").replace(" to ", " ").removesuffix(" ground").split()
        how, names = (how, names) if names else ("plain", [how])
        assert (how, *names) == part.scene(index).ground[: 1 + len(names)]
        covered = torch.nn.functional.max_pool2d(part.masks(index).any(0)[None].float(), 5, 1, 2)[0].bool()
        shown = part.image(index)[:, ~covered].float()
        nearest = torch.stack([away(shown, name) for name in names]).amin(0)
        limit = {"plain": 13, "graded": 140}.get(how, 35)
        assert float(nearest.min()) <= (limit if how == "graded" else 13)
        assert float(nearest.median()) <= limit
        told.add(how)
    assert told == {"plain", "graded", *scenes.TEXTURES}


def test_every_name_is_drawn_as_the_emoji_of_that_name() -> None:
    _, rows, sheet = shipped()
    for kind, name in enumerate(NAMES):
        own = next(picture for row, picture in zip(rows, sheet, strict=True) if name in row.captions)
        colour, alpha = scenes.cut(torch.from_numpy(own).permute(2, 0, 1).float())
        side = alpha.shape[-1]
        scene = scenes.Scene((Thing(kind, 0, 0, side),), ("plain", "white", "black"))
        pixels, _ = scenes.rendered(scene, side, streams.generator(0, "ground", 0))
        whole = alpha[0] > 0.999
        assert float((pixels.float() - colour)[:, whole].abs().max()) < 1, name


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("red apple", (225, 75, 30)), ("banana", (255, 200, 95)), ("grapes", (140, 85, 155)), ("koala", (160, 155, 160)),
        ("evergreen tree", (5, 150, 55)), ("four leaf clover", (140, 185, 40)), ("sun", (255, 185, 25)),
        ("umbrella", (90, 95, 220)), ("airplane", (85, 140, 170)), ("lady beetle", (155, 45, 50)),
    ],
)  # fmt: skip
def test_unmistakable_things_have_their_colours(name: str, colour: tuple[int, int, int]) -> None:
    drawn, cover = scenes.glyph(NAMES.index(name), 32)
    assert (drawn.sum((1, 2)) / cover.sum()).tolist() == pytest.approx(colour, abs=15)
