"""Compiled networks train as eager ones do; what must stay eager stays it; on CUDA they are captured too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.autoencoder.codec import Codec
from sfumato.autoencoder.coder import Decoder, Encoder
from sfumato.backbones.base import Backbone
from sfumato.backbones.unet import UNet, UNetConfig
from sfumato.conditioning.base import Sizes
from sfumato.model import LatentDiffusion
from sfumato.nn.compiled import is_compiled, wanted
from sfumato.training import compiled, run
from sfumato.training.autoencoder import Coder
from sfumato.training.loop import Loop
from tests.conftest import adversarial_recipe, autoencoder_recipe, diffusion_recipe

CPU = torch.device("cpu")

# torch warns of itself while it traces
pytestmark = pytest.mark.filterwarnings("default")


def trained(
    first_stage: Path, folder: Path, backend: str | None, where: torch.device = CPU, **training: object
) -> Loop:
    """A denoiser after three steps, the last of fewer images."""
    recipe = diffusion_recipe(first_stage, compile="on" if backend else "off", **training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        objective = run.denoising(recipe, folder / "run", where)
    compiled.ready(objective.turns.values(), recipe.training, where, backend or "eager")
    loop = Loop(objective, recipe.training, Path(), "", where, torch.float32, quiet=True)
    for begin, end in ((0, 16), (16, 32), (32, 40)):
        loop.step(range(begin, end))
    return loop


@pytest.mark.slow
@pytest.mark.parametrize("training", [{}, {"accumulate": 2, "checkpointing": [2]}])
def test_a_compiled_network_trains_to_the_same_losses(
    first_stage: Path, tmp_path: Path, training: dict[str, int]
) -> None:
    eager = trained(first_stage, tmp_path, None, **training)
    loop = trained(first_stage, tmp_path, "aot_eager", **training)
    (network,) = compiled.networks(loop.objective.turns.values())
    assert is_compiled(network)
    assert list(loop.modules.state_dict()) == list(eager.modules.state_dict())
    for name, total in eager.sums.items():
        torch.testing.assert_close(loop.sums[name], total, rtol=1e-4, atol=1e-6)
    with loop.averaged(), eager.averaged():
        pictures = [torch.tensor(list(each.objective.preview().tobytes())) for each in (loop, eager)]
    assert (pictures[0] - pictures[1]).abs().max() <= 1


def test_only_what_is_gone_through_as_a_whole_is_compiled(first_stage: Path, tmp_path: Path) -> None:
    judged = run.reconstruction(adversarial_recipe(), CPU).turns.values()
    moved = run.reconstruction(autoencoder_recipe({"equivariance": 0.5}), CPU).turns.values()  # sizes without end
    alone = run.reconstruction(autoencoder_recipe(), CPU).turns.values()
    names = [[type(m).__name__ for m in compiled.networks(turns)] for turns in (judged, moved, alone)]
    assert names == [["Encoder"], ["Encoder"], ["Encoder", "Decoder"]]
    denoising = run.denoising(diffusion_recipe(first_stage), tmp_path / "run", CPU)
    (network,) = compiled.networks(denoising.turns.values())
    assert isinstance(network, Backbone)
    compiled.ready(denoising.turns.values(), denoising.recipe.training, CPU)
    assert not is_compiled(network)  # `auto` leaves CPUs alone


def test_auto_is_for_cuda() -> None:
    assert wanted("auto", torch.device("cuda"))
    assert not wanted("auto", CPU)
    assert wanted("on", CPU)
    assert not wanted("off", torch.device("cuda"))


def test_a_compiled_model_samples_the_same(model_folder: Path) -> None:
    eager, ready = (LatentDiffusion.load(model_folder).for_sampling(compile=c, backend="eager") for c in ("off", "on"))  # type: ignore[arg-type]
    assert is_compiled(ready.denoiser.network)
    x, t = torch.randn(2, *eager.latent_shape()), torch.full((2,), 0.5)
    with torch.no_grad():
        made = [
            m.denoise(m.conditions({"caption": ["a cat", "a red house"]}, 2), scale=2.0)(x, t) for m in (eager, ready)
        ]
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)


def readied(monkeypatch: pytest.MonkeyPatch, where: str, processes: int = 1, **training: Any) -> tuple[list[Any], ...]:
    """What is laid channels-last of a denoiser and a first stage, and what is compiled, with whether it is captured."""
    recipe = autoencoder_recipe(**training)
    stage = Coder(Codec(recipe.autoencoder), recipe.objective)
    unet = UNetConfig(width=8, multipliers=(1,), blocks=1, attention=(), groups=1).build(4, Sizes())
    laid, made = list[Any](), list[Any]()
    monkeypatch.setattr(compiled, "channels_last_", lambda network: laid.append(type(network)))
    monkeypatch.setattr(
        compiled, "compile_", lambda network, captured, backend: made.append((type(network), captured, backend))
    )
    monkeypatch.setattr("sfumato.distributed.place", lambda: (0, processes))
    compiled.ready([nn.Sequential(unet), stage], recipe.training, torch.device(where))
    return laid, made


def test_a_denoiser_is_captured_where_its_gradients_are_not_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    several = [UNet, Encoder, Decoder]
    for accumulate, processes in ((1, 1), (2, 1), (1, 2), (2, 2)):
        laid, made = readied(monkeypatch, "cuda", processes, accumulate=accumulate)
        alone = accumulate == processes == 1
        assert laid == several
        assert made == [(kind, alone and kind is UNet, "inductor") for kind in several]
    assert readied(monkeypatch, "cuda", compile="off") == (several, [])
    assert readied(monkeypatch, "cpu", compile="on") == ([], [(kind, False, "inductor") for kind in several])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_captured_network_trains_to_the_same_losses(first_stage: Path, tmp_path: Path) -> None:
    where = torch.device("cuda")
    eager = trained(first_stage, tmp_path, None, where)
    loop = trained(first_stage, tmp_path, compiled.BACKEND, where)
    for name, total in eager.sums.items():
        torch.testing.assert_close(loop.sums[name], total, rtol=1e-2, atol=1e-3)
    with loop.averaged():
        loop.objective.preview()
