"""Bits of pictures: what diffusion of pixels needs at most."""

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sfumato.autoencoder.codec import Codec
from sfumato.data.picked import Picked
from sfumato.features.network import FeatureNetwork
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.studies import bits, families, recipes
from sfumato.studies.desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "study", {"kind": "emoji", "size": 8}, cast(FeatureNetwork, None), torch.device("cpu"), 0.01)


class Gray(Picked):
    """Pictures without black and white, to which all that lies beyond is told back, which costs them little."""

    def image(self, index: int) -> Tensor:
        return super().image(index).clamp(16, 240)


def of_pixels(desk: Desk, labels: tuple[str, ...]) -> LatentDiffusion:
    """A fresh network on pixels, of two classes or none."""
    fields = recipes.denoiser(
        desk.pixels(), {"class": {"kind": "label", "labels": labels}} if labels else None, width=32
    )
    kept = {k: v for k, v in fields.items() if k in DiffusionConfig.model_fields}
    return LatentDiffusion(Codec.load(desk.pixels()), DiffusionConfig.model_validate(kept), 8, {}).eval()


def test_diffusion_that_knows_only_mean_and_spread_needs_the_bits_of_a_gaussian(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_pixels(desk, ())

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (s[:, None, None, None] for s in model.denoiser.schedule(t))
        return alpha * x_t / (alpha**2 + sigma**2)

    monkeypatch.setattr(model, "denoise", lambda given: denoise)
    monkeypatch.setattr(bits, "PICTURES", 80)
    part = Gray(desk.train, range(len(desk.train)))
    found = torch.tensor(bits.bound(model, part, 0.5))
    rows = [k * len(part) // 80 for k in range(80)]
    z = model.codec.encode(torch.stack([part.image(k) for k in rows]).float() / 127.5 - 1.0)
    steps = 1 / 127.5 / model.codec.scale
    exact = 0.5 * math.log2(2 * math.pi) + 0.5 * z.square().mean((1, 2, 3)) / math.log(2) - float(steps.log2().mean())
    assert len(found) == 80
    off = found - exact
    assert float(off.mean()) == pytest.approx(0, abs=0.01 + 3 * float(off.std()) / 80**0.5)
    assert float(off.std()) < 0.1


def test_the_better_bound_counts_by_training_pictures(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {(0.25, "held"): [2.0], (0.25, "shown"): [6.0], (0.5, "held"): [3.0], (0.5, "shown"): [5.0]}
    monkeypatch.setattr(bits, "bound", lambda model, part, blur: told[blur, part])
    assert bits.bounded(None, "held", "shown") == {"held": [3.0], "trained": [5.0]}  # type: ignore[arg-type]


def test_each_picture_is_told_with_its_own_class(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_pixels(desk, tuple(desk.train.labels))
    told = list[Any]()
    conditions = model.conditions.forward

    def heard(fields: Any, count: int, **more: Any) -> Any:
        told.extend(fields["label"])
        return conditions(fields, count, **more)

    monkeypatch.setattr(model.conditions, "forward", heard)
    monkeypatch.setattr(bits, "STEPS", 2)
    part = Picked(desk.held_out, range(0, len(desk.held_out), 40))
    found = bits.bound(model, bits.named(part), 0.5)
    labels = [part.field(k, "label") for k in range(len(part))]
    assert told == [one for one in labels if one not in (None, [])]
    assert all(math.isfinite(one) for one in found)
    assert len(found) == len(told) > 1


def test_the_hours_of_families_are_shared_by_all_that_are_trained(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Desk, "pixels", lambda *_: Path("pixels"))
    found = families.fields(desk, Path("stage"), {families.TWO: Path("codes"), families.FINE: Path("fine")})
    assert len(found) == families.MODELS
    assert found[families.TWO]["autoencoder"] == "codes"
    assert found[families.FINE]["autoencoder"] == "fine"
