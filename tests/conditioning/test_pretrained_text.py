"""Frozen text models of `transformers`, tiny ones: they say what the library says, are never saved, refused when changed."""

import json
import logging
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato import files
from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.kl import KLConfig
from sfumato.conditioning import frozen
from sfumato.conditioning.base import ConditionerConfig
from sfumato.conditioning.pretrained_text import PretrainedText, PretrainedTextConfig
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.training import run
from sfumato.training.fitted import fitted
from sfumato.training.recipe import DiffusionRecipe, dump, parse
from sfumato.training.shortcut import strided
from tests.conditioning import textmodels
from tests.conditioning.textmodels import KINDS, MOST, WIDTH, saved
from tests.conftest import CODER, diffusion_recipe

TEXTS = ["a red cat", "two dogs on the mat", "mat"]
LONG = "a cat on the mat " * 4  # 22 tokens
forget = frozen._model.cache_clear  # a model that is open already


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and no model open from another test."""
    monkeypatch.chdir(tmp_path)
    forget()
    frozen._tokenizer.cache_clear()
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """How many texts of how many tokens the model was given, call by call."""
    found: list[tuple[int, ...]] = []
    plain = frozen._model

    def noted(*given: Any) -> Any:
        model = plain(*given)

        def call(input_ids: Tensor, attention_mask: Tensor) -> Any:
            found.append(tuple(input_ids.shape))
            return model(input_ids=input_ids, attention_mask=attention_mask)

        return call

    monkeypatch.setattr(frozen, "_model", noted)
    return found


def built(folder: Path, *values: Any, **fields: Any) -> PretrainedText:
    """The conditioner of a training whose examples have these values."""
    torch.manual_seed(0)
    config, texts = PretrainedTextConfig(folder=folder, **{"length": MOST, **fields}).learn(values, ())
    assert texts == {}
    return config.build({})


def own(kind: str, whole: Any, texts: list[str]) -> list[Tensor]:
    """The last hidden state of the library's own model for each text, by itself."""
    told = [textmodels.tokenizer()([text], return_tensors="pt") for text in texts]
    with torch.no_grad():
        return [
            textmodels.side(kind, whole)(input_ids=t["input_ids"], attention_mask=t["attention_mask"])
            .last_hidden_state[0]
            .clone()
            for t in told
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_say_what_the_library_makes_of_them(kind: str, place: Path) -> None:
    whole = saved(kind, place / kind)
    wanted = own(kind, whole, TEXTS)
    for given in ((), (TEXTS,)):  # read by itself, and with others in a group of a training
        encoder = built(place / kind, *given, pooled=True)
        for text, rows in zip(TEXTS, wanted, strict=True):
            torch.testing.assert_close(encoder.read(text), rows)
    assert encoder.sizes == (WIDTH, WIDTH, 0)
    c = encoder(TEXTS)
    assert c.tokens is not None
    assert c.mask is not None
    assert c.vector is not None
    assert c.mask.tolist() == [[k < n for k in range(7)] for n in (5, 7, 3)]
    for k, rows in enumerate(wanted):
        normed = torch.nn.functional.layer_norm(rows, (WIDTH,))
        torch.testing.assert_close(c.tokens[k, : len(rows)], normed)
        torch.testing.assert_close(c.vector[k], normed.mean(0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_the_folder_s(kind: str, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, state = saved(kind, place / kind), torch.random.get_rng_state()
    library = logging.getLogger("transformers")  # which hands nothing on
    library.addHandler(caplog.handler)
    model = frozen._model(place / kind, frozen.fingerprint(place / kind), torch.device("cpu"))
    library.removeHandler(caplog.handler)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not caplog.records  # that pictures' weights are not used is no news
    wanted, found = textmodels.side(kind, whole).state_dict(), model.state_dict()
    if kind.startswith("t5"):
        found = {name.removeprefix("encoder."): t for name, t in found.items() if name != "shared.weight"}
    if kind == "bert_whole":  # without a pooler, which is not read
        found = {name: t for name, t in found.items() if not name.startswith("pooler")}
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["clip_text", "bert_whole"])
def test_names_of_published_weights_are_known(kind: str, place: Path) -> None:
    """Weights of CLIP's text side have a prefix there and a table of positions, those of BERT older names."""
    whole = saved(kind, place / kind)
    tensors = files.load_tensors(place / kind / "model.safetensors")
    if kind == "clip_text":
        tensors = {f"text_model.{name}": t for name, t in tensors.items()}
        tensors["text_model.embeddings.position_ids"] = torch.arange(MOST)[None]
    else:
        older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in older.items():
            tensors = {name.replace(new, old): t for name, t in tensors.items()}
    files.save_tensors(place / kind / "model.safetensors", tensors)
    for got, rows in zip(map(built(place / kind).read, TEXTS), own(kind, whole, TEXTS), strict=True):
        torch.testing.assert_close(got, rows)


def test_nothing_asks_the_network(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    import transformers

    class Asked(BaseException):
        """Not an error that a library tries again after."""

    def refuse(*address: Any, **more: Any) -> Any:
        raise Asked(address)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for kind in ("clip", "t5_whole", "bert_whole"):
        saved(kind, place / kind)
        built(place / kind, TEXTS)(TEXTS)
    with pytest.raises(Asked):  # so it would be noticed
        transformers.AutoConfig.from_pretrained("nobody/nothing")


def test_weights_in_parts_are_read_and_known_by_all_of_them(place: Path) -> None:
    whole = saved("t5_whole", place / "t5", shard="4KB")
    assert not (place / "t5" / "model.safetensors").exists()
    encoder = built(place / "t5")
    for got, rows in zip(map(encoder.read, TEXTS), own("t5_whole", whole, TEXTS), strict=True):
        torch.testing.assert_close(got, rows)
    parts = sorted((place / "t5").glob("model-*.safetensors"))
    assert len(parts) > 2
    last = files.load_tensors(parts[-1])
    files.save_tensors(parts[-1], {name: 2 * t for name, t in last.items()})
    forget()
    with pytest.raises(ValueError, match=r"the model was trained with [0-9a-f]{64}; get those"):
        encoder.config.build({})(["a dogs"])
    parts[1].unlink()
    with pytest.raises(ValueError, match=f"lacks {parts[1].name}; copy the folder again, whole"):
        built(place / "t5")


def test_a_text_is_read_once_and_so_many_are_kept(place: Path, reads: list[tuple[int, ...]]) -> None:
    saved("clip_text", place / "clip")
    encoder = built(place / "clip", cache=2)
    for text in ("a", "cat", "a", "red", "a", "cat"):
        encoder([text, text])
    assert [count for count, _ in reads] == [1] * 4  # a, cat, red, and cat again: a was used last when red came
    assert len(encoder.memory) == 2
    assert not (place / "runs").exists()  # what users ask for is not written down


def test_no_more_memory_is_taken_than_was_allowed(place: Path) -> None:
    saved("clip_text", place / "clip")
    encoder = built(place / "clip", memory=1)
    each = encoder.read("cat").nbytes
    encoder.taken = 2**20 - each + 1  # as if many others were there
    encoder.read("red heart")
    assert list(encoder.memory) == ["red heart"]
    assert encoder.taken < 2**20


def test_texts_of_a_training_are_read_in_groups_and_kept_on_disk(place: Path, reads: list[tuple[int, ...]]) -> None:
    saved("bert", place / "bert")
    words = textmodels.WORDS[4:]
    texts = [f"{a} {b} {c}" for a in words for b in words for c in words][:150]
    encoder = built(place / "bert", texts, [None, " "], texts[0], cache=1)
    first = [encoder.read(text) for text in texts]
    assert sum(count for count, _ in reads) == 150
    assert len(reads) <= 6  # two groups of 75 or so, 32 at a time
    kept = list((place / "runs" / "texts").rglob("*.safetensors"))
    assert len(kept) == 150
    again = built(place / "bert", texts)  # another run
    forget()
    (place / "bert" / "model.safetensors").rename(place / "elsewhere")
    assert all(torch.equal(again.read(text), rows) for text, rows in zip(texts, first, strict=True))
    assert torch.equal(again.config.build({}).read(texts[3]), first[3])
    asked = PretrainedTextConfig.model_validate(
        {k: v for k, v in again.config.model_dump(mode="json").items() if k != "kind"}
    )
    assert torch.equal(asked.build({}).read(texts[5]), first[5])  # without the training's texts, as in sampling
    assert sum(count for count, _ in reads) == 150
    loaded = asked.build({})  # and goes on learning: its texts are a training's again
    assert not loaded.writes
    loaded.taught([texts[:40], texts[30:], None])
    assert loaded.writes
    assert loaded.groups(texts[7]) == again.groups(texts[7])


def test_texts_of_like_length_are_read_together(place: Path, reads: list[tuple[int, ...]]) -> None:
    saved("t5_encoder", place / "t5")
    texts = [[2] + [4 + k % 8] * length + [3] for k in range(16) for length in (1, 3, 5, 14)]
    sha256, cpu = frozen.fingerprint(place / "t5"), torch.device("cpu")
    made = frozen.rows(place / "t5", sha256, texts, cpu)
    assert reads == [(32, 5), (32, 16)]
    assert [len(rows) for rows in made] == [len(text) for text in texts]
    turned = frozen.rows(place / "t5", sha256, texts[::-1], cpu)
    assert all(torch.equal(a, b) for a, b in zip(made, turned[::-1], strict=True))


def test_the_same_training_has_the_same_bits_whatever_is_shown_first(place: Path) -> None:
    saved("t5_encoder", place / "t5")
    texts = [f"{a} {b}" for a in textmodels.WORDS[4:] for b in textmodels.WORDS[4:]]
    one = built(place / "t5", texts, kept=place / "one")
    other = built(place / "t5", texts[::-1], kept=place / "other")
    rows = one(texts).tokens
    assert torch.equal(other(texts[::-1]).tokens.flip(0), rows)  # type: ignore[union-attr, arg-type]
    alone = built(place / "t5", texts, kept=None)
    torch.testing.assert_close(alone(texts).tokens, rows)
    names = [sorted(p.name for p in (place / n).rglob("*.safetensors")) for n in ("one", "other")]
    assert names[0] == names[1]
    assert len(names[0]) == len(texts)


def test_what_was_kept_of_other_weights_or_is_damaged_is_made_again(place: Path, reads: list[tuple[int, ...]]) -> None:
    saved("clip_text", place / "clip")
    first = built(place / "clip", TEXTS).read(TEXTS[0])
    (path,) = [p for p in (place / "runs").rglob("*.safetensors") if torch.equal(files.load_tensors(p)["rows"], first)]
    whole = path.read_bytes()
    for damaged in (b"", whole[:-4] + b"\0\0\0\0", whole[:40]):
        path.write_bytes(damaged)
        before = len(reads)
        assert torch.equal(built(place / "clip", TEXTS).read(TEXTS[0]), first)
        assert len(reads) == before + 1
        assert path.read_bytes() == whole
    tensors = files.load_tensors(place / "clip" / "model.safetensors")
    files.save_tensors(place / "clip" / "model.safetensors", {name: 1.5 * t for name, t in tensors.items()})
    forget()
    assert not torch.allclose(built(place / "clip", TEXTS).read(TEXTS[0]), first)
    assert len(list((place / "runs" / "texts").iterdir())) == 2


CHILD = """
import sys
from pathlib import Path
from sfumato.conditioning.pretrained_text import PretrainedTextConfig
texts = [f"{a} {b}" for a in "a red cat two dogs on the mat".split() for b in "a red cat two dogs on the mat".split()]
print("ready", flush=True)
sys.stdin.readline()
encoder = PretrainedTextConfig(folder=Path("bert"), length=16).learn(texts, ())[0].build({})
print(sum(float(encoder.read(text).double().sum()) for text in texts))
"""


@pytest.mark.slow
def test_several_processes_may_fill_one_shelf(place: Path) -> None:
    saved("bert", place / "bert")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen([sys.executable, "-c", CHILD], **pipes) for _ in range(2)]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 2  # type: ignore[union-attr]
    for child in children:
        child.stdin.write("\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
    told = [child.communicate()[0] for child in children]
    assert told[0] == told[1] != ""
    kept = [p for p in (place / "runs").rglob("*") if p.is_file()]
    assert len(kept) == 64
    shelf = frozen.Shelf(place / "runs" / "texts", frozen.fingerprint(place / "bert"))
    assert all(shelf.get(tokens) is not None for tokens in frozen.tokens(place / "bert", ["a a", "mat the"]))


def test_a_full_disk_says_what_to_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("clip_text", place / "clip")
    encoder = built(place / "clip", TEXTS)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no disk space left for"):
        encoder.read("mat")
    assert not [p for p in (place / "runs").rglob("*") if p.is_file()]


def test_captions_that_are_too_long_are_told_before_training(place: Path) -> None:
    saved("t5_encoder", place / "t5")
    saved("bert", place / "bert")
    with pytest.raises(ValueError, match=r"1 of 4 different texts of 'caption' are too long: 'a cat on the mat"):
        built(place / "t5", TEXTS, None, [LONG], LONG, length=21)
    with pytest.raises(ValueError, match=r"has 22 tokens and this conditioner reads 21; give it `length: 22`"):
        built(place / "t5", LONG, length=21)
    assert built(place / "t5", LONG, length=22)([LONG]).mask.sum() == 22  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="has 22 tokens and this conditioner reads 16; shorten them"):
        built(place / "bert", LONG)
    with pytest.raises(ValueError, match="a bert that reads 16 tokens, `length` says 17; give it `length: 16`"):
        built(place / "bert", length=17)
    with pytest.raises(ValueError, match="has 22 tokens, this model reads 21; shorten it"):  # in sampling
        built(place / "t5", length=21)([LONG])
    learned, _ = PretrainedTextConfig(folder=place / "t5", length=21).learn(TEXTS, ())
    (place / "t5" / "model.safetensors").unlink()  # what is held out is asked of the tokenizer alone
    learned.check([None, *TEXTS], {})
    with pytest.raises(ValueError, match="1 of 1 different texts of 'caption' are too long"):
        learned.check([None, LONG], {})
    with pytest.raises(ValueError, match="must be a text that says something; got 3"):
        built(place / "bert", [3])


def test_the_frozen_model_is_named_not_saved(place: Path) -> None:
    saved("clip", place / "clip")
    encoder = built(Path("clip"))
    assert sorted(encoder.state_dict()) == ["norm.bias", "norm.weight", "nothing"]
    assert encoder.config.sha256 == files.sha256(place / "clip" / "model.safetensors")
    told = encoder.config.model_dump(mode="json")
    assert told["folder"] == str(place / "clip")
    assert (told["width"], told["kept"]) == (WIDTH, "runs/texts")
    again = ConditionerConfig.model_validate(told)
    assert again == encoder.config
    tensors = files.load_tensors(place / "clip" / "model.safetensors")
    files.save_tensors(place / "clip" / "model.safetensors", {name: -t for name, t in tensors.items()})
    with pytest.raises(ValueError, match=r"the model was trained with [0-9a-f]{64}; get those"):
        again.build({})(["cat"])  # type: ignore[operator]


def test_what_cannot_be_read_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / "clip"
    saved("clip", folder)
    for value in (3, " "):
        with pytest.raises(ValueError, match="says something"):
            built(folder)([value])
    with pytest.raises(ValueError, match="`width` says 7; leave it out"):
        built(folder, width=7)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ValueError, match="pip install transformers"):
            built(folder)(["cat"])
    config = (folder / "config.json").read_text()
    for text, words in (
        (json.dumps({"model_type": "gpt2"}), "type 'gpt2'; known as text models: clip"),
        ("[]", "type 'None'"),
        ("{", "is not JSON"),
        (json.dumps({"model_type": "t5"}), "does not tell 'd_model'"),
        (config.replace('"vocab_size": 12', '"vocab_size": 6'), "gives a token 6, and its model knows 6"),
    ):
        files.write(folder / "config.json", text)
        with pytest.raises(ValueError, match=words):
            built(folder, "a red cat")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        built(folder)


@pytest.mark.parametrize("kind", ["clip_text", "t5_encoder", "bert"])
def test_a_folder_without_a_tokenizer_is_refused(kind: str, place: Path) -> None:
    """The library gives T5 and BERT a tokenizer then that knows no word."""
    saved(kind, place / kind)
    (place / kind / "tokenizer.json").unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"has no tokenizer .*in the folder `tokenizer`"):
            built(place / kind, "a red cat")
        (place / kind / "tokenizer_config.json").unlink(missing_ok=True)
    files.write(place / kind / "tokenizer.json", "{}")
    with pytest.raises(ValueError, match=r"tokenizer in .* cannot be read"):
        built(place / kind, "a red cat")


def test_weights_in_pickle_are_not_read(place: Path) -> None:
    saved("bert", place / "bert")
    (place / "bert" / "model.safetensors").rename(place / "bert" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must be in safetensors"):
        built(place / "bert")


@pytest.mark.parametrize(
    ("kind", "gone"), [("clip", "final_layer_norm"), ("t5_whole", "encoder.final_layer_norm"), ("bert", "LayerNorm")]
)
def test_weights_that_are_not_whole_are_not_made_up(kind: str, gone: str, place: Path) -> None:
    saved(kind, place / kind)
    path = place / kind / "model.safetensors"
    tensors = files.load_tensors(path)
    files.save_tensors(path, {name: t for name, t in tensors.items() if gone not in name})
    with pytest.raises(ValueError, match=rf"have no .*{gone}.* \(\d+ tensors are missing\); copy the folder again"):
        built(place / kind)(["cat"])


def test_a_folder_that_moved_is_asked_for(place: Path) -> None:
    saved("bert", place / "bert")
    encoder = built(place / "bert")
    shutil.move(place / "bert", place / "elsewhere")
    with pytest.raises(ValueError, match=r"there is no folder .*name its place as `folder`"):
        encoder(["cat"])
    moved = encoder.config.model_copy(update={"folder": place / "elsewhere"})
    assert moved.build({})(["cat"]).tokens is not None


def test_gradients_reach_what_is_learned_and_nothing_else(place: Path) -> None:
    saved("bert", place / "bert")
    encoder = built(place / "bert", TEXTS)
    c, null = encoder(TEXTS), encoder.null(2)
    (c.tokens.square().sum() + null.tokens.square().sum()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in encoder.parameters())
    model = frozen._model(encoder.folder, encoder.sha256, torch.device("cpu"))
    assert all(p.grad is None for p in model.parameters())


def captioned(folder: Path, captions: list[str]) -> Path:
    """Pictures with a caption each."""
    folder.mkdir()
    for k, caption in enumerate(captions):
        Image.new("RGB", (32, 32), (20 * k, 99, 30)).save(folder / f"{k}.png")
        files.write(folder / f"{k}.txt", caption)
    return folder


def read(first: Path, place: Path, captions: list[str], **fields: Any) -> DiffusionRecipe:
    """A recipe for these captions."""
    told = dump(diffusion_recipe(first, images=32, batch=8))
    told["conditioners"] = {"caption": {"kind": "pretrained_text", "folder": str(place / "t5"), **fields}}
    told["data"] = {"kind": "folder", "path": str(captioned(place / "pictures", captions)), "size": 32, "held_out": 0}
    found = parse(told)
    assert isinstance(found, DiffusionRecipe)
    return found


def test_a_caption_that_is_too_long_stops_a_recipe_before_it_is_trained(place: Path) -> None:
    saved("t5_whole", place / "t5")
    asked = read(place / "none", place, [*TEXTS, LONG], length=21)
    with pytest.raises(ValueError, match="1 of 4 different texts of 'caption' are too long"):
        fitted(asked, asked.data.open("train"))


@pytest.mark.slow
def test_a_recipe_trains_with_it_and_reads_each_caption_once(
    first_stage: Path, place: Path, reads: list[tuple[int, ...]]
) -> None:
    saved("t5_whole", place / "t5")
    asked = read(first_stage, place, TEXTS, length=22)
    model = LatentDiffusion.load(run.train(asked, place / "one", device="cpu", quiet=True))
    assert sum(count for count, _ in reads) == len(TEXTS)
    run.train(asked, place / "other", device="cpu", quiet=True)
    assert sum(count for count, _ in reads) == len(TEXTS)
    lines = [(place / name / "metrics.jsonl").read_text() for name in ("one", "other")]
    assert lines[0] == lines[1]
    said = model.conditions({"caption": [TEXTS[0], LONG]}, 2)
    assert said.tokens is not None
    assert said.tokens.shape == (2, 22, WIDTH)


def test_a_shortcut_hears_the_texts_that_its_teacher_is_trained_on(place: Path) -> None:
    saved("t5", place / "t5")
    texts = ["a cat", "the mat", "a dog"]
    config, _ = PretrainedTextConfig(folder=place / "t5", length=MOST).learn(texts, ())
    backbone = {"kind": "unet", "width": 8, "multipliers": [1], "blocks": 1, "attention": [1], "groups": 1}
    settings = DiffusionConfig.model_validate(
        {"backbone": backbone, "prediction": "v", "conditioners": {"words": config}}
    )
    teacher = LatentDiffusion(Codec(KLConfig.model_validate({"coder": CODER})), settings, 32, {})
    teacher.conditions.reader("caption").taught(texts)
    student = strided(teacher, 4).conditions.reader("caption")
    assert student.writes
    assert sorted(student.groups(texts[0])) == sorted(teacher.conditions.reader("caption").groups(texts[0]))
