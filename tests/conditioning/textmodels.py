"""Tiny text models of `transformers` with weights of their own, each in a folder with a tokenizer of a dozen words."""

from pathlib import Path
from typing import Any

import torch

from sfumato.features.vision import library

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "cat", "two", "dogs", "on", "the", "mat")
WIDTH, MOST = 8, 16  # of what they make of a token, and tokens that CLIP and BERT read
KINDS = ("clip", "clip_text", "t5", "t5_encoder", "t5_whole", "bert", "bert_whole")


def model(kind: str) -> Any:
    """A model whose weights are nowhere zero."""
    import transformers as t

    same: dict[str, Any] = {"vocab_size": len(WORDS), "intermediate_size": 16, "num_attention_heads": 2}
    text: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "max_position_embeddings": MOST, **same}
    eyes = {"hidden_size": 12, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4, **same}
    clip = t.CLIPConfig(text_config={**text, "bos_token_id": 2, "eos_token_id": 3}, vision_config=eyes)
    t5 = t.T5Config(vocab_size=len(WORDS), d_model=WIDTH, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    makers = {
        "clip": lambda: t.CLIPModel(clip),
        "clip_text": lambda: t.CLIPTextModel(clip.text_config),
        "t5": lambda: t.T5Model(t5),
        "t5_encoder": lambda: t.T5EncoderModel(t5),
        "t5_whole": lambda: t.T5ForConditionalGeneration(t5),
        "bert": lambda: t.BertModel(t.BertConfig(**text)),
        "bert_whole": lambda: t.BertForMaskedLM(t.BertConfig(**text)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = makers[kind]()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def side(kind: str, whole: Any) -> Any:
    """The part of a model that reads texts."""
    names = {
        "clip": "text_model",
        "t5": "encoder",
        "t5_encoder": "encoder",
        "t5_whole": "encoder",
        "bert_whole": "bert",
    }
    return getattr(whole, names[kind]) if kind in names else whole


def tokenizer() -> Any:
    """A word a token, between a mark of the beginning and one of the end."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def saved(kind: str, folder: Path, shard: str = "5GB") -> Any:
    """The model, written to a folder with its tokenizer; its weights in parts where they are larger than `shard`."""
    library("tests")  # without its progress bars
    made = model(kind)
    made.save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    return made
