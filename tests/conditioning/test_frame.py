"""What part of a picture is shown is told to the network; nothing said is the whole picture, not mirrored."""

import pytest
import torch

from sfumato.conditioning.bundle import Bundle
from sfumato.conditioning.frame import FrameConfig
from sfumato.data import loader
from sfumato.data.base import Data


def test_nothing_said_is_the_whole_picture() -> None:
    torch.manual_seed(0)
    bundle = Bundle({"frame": FrameConfig(width=16).build({})})
    null = bundle.null(2).vector
    assert null is not None
    assert null.shape == (2, 16)
    said = bundle({"frame": [loader.WHOLE, None]}, 2).vector
    assert said is not None
    assert torch.allclose(said, null, atol=1e-6)
    other = bundle({"frame": [(0.1, 0.0, 0.7, 0.0), (0.0, 0.0, 1.0, 1.0)]}, 2).vector
    assert other is not None
    assert not torch.allclose(other[0], null[0], atol=1e-3)
    assert not torch.allclose(other[1], null[0], atol=1e-3)
    assert bundle.kept == {"frame"}


def test_a_mirrored_picture_is_told_to_be_one() -> None:
    frame = FrameConfig(width=8).build({})
    assert frame.mirrored((0.25, -0.1, 0.5, 0.0)) == (-0.25, -0.1, 0.5, 1.0)
    assert frame.mirrored(frame.mirrored((0.25, -0.1, 0.5, 0.0))) == (0.25, -0.1, 0.5, 0.0)
    part = Data.model_validate({"kind": "emoji", "size": 16}).open("train")
    plan = loader.plan(part, 0, range(8), flip=1.0)
    assert plan.fields["frame"] == [loader.WHOLE] * 8
    turned = Bundle({"frame": frame}).mirrored({"frame": plan.fields["frame"]}, plan.flips)["frame"]
    assert [row[3] for row in turned] == [float(f) for f in plan.flips]


@pytest.mark.parametrize("value", [(0, 0, 1), "abcd", (0, 0, 2, 0), (0, 0, 1, 0.5), 3])
def test_what_is_no_frame_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="frame"):
        FrameConfig(width=8).build({}).read(value)
