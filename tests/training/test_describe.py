"""What `sfumato show` tells of recipes whose first stage is not trained yet."""

from pathlib import Path

import pytest
import torch

from sfumato.nn.attention import attend
from sfumato.training import describe


def test_a_denoiser_has_its_shape_before_its_first_stage_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, rows = describe.recipe("emoji", [])
    assert [row[0] for row in rows] == ["encoder", "decoder", "denoiser", "conditioners"]
    assert rows[2][1] == "16 x 8 x 8"
    assert float(rows[2][4].split()[0]) > 0.1
    assert describe.recipe("emoji", ["autoencoder=elsewhere"])[1][0][1].startswith("train the first stage first")
    assert describe.recipe("photo", [])[1][2][:2] == (
        "denoiser",
        "there is no folder pictures; give the folder of your pictures as data.path",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_counted_on_the_cpu_too(dtype: torch.dtype, masked: bool) -> None:
    q, k, v = (torch.zeros(2, 4, n, d, dtype=dtype) for n, d in ((256, 32), (64, 32), (64, 16)))
    mask = torch.ones(2, 64, dtype=torch.bool) if masked else None
    with torch.no_grad(), describe.counting() as counter:
        attend(q, k, v, mask)
    assert counter.get_total_flops() == 2 * (2 * 4) * 256 * 64 * (32 + 16)  # q k' and then (q k') v
