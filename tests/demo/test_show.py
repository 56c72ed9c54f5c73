"""What the demo's page says of its prompts is so."""

import pytest

from sfumato.data.base import Data
from sfumato.demo import show
from sfumato.evaluation.captions import chosen
from sfumato.training import recipe

EMOJI = Data.model_validate({"kind": "emoji", "size": 64})


def captions(name: str) -> set[str]:
    """All captions of a part."""
    part = EMOJI.open(name)
    return {caption for k in range(len(part)) for caption in part.fields(k)["caption"]}


def test_prompts_are_seen_held_out_or_free_as_the_page_says() -> None:
    train, everything = captions("train"), captions("all")
    assert set(show.SEEN) <= train
    assert not everything & set(show.FREE)
    part = EMOJI.open("combinations")
    assert not train & {part.fields(k)["caption"][0] for k in chosen(part, len(part))}


@pytest.mark.parametrize("name", ["emoji", "emoji-few"])
def test_previews_are_of_captions_that_training_saw(name: str) -> None:
    fields = recipe.load_yaml(name)
    assert set(fields["prompts"]) <= captions("train")
