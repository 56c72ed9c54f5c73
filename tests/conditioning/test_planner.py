"""A planner puts things where words say, from draws of each picture's own, and what it draws is told as boxes are."""

import itertools
from typing import Any

import pytest
import torch

from sfumato.conditioning.base import Draws
from sfumato.conditioning.boxes import Boxes, BoxesConfig
from sfumato.conditioning.bundle import Bundle
from sfumato.conditioning.planner import GRID, PREFIXES, Choices, Planner
from sfumato.conditioning.text import TextConfig
from sfumato.training.muon import Muon

THINGS = ("cat", "dog", "red apple", "sun")
FORMS = {"a {0} left of a {1}": (0, 1), "a {1} right of a {0}": (0, 1)}


def examples(count: int, seed: int) -> list[tuple[str, list[tuple[str, float, float, float, float]]]]:
    """Captions with two things beside one another, in either order of words; boxes in an order that says nothing."""
    rng, found = torch.Generator().manual_seed(seed), []
    pairs = list(itertools.permutations(THINGS, 2))
    for _ in range(count):
        pair, form, turn = (int(torch.randint(0, n, (), generator=rng)) for n in (len(pairs), 2, 2))
        y, left, right = (float(v) for v in torch.rand(3, generator=rng) * 0.2)
        boxes = [(pairs[pair][0], left, y, left + 0.3, y + 0.5), (pairs[pair][1], right + 0.5, y, right + 0.8, y + 0.4)]
        found.append((list(FORMS)[form].format(*pairs[pair]), boxes[::-1] if turn else boxes))
    return found


def built(**planner: Any) -> Boxes:
    torch.manual_seed(0)
    config = BoxesConfig(width=16, labels=THINGS, most=3, planner={"width": 32, "heads": 2, **planner})
    return config.build(config.heard([caption for caption, _ in examples(64, 0)]))


def planner(boxes: Boxes) -> Planner:
    assert boxes.planner is not None
    return boxes.planner


def test_a_box_is_four_choices_and_comes_back_within_a_cell() -> None:
    rng = torch.Generator().manual_seed(0)
    centre, side = 0.3 + 0.4 * torch.rand(200, 2, generator=rng), 0.05 + 0.5 * torch.rand(200, 2, generator=rng)
    corners = torch.cat([centre - side / 2, centre + side / 2], 1)
    again = Choices.of(torch.zeros(200, dtype=torch.long), corners).corners(*torch.full((2, 200), 0.5))
    sides = again[:, 2:] - again[:, :2]
    assert float((sides - side).abs().max()) <= 0.5 / GRID + 1e-6
    inside = (again[:, :2] > 0).all(1) & (again[:, 2:] < 1).all(1)  # others were pushed in
    middle = (again[:, :2] + again[:, 2:]) / 2
    assert float((middle - centre)[inside].abs().max()) <= 0.5 / GRID + 1e-6
    assert int(inside.sum()) > 150


@pytest.mark.parametrize("at", [0.0, 0.999])
def test_drawn_corners_lie_inside_the_picture(at: float) -> None:
    every = torch.cartesian_prod(torch.arange(GRID**2), torch.arange(GRID), torch.arange(0, GRID, 5))
    share = torch.full((len(every),), at)
    corners = Choices(torch.zeros(len(every)), *every.T).corners(share, share)
    assert float(corners.min()) >= 0
    assert float(corners.max()) <= 1
    assert bool((corners[:, :2] < corners[:, 2:]).all())


def test_boxes_come_as_the_words_name_them() -> None:
    one = planner(built())
    layout = [(3, (0.0,)), (2, (0.1,)), (1, (0.2,)), (0, (0.3,))]
    assert [n for n, _ in one.ordered("A Red Apple left of a cat, with a dog", layout)] == [2, 0, 1, 3]


def test_a_name_within_another_is_not_it() -> None:
    one = planner(built())
    one.names = ["sun", "sunflower", "cat", "dog"]
    layout = [(0, (0.0,)), (1, (0.1,)), (0, (-0.1,))]
    assert one.ordered("a sunflower left of a sun", layout) == [layout[1], layout[2], layout[0]]
    assert one.ordered("a cat", layout) == [layout[2], layout[0], layout[1]]  # unnamed: by class, from the left


def test_what_is_learned_of_an_example_hangs_on_it_alone() -> None:
    boxes, several = built(), examples(6, 1)
    draws = Draws.training(0, range(6))
    captions, layouts = [c for c, _ in several], [b for _, b in several]
    layouts[2] = [("cat", 0.1 * k, 0.1, 0.1 * k + 0.05, 0.4) for k in range(3)]
    whole = boxes.lesson(layouts, captions, draws)
    assert whole.shape == (6,)
    parts = [boxes.lesson([layouts[k]], [captions[k]], draws.pick([k])) for k in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-5, rtol=1e-5)
    other = boxes.lesson([b[::-1] for b in layouts[:1]], captions[:1], draws.pick([0]))
    torch.testing.assert_close(other, whole[:1], atol=1e-5, rtol=1e-5)  # the order of the data says nothing


def test_of_many_boxes_some_prefixes_are_learned_from() -> None:
    one, many = planner(built()), [(k % 4, (0.01 * k, 0.1, 0.01 * k + 0.05, 0.4)) for k in range(40)]
    seen = list[int]()
    one.register_forward_pre_hook(lambda _, args: seen.extend(args[1].mask.sum(1).tolist()))
    found = one.lesson(["a cat"], [many], Draws.training(0, [0]))
    assert bool(found.isfinite().all())
    assert 1 < len(seen) <= PREFIXES
    assert max(seen) > 10


def test_a_layout_is_its_own_draws_whatever_the_batch() -> None:
    boxes, captions = built(), [c for c, _ in examples(5, 2)]
    whole = boxes.imagined(captions, Draws.request(range(5)))
    alone = boxes.imagined(captions[3:4], Draws.request([3]))
    assert alone[0] == whole[3]
    assert boxes.imagined(captions[3:4], Draws.request([4])) != alone
    assert all(1 <= len(layout) <= 3 for layout in boxes.imagined(captions * 20, Draws.request(range(100))))
    boxes.read(whole[0])  # what it draws is what it reads


def test_left_and_right_are_learned_in_a_hundred_steps() -> None:
    boxes = built()
    parameters = list(planner(boxes).parameters())
    optimizers: list[torch.optim.Optimizer] = [
        Muon([p for p in parameters if p.ndim == 2], 1e-2),
        torch.optim.AdamW([p for p in parameters if p.ndim != 2], 1e-2),
    ]
    for step in range(100):
        several = examples(32, step)
        loss = boxes.lesson([b for _, b in several], [c for c, _ in several], Draws.training(0, range(32))).mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    asked = examples(64, 1000)
    right = 0
    for layout, (_, true) in zip(boxes.imagined([c for c, _ in asked], Draws.request(range(64))), asked, strict=True):
        first, second = sorted(true, key=lambda b: b[1])
        where = {b.label: b.x0 for b in layout}
        right += len(layout) == 2 and {*where} == {first[0], second[0]} and where[first[0]] < where[second[0]]
    assert right >= 56


def bundle() -> Bundle:
    text = TextConfig(width=16, heads=2)
    words = text.build(text.learn([c for c, _ in examples(64, 0)], ())[1])
    return Bundle({"caption": words, "layout": built()}, (4, 4))


def test_only_what_is_unsaid_is_imagined_and_only_from_words() -> None:
    all_, said = bundle(), [("cat", 0.1, 0.1, 0.5, 0.5)]
    found = all_.imagined({"caption": ["a cat", "a dog left of a sun", None], "boxes": [said, None, None]}, 3)
    assert found["boxes"][0] is said
    assert found["boxes"][2] is None
    assert found["boxes"][1] is not None
    assert all_.imagined({"caption": ["a dog"] * 2}, 2).keys() == {"caption", "boxes"}
    assert Bundle({}).imagined({}, 2) == {}


def test_a_lesson_is_a_mean_over_all_examples_of_those_that_say_both() -> None:
    all_, several = bundle(), examples(3, 3)
    fields = {"caption": [several[0][0], None, several[2][0]], "boxes": [b for _, b in several]}
    draws = Draws.training(0, range(3))
    found = all_.lesson(fields, 3, draws)
    both = built().lesson([several[0][1], several[2][1]], [several[0][0], several[2][0]], draws)
    assert found is not None
    torch.testing.assert_close(found, both.sum() / 3)
    assert float(all_.lesson({"caption": ["a cat"]}, 1, draws) or 0) == 0
    assert all_.lesson({"caption": ["a cat"]}, 1, draws) is not None  # every part of a batch tells the same measures
    assert Bundle({}).lesson({}, 1, draws) is None
    assert all_.read == {"caption", "boxes"}
