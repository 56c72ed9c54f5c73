"""`kind: text`. Words as tokens: byte-pair encoding learned from the captions, a transformer trained with the U-Net.

This is the tau_theta of Rombach et al. (2022), section 3.3, trained jointly with eps_theta through the cross-attention.
The mean of its tokens also joins the time embedding: small networks learn what the picture is from it long before
cross-attention sharpens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sfumato.conditioning.base import Conditioner, ConditionerConfig, Conditions, Latents, Setting, Sizes, short_enough
from sfumato.nn.attention import TransformerBlock
from sfumato.nn.embed import sinusoid

TOKENIZER = "tokenizer.json"
LONGEST = 100.0  # tokens to a radian of the slowest sine of the positions
AT_ONCE = 4096  # texts whose tokens are counted together


class TextConfig(ConditionerConfig):
    """A vocabulary of at most `vocabulary` pieces and a transformer of `layers` blocks over at most `length` tokens."""

    field: str = "caption"
    width: PositiveInt = 256
    layers: int = Field(2, ge=0)
    heads: PositiveInt = 4
    expansion: PositiveInt = 2
    vocabulary: PositiveInt = 4096
    length: PositiveInt = Field(48, description="tokens that a text may have; longer ones are refused")
    pooled: bool = Field(True, description="the mean of the tokens also joins the time embedding")
    trained: bool = Field(True, description="false: the encoder stays as it was drawn, to compare with")

    def learn(self, values: Sequence[Any], labels: Sequence[str]) -> tuple["TextConfig", dict[str, str]]:
        texts = list(flat(values))
        if not texts:
            raise ValueError(f"the data have no {self.field!r}: put a NAME.txt beside each picture, or metadata.jsonl")
        tokenizer = train_tokenizer(texts, self.vocabulary)
        self._check(sorted(set(texts)), tokenizer)
        return self, {TOKENIZER: tokenizer}

    def check(self, values: Sequence[Any], files: Mapping[str, str]) -> None:
        if texts := sorted(set(flat(values))):
            self._check(texts, files[TOKENIZER])

    def _check(self, texts: Sequence[str], tokenizer: str) -> None:
        """Raise `ValueError` where texts have more tokens than are read: training would stop when one is first shown."""
        short_enough(texts, counted(texts, tokenizer), self.length, self.field)

    def build(self, files: Mapping[str, str], latents: Latents | None = None) -> "Text":
        if TOKENIZER not in files:
            raise ValueError(f"the text conditioner needs its {TOKENIZER}; the model folder has none")
        return Text(self, files[TOKENIZER])


def flat(values: Sequence[Any]) -> Iterator[str]:
    """The texts of values that are a text, several, or none."""
    for value in values:
        if value is not None:
            yield from [value] if isinstance(value, str) else value


def counted(texts: Sequence[str], tokenizer: str) -> list[int]:
    """How many tokens each text has."""
    from tokenizers import Tokenizer

    reader, found = Tokenizer.from_str(tokenizer), list[int]()
    for begin in range(0, len(texts), AT_ONCE):
        found += [len(one.ids) for one in reader.encode_batch(texts[begin : begin + AT_ONCE])]
    return found


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> str:
    """Byte-pair encoding (Sennrich et al., 2016) of lower-cased words, as the JSON of the `tokenizers` library."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # words are marked at their beginning: marks at their end get their numbers in the order of a hash table, so that
    # two trainings on the same texts would differ
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    # sorted, so that the vocabulary does not depend on the order in which the data were read
    tokenizer.train_from_iterator(sorted(texts), trainer)
    result: str = tokenizer.to_str()
    return result


class Text(Conditioner):
    """Texts -> tokens (B, N, width) with their mask (B, N), and their mean (B, width) as the vector."""

    role = "caption"

    def __init__(self, config: TextConfig, tokenizer: str) -> None:
        super().__init__()
        from tokenizers import Tokenizer

        self.field, self.dropout, self.length, self.pooled = (
            config.field,
            config.dropout,
            config.length,
            config.pooled,
        )
        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.sizes = Sizes(vector=config.width if config.pooled else 0, tokens=config.width)
        self.embedding = nn.Embedding(self.tokenizer.get_vocab_size(), config.width)
        # as large as the words, and alike where they are near: beside words of 0.5 the customary 0.02 takes twice the steps
        # to learn what only words and their order together tell (tests/conditioning/test_text.py)
        self.position = nn.Parameter(0.5 * sinusoid(torch.arange(config.length), config.width, LONGEST))
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.heads, expansion=config.expansion) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.nothing = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.requires_grad_(config.trained)
        self.nothing.requires_grad_(True)  # what stands for no text has nothing to say that could be compared

    def encode(self, values: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Token numbers and their mask, both (B, N). Raises `ValueError` for a text that is empty or too long."""
        rows = []
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{self.field} must be a text that says something; got {value!r}")
            row = self.tokenizer.encode(value).ids
            if len(row) > self.length:
                raise ValueError(
                    f"the {self.field} {value[:40]!r}... has {len(row)} tokens, this model reads {self.length}; shorten it"
                )
            rows.append(row or [1])
        longest = max(len(r) for r in rows)
        tokens = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
        mask = torch.tensor([[True] * len(r) + [False] * (longest - len(r)) for r in rows])
        device = self.position.device
        return tokens.to(device), mask.to(device)

    def forward(self, values: Sequence[Any], setting: Setting | None = None) -> Conditions:
        numbers, mask = self.encode(values)
        x = self.embedding(numbers) + self.position[: numbers.shape[1]]
        for block in self.blocks:
            x = block(x, own=mask)
        return self._conditions(self.norm(x), mask)

    def _conditions(self, tokens: Tensor, mask: Tensor) -> Conditions:
        weight = mask.to(tokens.dtype)[..., None]
        vector = (tokens * weight).sum(1) / weight.sum(1) if self.pooled else None
        return Conditions(vector=vector, tokens=tokens, mask=mask)

    def null(self, count: int, setting: Setting | None = None) -> Conditions:
        tokens = self.nothing.expand(count, -1, -1)
        return self._conditions(tokens, torch.ones(count, 1, dtype=torch.bool, device=tokens.device))
