"""Conditions: doors, masks, nulls, and errors that name what can be said."""

import pytest
import torch

from sfumato.conditioning.base import ConditionerConfig, Conditions, choose, join
from sfumato.conditioning.bundle import Bundle
from sfumato.conditioning.label import Label, LabelConfig
from sfumato.conditioning.masked import MaskedConfig
from sfumato.conditioning.text import Text, TextConfig
from tests.conditioning.settings import Averaging

TEXTS = ["a red heart", "a blue heart", "woman firefighter: dark skin tone", "flag: japan"]


def text(**fields: object) -> Text:
    torch.manual_seed(0)
    config, files = TextConfig.model_validate(
        {"width": 16, "heads": 2, "layers": 1, "vocabulary": 200, **fields}
    ).learn([[t] for t in TEXTS], ())
    assert isinstance(config, TextConfig)
    return config.build(files)


def label(**fields: object) -> Label:
    torch.manual_seed(0)
    config, _ = LabelConfig.model_validate({"width": 6, **fields}).learn([0, 1], ["cat", "dog"])
    assert isinstance(config, LabelConfig)
    return config.build({})


def test_names_in_another_order_than_the_datas_are_refused() -> None:
    assert label(labels=("a", "b", "c")).labels == ("a", "b", "c")  # called otherwise
    assert label(labels=("cat", "dog", "hen")).labels == ("cat", "dog", "hen")
    with pytest.raises(ValueError, match="the data's classes in another order: 'cat' is number 0 of the data"):
        label(labels=("dog", "cat"))


def test_padding_does_not_change_a_text() -> None:
    encoder = text().eval()
    alone, together = encoder(["a red heart"]), encoder(["a red heart", TEXTS[2]])
    assert alone.tokens is not None
    assert alone.vector is not None
    assert together.tokens is not None
    assert together.mask is not None
    assert together.vector is not None
    length = alone.tokens.shape[1]
    torch.testing.assert_close(together.tokens[:1, :length], alone.tokens)
    torch.testing.assert_close(together.vector[:1], alone.vector)
    assert together.mask[0].tolist() == [True] * length + [False] * (together.mask.shape[1] - length)


def test_words_in_any_case_are_the_same_words_and_unknown_ones_are_read() -> None:
    encoder = text()
    assert torch.equal(encoder.encode(["A Red HEART"])[0], encoder.encode(["a red heart"])[0])
    assert encoder.encode(["Ωμέγα"])[0].shape[0] == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [("", "says something"), (3, "says something"), ("heart " * 5000, "this model reads 48; shorten it")],
)
def test_texts_that_cannot_be_read_are_refused(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        text()([value])


def test_the_vocabulary_does_not_depend_on_the_order_of_the_data() -> None:
    files = [TextConfig(vocabulary=100).learn(values, ())[1] for values in (TEXTS, TEXTS[::-1])]
    assert files[0] == files[1]


def test_data_without_what_a_conditioner_reads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"NAME\.txt beside each picture"):
        TextConfig().learn([], ())
    with pytest.raises(ValueError, match="class folders"):
        LabelConfig().learn([], ())


def test_captions_that_are_too_long_are_told_before_training() -> None:
    long = " ".join(f"word{k}" for k in range(60))
    with pytest.raises(
        ValueError, match=r"1 of 5 different texts of 'caption' are too long: 'word0 word1 .*'\.\.\. has \d+"
    ):
        TextConfig(vocabulary=200).learn([[t] for t in [*TEXTS, long, long]], ())
    with pytest.raises(ValueError, match=r"give it `length: (\d+)`") as told:
        TextConfig(vocabulary=200).learn([long, None, TEXTS], ())
    length = int(str(told.value).split("`length: ")[1].split("`")[0])
    config, files = TextConfig(vocabulary=200, length=length).learn([long, None, TEXTS], ())
    assert config.build(files)([long]).tokens is not None  # type: ignore[attr-defined]


def test_labels_are_read_by_name_and_by_number() -> None:
    by_name, by_number = label()(["dog"]), label()([1])
    assert by_name.vector is not None
    assert by_number.vector is not None
    assert torch.equal(by_name.vector, by_number.vector)
    with pytest.raises(ValueError, match="knows cat, dog"):
        label()(["cow"])
    tokens = label(door="tokens")(["cat"])
    assert tokens.vector is None
    assert tokens.tokens is not None
    assert tokens.tokens.shape == (1, 1, 6)


def test_a_bundle_joins_doors_and_projects_token_widths() -> None:
    bundle = Bundle({"caption": text(), "kind": label(door="tokens"), "class": label()})
    assert bundle.sizes == (16 + 6, 16, 0)
    c = bundle({"caption": TEXTS[:2], "label": ["cat", 1]}, 2)
    assert c.vector is not None
    assert c.tokens is not None
    assert c.mask is not None
    assert c.vector.shape == (2, 22)
    assert c.tokens.shape[2] == 16
    assert c.mask.shape == c.tokens.shape[:2]


def test_nothing_said_is_the_null_however_it_is_not_said() -> None:
    bundle = Bundle({"caption": text().eval()})
    null = bundle.null(2)
    for fields in ({}, {"caption": [None, None]}, {"caption": ["", " "]}):
        said = bundle(fields, 2)
        assert all(
            a is b or torch.equal(a, b)
            for a, b in zip(said.parts(), null.parts(), strict=True)
            if a is not None and b is not None
        )
    dropped = bundle({"caption": TEXTS[:2]}, 2, torch.tensor([[True], [False]]))
    kept = bundle({"caption": [None, TEXTS[1]]}, 2)
    assert dropped.vector is not None
    assert kept.vector is not None
    assert torch.equal(dropped.vector, kept.vector)
    assert null.vector is not None
    torch.testing.assert_close(dropped.vector[0], null.vector[0])


def test_unknown_fields_and_wrong_counts_are_refused() -> None:
    bundle = Bundle({"caption": text()})
    with pytest.raises(ValueError, match="takes no label; it takes caption"):
        bundle({"label": [0]}, 1)
    with pytest.raises(ValueError, match="1 values of 'caption' for 2 images"):
        bundle({"caption": ["a"]}, 2)


def test_dropout_drops_at_the_conditioners_own_rates() -> None:
    bundle = Bundle({"caption": text(dropout=0.25), "class": label(dropout=0.0)})
    draws = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    dropped = bundle.dropped(draws)
    assert abs(float(dropped[:, 0].float().mean()) - 0.25) < 0.03
    assert not dropped[:, 1].any()
    assert not bundle.dropped(draws, 0.5)[:, 1].any()


def test_what_guidance_amplifies_is_dropped_together_in_the_share_that_is_asked_for() -> None:
    """By chance alone two conditions at a rate of 0.1 are unsaid together once in a hundred examples."""
    held = MaskedConfig(dropout=0.1).build({}, Averaging())
    bundle = Bundle({"caption": text(dropout=0.1), "class": label(dropout=0.1), "hole": held})
    assert bundle.amplified == 2
    draws = torch.rand(8000, 4, generator=torch.Generator().manual_seed(0))
    apart, joint = bundle.dropped(draws), bundle.dropped(draws, 0.2)
    assert abs(float(apart[:, :2].all(1).float().mean()) - 0.01) < 0.005
    assert abs(float(joint[:, :2].all(1).float().mean()) - 0.208) < 0.02
    assert torch.equal(apart[:, 2], joint[:, 2])  # what is given stays on both sides of guidance


def test_joined_and_chosen_conditions_pad_their_tokens() -> None:
    short = Conditions(tokens=torch.ones(1, 2, 3), mask=torch.ones(1, 2, dtype=torch.bool))
    long = Conditions(tokens=torch.ones(1, 4, 3), mask=torch.ones(1, 4, dtype=torch.bool))
    both = join([short, long])
    assert both.mask is not None
    assert both.mask.sum(1).tolist() == [2, 4]
    picked = choose(torch.tensor([False]), long, short)
    assert picked.mask is not None
    assert picked.mask.sum(1).tolist() == [2]


def test_gradients_reach_the_text_encoder() -> None:
    encoder = text()
    c = Bundle({"caption": encoder})({"caption": TEXTS}, 4)
    assert c.tokens is not None
    assert c.vector is not None
    (c.tokens.square().sum() + c.vector.sum()).backward()
    assert encoder.embedding.weight.grad is not None
    assert float(encoder.embedding.weight.grad.abs().sum()) > 0


def test_a_conditioner_without_its_tokenizer_says_so() -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        ConditionerConfig.model_validate({"kind": "text"}).build({})


def test_several_labels_are_one_mean_or_a_token_each() -> None:
    one, two, both = label()(["cat"]).vector, label()(["dog"]).vector, label()([["dog", 0], ["dog", "dog"]]).vector
    assert one is not None
    assert two is not None
    assert both is not None
    torch.testing.assert_close(both, torch.cat([(one + two) / 2, two]))
    tokens = label(door="tokens")([["cat", "dog"], "dog"])
    assert tokens.mask is not None
    assert tokens.mask.tolist() == [[True, True], [True, False]]


def test_unknown_labels_offer_the_nearest_and_numbers_their_range() -> None:
    with pytest.raises(ValueError, match="unknown label 'dgo'; nearest: dog; the model knows cat, dog"):
        label()(["dgo"])
    flowers = label(labels=("rose", "Daisy", "dandelion", "daisy"))
    for said, offer in (
        ("DAISY", "Daisy, daisy;"),
        ("daisi", "Daisy, daisy;"),
        ("Rosé", "rose;"),
        ("DANDELLION", "dandelion;"),
    ):
        with pytest.raises(ValueError, match=f"unknown label '{said}'; nearest: {offer} the model knows rose, Daisy"):
            flowers([said])
    with pytest.raises(ValueError, match="unknown label 'xyz'; the model knows rose"):
        flowers(["xyz"])
    with pytest.raises(ValueError, match="label 2 is out of range: numbers go from 0 to 1"):
        label()([2])
    for value in (True, -1):
        with pytest.raises(ValueError, match="out of range"):
            label()([value])
    with pytest.raises(ValueError, match="a label is a name or a number"):
        label()([0.5])


def test_a_text_encoder_that_is_left_as_it_was_drawn_learns_nothing_but_its_null() -> None:
    config, texts = TextConfig(width=16, layers=1, trained=False).learn(["red heart", "sun"], ())
    text = config.build(texts)
    free = [name for name, p in text.named_parameters() if p.requires_grad]
    assert free == ["nothing"]
    assert all(p.requires_grad for p in config.model_copy(update={"trained": True}).build(texts).parameters())
