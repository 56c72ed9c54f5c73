"""What lies where, from words: a layout that is drawn box by box.

A transformer reads the words and the boxes that are there already, and says what comes next, or that nothing does; then
where its centre lies, in one of 16 x 16 cells, then how wide and how high it is. Each choice is drawn from a distribution
over all values given those before, so that layouts are as various as the data's. It never sees the picture.

Boxes come in the order in which the words name them, and sizes teach nothing but their own heads: in the data's order what
stands left hangs on an exclusive or, of which thing is named first and how, and each class's own proportions are a louder
lesson than left and right. With either it was not learned in 1,000 steps (`docs/experiments.md`, 2026-11-28).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.conditioning.base import Conditions, Draws
from sfumato.conditioning.text import TOKENIZER, Text, TextConfig
from sfumato.config import Config
from sfumato.device import at_least_single
from sfumato.nn.attention import TransformerBlock

GRID = 16  # cells a side for centres, and steps of widths and heights
PREFIXES = 8  # of a layout that are learned from at a time
Layout = Sequence[tuple[int, Sequence[float]]]  # classes and corners


class PlannerConfig(Config):
    """A text encoder of the planner's own, and `depth` blocks in which boxes see one another and the words."""

    field: str = Field("caption", description="the texts that layouts are planned from")
    width: PositiveInt = 128
    layers: int = Field(1, ge=0, description="transformer blocks of the text encoder")
    depth: PositiveInt = 2
    heads: PositiveInt = 4
    vocabulary: PositiveInt = 4096
    length: PositiveInt = Field(48, description="tokens that a text may have; longer ones are refused")

    @property
    def text(self) -> TextConfig:
        """Its text encoder."""
        sizes = {name: getattr(self, name) for name in ("width", "layers", "heads", "vocabulary", "length")}
        return TextConfig(field=self.field, **sizes)

    def build(self, labels: Sequence[str], tokenizer: str) -> "Planner":
        """With fresh weights."""
        return Planner(self, labels, self.text.build({TOKENIZER: tokenizer}))


class Rows(NamedTuple):
    """Boxes of B pictures, padded."""

    numbers: Tensor  # (B, N) classes
    corners: Tensor  # (B, N, 4) x0, y0, x1, y1 in [0, 1]
    mask: Tensor  # (B, N)

    @classmethod
    def of(cls, layouts: Sequence[Layout]) -> "Rows":
        """Those of B layouts."""
        longest = max(map(len, layouts), default=0)
        none = [(0, (0.0, 0.0, 0.0, 0.0))]
        padded = [[*layout, *none * (longest - len(layout))] for layout in layouts]
        numbers = torch.tensor([[number for number, _ in row] for row in padded], dtype=torch.long)
        corners = torch.tensor([[list(box) for _, box in row] for row in padded])
        mask = torch.arange(longest) < torch.tensor([len(layout) for layout in layouts])[:, None]
        shape = (len(layouts), longest)
        return cls(numbers.reshape(shape), corners.reshape(*shape, 4), mask)

    def to(self, device: torch.device) -> "Rows":
        """On a device."""
        return Rows(*(t.to(device) for t in self))


class Choices(NamedTuple):
    """One box as four choices, (B,) each; a class that is their number says that there is no further box."""

    number: Tensor
    cell: Tensor
    width: Tensor
    height: Tensor

    @classmethod
    def of(cls, number: Tensor, corners: Tensor) -> "Choices":
        """Those of classes (B,) and corners (B, 4)."""
        x0, y0, x1, y1 = corners.unbind(-1)
        column, row = ((c * GRID / 2).long().clamp(0, GRID - 1) for c in (x0 + x1, y0 + y1))
        sides = ((GRID * side - 1e-4).long().clamp(0, GRID - 1) for side in (x1 - x0, y1 - y0))
        return cls(number, row * GRID + column, *sides)

    def corners(self, across: Tensor, down: Tensor) -> Tensor:
        """Corners (B, 4) inside the picture, the centre at `across` and `down` (B,) in [0, 1) of its cell."""
        wide, high = ((side + 0.5) / GRID for side in (self.width, self.height))
        x, y = (self.cell % GRID + across) / GRID, (self.cell // GRID + down) / GRID
        x, y = (
            torch.maximum(torch.minimum(c, 1 - side / 2), side / 2) for c, side in ((x, wide), (y, high))
        )  # wholly inside
        return torch.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], -1)


class Planner(nn.Module):
    """Words, and the boxes before, to the choices of the next box."""

    def __init__(self, config: PlannerConfig, labels: Sequence[str], text: Text) -> None:
        super().__init__()
        width, classes = config.width, len(labels)
        self.text, self.names, self.classes = text, [name.lower() for name in labels], classes
        self.number = nn.Embedding(classes + 1, width)
        self.cell, self.width, self.height = (nn.Embedding(count, width) for count in (GRID**2, GRID, GRID))
        for table in (self.number, self.cell, self.width, self.height):
            nn.init.normal_(table.weight, std=0.5)
        self.start = nn.Parameter(0.5 * torch.randn(2, width))
        self.gist = nn.Linear(width, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, config.heads, width, 2) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, count))
            for count in (classes + 1, GRID**2, GRID, GRID)
        )

    def state(self, words: Conditions, before: Rows, number: Tensor | None = None) -> Tensor:
        """(B, width): what words and boxes before, whose order says nothing, say of the next one's class, or, where its
        class is known (B,), of its place: who knows what to place looks for it in the words."""
        choices = Choices.of(before.numbers.flatten(), before.corners.flatten(0, 1))
        told = sum(e(c) for e, c in zip(self._embeddings(), choices, strict=True))
        assert isinstance(told, Tensor)
        assert words.vector is not None
        asks = self.gist(words.vector)[:, None] + self.start[0 if number is None else 1]
        asks = asks if number is None else asks + self.number(number)[:, None]
        x = torch.cat([asks, told.reshape(*before.mask.shape, told.shape[-1])], 1)
        own = F.pad(before.mask, (1, 0), value=True)
        for block in self.blocks:
            x = block(x, words.tokens, words.mask, own)
        result: Tensor = self.norm(x[:, 0])
        return result

    def _embeddings(self) -> tuple[nn.Embedding, ...]:
        return self.number, self.cell, self.width, self.height

    def forward(self, captions: Sequence[str], before: Rows, after: Choices, whose: Tensor) -> Tensor:
        """Nats (M,) of next boxes; `whose` (M,) says to which of B texts each belongs."""
        told = self.text(captions)
        assert told.tokens is not None
        assert told.mask is not None
        assert told.vector is not None
        words = Conditions(*(part.index_select(0, whose) for part in (told.vector, told.tokens, told.mask)))
        total = F.cross_entropy(
            at_least_single(self.heads[0](self.state(words, before))), after.number, reduction="none"
        )
        known = self.state(words, before, after.number)
        for head, embed, choice in zip(self.heads[1:], self._embeddings()[1:], after[1:], strict=True):
            nats = F.cross_entropy(at_least_single(head(known)), choice, reduction="none")
            if embed is self.cell:
                known = known.detach()  # sizes learn from what places need to know, and do not ask for more
            total = total + nats * (after.number < self.classes)  # the end has neither place nor size
            known = known + embed(choice)
        return total

    def lesson(self, captions: Sequence[str], layouts: Sequence[Layout], draws: Draws) -> Tensor:
        """Nats (B,) of each layout's next box, a mean over how many boxes are there already."""
        before, after, whose = list[Layout](), list[tuple[int, Sequence[float]]](), list[int]()
        for k, (caption, layout) in enumerate(zip(captions, layouts, strict=True)):
            boxes = self.ordered(caption, layout)
            for place in _prefixes(len(boxes) + 1, k, draws):
                before.append(boxes[:place])
                after.append(boxes[place] if place < len(boxes) else (self.classes, (0.0, 0.0, 1.0, 1.0)))
                whose.append(k)
        device, rows = self.start.device, torch.tensor(whose)
        chosen = Choices.of(torch.tensor([a[0] for a in after]), torch.tensor([list(a[1]) for a in after]))
        nats = self(captions, Rows.of(before).to(device), Choices(*(c.to(device) for c in chosen)), rows.to(device))
        total = nats.new_zeros(len(captions)).index_add(0, rows.to(device), nats)
        result: Tensor = total / torch.bincount(rows, minlength=len(captions)).to(device)
        return result

    def ordered(self, caption: str, layout: Layout) -> Layout:
        """The boxes as the words name them; those that are not named come last, those of one class from the left."""
        text = caption.lower()

        def place(one: tuple[int, Sequence[float]]) -> tuple[int, int, list[float]]:
            name = self.names[one[0]]
            # as a whole word: «sun» is not the first of «a sunflower left of a sun»
            whole = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
            found = whole.start() if whole else text.find(name)
            return found if found >= 0 else len(text), one[0], list(one[1])

        return sorted(layout, key=place)

    @torch.no_grad()
    def drawn(self, captions: Sequence[str], draws: Draws, most: int) -> list[Layout]:
        """A layout of at most so many boxes for each of B texts."""
        words, count, device = self.text(captions), len(captions), self.start.device
        rows, going = Rows.of([()] * count).to(device), torch.ones(count, dtype=torch.bool, device=device)
        for place in range(most):
            first: Tensor = self.heads[0](self.state(words, rows))
            if place == 0:  # a layout has a box
                first = first[:, : self.classes]
            picked = [_picked(first, draws, f"plan {place} 0")]
            known = self.state(words, rows, picked[0])
            for what in range(1, len(self.heads)):
                picked.append(_picked(self.heads[what](known), draws, f"plan {place} {what}"))
                known = known + self._embeddings()[what](picked[-1])
            choices = Choices(*picked)
            going = going & (choices.number < self.classes)
            if not bool(going.any()):
                break
            inside = (_uniform(draws, count, f"plan {place} {way}").to(device) for way in ("across", "down"))
            number = choices.number.clamp(max=self.classes - 1)
            rows = Rows(
                torch.cat([rows.numbers, number[:, None]], 1),
                torch.cat([rows.corners, choices.corners(*inside)[:, None]], 1),
                torch.cat([rows.mask, going[:, None]], 1),
            )
        numbers, corners, mask = rows.numbers.tolist(), rows.corners.tolist(), rows.mask.tolist()
        return [
            [(n, box) for n, box, there in zip(*one, strict=True) if there]
            for one in zip(numbers, corners, mask, strict=True)
        ]


def _prefixes(count: int, row: int, draws: Draws) -> Sequence[int]:
    """How many boxes are there already: every number of them, or a few where there are many."""
    if count <= PREFIXES:
        return range(count)
    return sorted({int(draws.uniform(row, f"prefix {n}") * count) for n in range(PREFIXES)})


def _uniform(draws: Draws, count: int, purpose: str) -> Tensor:
    return torch.tensor([draws.uniform(k, purpose) for k in range(count)])


def _picked(logits: Tensor, draws: Draws, purpose: str) -> Tensor:
    """One choice a row, by where its own draw falls in the cumulated shares."""
    shares = logits.cpu().double().softmax(-1).cumsum(-1)  # some accelerators have no doubles
    at = _uniform(draws, len(logits), purpose).to(shares)[:, None]
    return (shares < at * shares[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1).to(logits.device)
