"""The detector finds what was drawn, and only that: else what it says of samples is worth nothing."""

import pytest
import torch

from sfumato.data.base import Data
from sfumato.data.scenes import Scene, ScenesPart, Thing
from sfumato.evaluation import detection


@pytest.fixture(scope="module")
def part() -> ScenesPart:
    found = Data.model_validate({"kind": "scenes", "count": 400}).open("held_out")
    assert isinstance(found, ScenesPart)
    return found


@pytest.mark.slow
def test_it_finds_what_was_drawn(part: ScenesPart) -> None:
    pictures, asked = detection.of_part(part, range(24))
    found = detection.score(pictures, asked)
    assert found.objects >= 0.95
    assert found.relation >= 0.95
    assert found.boxes >= 0.9
    assert found.classes >= 0.95
    assert found.strange <= 0.05
    maps = [torch.from_numpy(part.fields(k)["map"]) for k in range(12)]
    assert detection.foreground(pictures[:12], maps) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("things", [1, 3, 4])
def test_it_finds_what_was_drawn_however_many_there_are(things: int) -> None:
    part = Data.model_validate({"kind": "scenes", "count": 400}).open("train")
    assert isinstance(part, ScenesPart)
    places = [k for k in range(len(part)) if len(part.scene(k).things) == things][:12]
    found = detection.score(*detection.of_part(part, places))
    assert found.objects >= 0.95
    assert found.boxes >= 0.9
    assert found.classes >= 0.95
    assert found.strange <= 0.05


@pytest.mark.slow
def test_it_does_not_find_what_was_not_drawn(part: ScenesPart) -> None:
    pictures, asked = detection.of_part(part, range(16))
    found = detection.score(pictures, asked[1:] + asked[:1])
    assert found.objects < 0.15
    assert found.relation == 0
    assert found.strange > 1.5
    empty = torch.zeros(3, 64, 64)
    assert detection.find(empty) == []
    ramp = torch.linspace(-1, 1, 64).expand(3, 64, 64)
    assert detection.find(ramp) == []
    texture = (torch.arange(64) // 8 % 2).float().expand(3, 64, 64) * 0.17
    assert detection.find(texture) == []


def test_a_turned_scene_has_its_things_but_not_its_relation(part: ScenesPart) -> None:
    pictures, asked = detection.of_part(part, range(16))
    swapped = [Scene((Thing(a.kind, *b[1:]), Thing(b.kind, *a[1:])), s.ground) for s in asked for a, b in [s.things]]
    found = detection.score(pictures, swapped)
    assert found.objects >= 0.95
    assert found.relation <= 0.05
    assert found.classes <= 0.1


def test_overlap_is_intersection_over_union() -> None:
    assert detection.overlap(Thing(0, 0, 0, 10), Thing(0, 5, 0, 10)) == pytest.approx(1 / 3)
    assert detection.overlap(Thing(0, 0, 0, 10), Thing(0, 10, 0, 10)) == 0
