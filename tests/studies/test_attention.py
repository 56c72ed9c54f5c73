"""Maps of words are the network's own attention, joined to whole words."""

from typing import Any

import pytest
import torch

from sfumato.nn.attention import TransformerBlock
from sfumato.studies.attention import MARK, SIDE, TITLE, merged, overlaid, strip, watching


def test_what_is_watched_is_what_the_attention_does() -> None:
    torch.manual_seed(0)
    block, x, context = TransformerBlock(16, 2, 8), torch.randn(2, 16, 16), torch.randn(2, 3, 8)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    with torch.no_grad(), watching(block, 4) as watch:
        block(x, context, mask)
        seen = block.norm2(x + block.attn1(block.norm1(x)))
    assert block.attn2 is not None
    q, k = (t.reshape(2, -1, 2, 8).transpose(1, 2) for t in (block.attn2.to_q(seen), block.attn2.to_k(context)))
    weights = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1).mean(1)
    assert torch.allclose(watch.maps, weights.transpose(1, 2).reshape(2, 3, 4, 4), atol=1e-5)
    assert torch.allclose(watch.maps.sum(1), torch.ones(2, 4, 4), atol=1e-5)
    assert not watch.maps[1, 2].any()


def test_nothing_is_watched_afterwards() -> None:
    block = TransformerBlock(16, 2, 8)
    with watching(block, 4) as watch:
        pass
    block(torch.randn(1, 16, 16), torch.randn(1, 3, 8))
    assert watch.count == 0


def test_pieces_of_a_word_are_one_word() -> None:
    pieces = [f"{MARK}fire", "fighter", f"{MARK}:", f"{MARK}dark"]
    maps = torch.arange(4.0)[:, None, None].expand(4, 2, 2)
    said, rows = merged(pieces, maps)
    assert said == ["firefighter", "dark"]
    assert rows[:, 0, 0].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("scale", [1, 2])
def test_a_map_lies_over_its_picture(scale: int) -> None:
    maps: Any = torch.zeros(1, 8, 8)
    maps[0, :, 4:] = 1.0
    (shown,) = overlaid(torch.zeros(3, 8, 8), maps, scale)
    assert shown.size == (8 * scale, 8 * scale)
    assert sum(shown.getpixel((8 * scale - 1, 0))) > sum(shown.getpixel((0, 0)))  # type: ignore[arg-type]


def test_maps_are_told_beside_their_means_on_one_scale() -> None:
    """A word with a great share but no place stays flat, one with a small share and a place does not."""
    maps = torch.full((2, 8, 8), 0.8)
    maps[1] = 0.01
    maps[1, :, 4:] = 0.03
    flat, placed = overlaid(torch.zeros(3, 8, 8), maps)
    assert len(flat.getcolors() or []) == 1
    assert sum(placed.getpixel((15, 0))) > sum(flat.getpixel((0, 0))) > sum(placed.getpixel((0, 0)))  # type: ignore[arg-type]


def test_a_strip_has_the_picture_and_every_word_over_its_map() -> None:
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    shown = strip(torch.zeros(3, 8, 8), ["red", "heart"], maps)
    assert shown.size == (3 * SIDE + 8, SIDE + TITLE)
    lines = [shown.crop((k * (SIDE + 4), 0, k * (SIDE + 4) + SIDE, TITLE)).getcolors() for k in range(3)]
    assert [len(line or []) > 1 for line in lines] == [False, True, True]
