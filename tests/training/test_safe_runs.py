"""What a run keeps: finished models, good checkpoints, a whole best model; and what it says of settings without effect."""

import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from sfumato import cli, device, distributed, files
from sfumato.autoencoder.base import FirstStage
from sfumato.autoencoder.codec import Codec
from sfumato.nn.rescale import smaller
from sfumato.training import checkpoint, interrupt, log, posthoc
from sfumato.training.log import Log
from sfumato.training.optimizer import Optimizer, rate_at
from sfumato.training.recipe import dump, parse
from sfumato.training.run import environment, modelling, objective_of, train
from sfumato.training.shortcut import filled
from tests.conftest import CODER, autoencoder_recipe, diffusion_recipe


def test_a_finished_run_without_its_checkpoints_is_not_trained_over(tmp_path: Path) -> None:
    recipe = autoencoder_recipe()
    folder = train(recipe, tmp_path, device="cpu", quiet=True)
    shutil.rmtree(tmp_path / "state")
    before = {p.name: p.read_bytes() for p in [*folder.iterdir(), *tmp_path.iterdir()] if p.is_file()}
    assert train(recipe, tmp_path, resume=True, device="cpu", quiet=True) == folder  # all of it was done
    longer = recipe.model_copy(update={"training": recipe.training.model_copy(update={"images": 10_000})})
    with pytest.raises(ValueError, match="is finished and its checkpoints are gone"):
        train(longer, tmp_path, resume=True, device="cpu", quiet=True)
    assert before == {p.name: p.read_bytes() for p in [*folder.iterdir(), *tmp_path.iterdir()] if p.is_file()}


def test_a_resume_that_is_refused_leaves_the_recipe_as_it_was(tmp_path: Path) -> None:
    train(autoencoder_recipe(), tmp_path, device="cpu", quiet=True)
    held = (tmp_path / "recipe.yaml").read_bytes()
    for facts in tmp_path.glob("state/*/*.json"):  # of other pictures than there are now
        facts.write_text(facts.read_text().replace('"the pictures": "', '"the pictures": "0'))
    with pytest.raises(ValueError, match=r"the pictures of .* are not those"):
        train(autoencoder_recipe(rate=1e-4), tmp_path, resume=True, device="cpu", quiet=True)
    assert (tmp_path / "recipe.yaml").read_bytes() == held


def test_a_recipe_that_lies_in_its_run_s_folder_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = yaml.safe_dump({**dump(autoencoder_recipe()), "sfumato": None})
    written = "# mine\n" + written.replace("sfumato: null\n", "")
    (tmp_path / "recipe.yaml").write_text(written)
    train(autoencoder_recipe(), tmp_path, device="cpu", quiet=True)
    assert (tmp_path / "recipe.before.yaml").read_text() == written
    assert "recipe.before.yaml" in caplog.text
    train(autoencoder_recipe(), tmp_path, resume=True, device="cpu", quiet=True)
    assert (tmp_path / "recipe.before.yaml").read_text() == written
    for name in ("state", "model"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "recipe.yaml").write_text(f"# another\n{written}")
    train(autoencoder_recipe(), tmp_path, device="cpu", quiet=True)
    assert (tmp_path / "recipe.before.yaml").read_text() == written
    assert (tmp_path / "recipe.before-2.yaml").read_text() == f"# another\n{written}"


def test_a_resume_of_nothing_begins_anew_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever recipe lies in its folder: one that was written by hand, or that of a try that failed before it saved."""
    asked = autoencoder_recipe(batch="auto", accumulate="auto", precision="auto")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({k: v for k, v in dump(asked).items() if k != "sfumato"}))
    train(asked, tmp_path, resume=True, device="cpu", quiet=True)
    assert "holds no run to go on with; it begins anew" in caplog.text
    assert (tmp_path / "recipe.before.yaml").is_file()
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["training"]["batch"] > 0
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text())
    train(autoencoder_recipe(rate=1e-4, batch=8), tmp_path / "again", resume=True, device="cpu", quiet=True)
    assert yaml.safe_load((tmp_path / "again" / "recipe.yaml").read_text())["training"]["batch"] == 8


def test_a_new_checkpoint_is_kept_beside_a_damaged_later_one(tmp_path: Path) -> None:
    def save(images: int, lasting: bool = False) -> None:
        checkpoint.save(tmp_path, images, {"weights": {"a": torch.full((2,), images)}}, {}, 1, lasting)

    save(100, lasting=True)
    save(300)
    (tmp_path / "000000300" / "weights.safetensors").write_bytes(b"cut")
    for images in (150, 200):
        save(images)
        newest = checkpoint.newest(tmp_path)
        assert newest is not None
        assert newest[0]["weights"]["a"].tolist() == [images, images]
    save(300)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000100", "000000300"]


def test_the_best_model_is_replaced_whole(tmp_path: Path) -> None:
    recipe = autoencoder_recipe()
    objective = objective_of(recipe, tmp_path, torch.device("cpu"))
    files.replace(tmp_path / "best", objective.publish)
    first = {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()}

    def full(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        files.replace(tmp_path / "best", full)
    assert {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()} == first
    (tmp_path / "best").rename(tmp_path / ".best.old")  # killed in between
    with pytest.raises(OSError, match="no space"):
        files.replace(tmp_path / "best", full)
    assert {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()} == first
    files.replace(tmp_path / "best", objective.publish)
    assert sorted(p.name for p in tmp_path.iterdir() if "best" in p.name) == ["best"]


def family(kind: str, **more: Any) -> dict[str, Any]:
    data, training = {"kind": "emoji", "size": 16}, {"images": 16, "batch": 8, "report": 8}
    return {"stage": "family", "family": {"kind": kind, **more}, "data": data, "training": training}


def test_the_rate_that_is_told_is_the_one_that_the_next_step_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[Optimizer, list[float]] = {}
    real = Optimizer.step

    def step(self: Optimizer, rate: float) -> None:
        real(self, rate)
        (taken,) = {group["lr"] for part in self.parts for group in part.param_groups}
        used.setdefault(self, []).append(taken)

    monkeypatch.setattr(Optimizer, "step", step)
    fields = family("gan", width=8, critic=8, rate=2e-4)
    fields["training"] |= {"images": 32, "warmup": 0.25}
    train(parse(fields, "gan"), tmp_path, device="cpu", quiet=True)
    told = [json.loads(line)["rate"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    generator, critic = used.values()
    assert generator == pytest.approx([2e-7, *told[:-1]])
    assert max(generator) == told[0] == pytest.approx(2e-4, rel=0.2)
    assert critic == pytest.approx([4 * rate for rate in generator])  # its lead


def test_an_autoencoder_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    Codec(FirstStage.model_validate({"kind": "vq", "coder": CODER, "codebook": {"size": 8}})).save(tmp_path / "codes")
    for kind, more in (("vae", {}), ("autoregressive", {"tokens": "palette", "side": 4})):
        recipe = parse({**family(kind, **more), "autoencoder": str(tmp_path / "codes")}, kind)
        with pytest.raises(ValueError, match=f"kind {kind} draws pixels and takes no autoencoder"):
            modelling(recipe, torch.device("cpu"))  # type: ignore[arg-type]


def test_snapshots_want_an_average_of_a_share_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(autoencoder_recipe(snapshots=32, ema=(0.9,)), tmp_path, device="cpu", quiet=True)
    assert "training.ema has none: nothing is kept" in caplog.text


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_first_stages_are_one_graph(network: str) -> None:
    stage = Codec(FirstStage.model_validate({"kind": "kl", "coder": CODER})).autoencoder
    given = torch.rand(1, 3, 32, 32)
    given = given if network == "encoder" else stage.encode(given).latent.detach()
    told = torch._dynamo.explain(getattr(stage, network))(given)
    assert told.graph_break_count == 0, told.break_reasons


@pytest.mark.parametrize(("before", "after"), [((8, 8), (6, 6)), ((9, 12), (4, 5)), ((4, 4), (4, 4)), ((5, 3), (1, 1))])
def test_latents_are_made_smaller_by_products(before: tuple[int, int], after: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *before, requires_grad=True)
    same = F.interpolate(x, after, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(smaller(x, after), same, atol=1e-5, rtol=1e-5)
    slopes = [
        torch.autograd.grad(y.square().sum(), x)[0]
        for y in (smaller(x, after), F.interpolate(x, after, mode="bilinear", antialias=True))
    ]
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=1e-4)


def test_compiled_students_are_asked_for_few_numbers_of_rows() -> None:
    rows: Tensor = torch.arange(19) + 5
    assert filled(rows, 16).tolist() == [*range(5, 24), *[23] * 13]
    assert torch.equal(filled(rows, 1), rows)
    assert {len(filled(torch.arange(n), 16)) for n in range(16, 34)} == {16, 32, 48}


def test_processes_meet_on_no_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick("auto").type == "mps"
    monkeypatch.setattr(distributed, "place", lambda: (0, 2))
    assert device.pick("auto").type == "cpu"
    with pytest.raises(ValueError, match="device 'mps' is not there"):
        device.pick("mps")


def test_more_processes_than_gpus_may_meet_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[int]()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    for name in ("init_process_group", "barrier", "destroy_process_group"):
        monkeypatch.setattr(distributed.dist, name, lambda *_, **__: None)
    with distributed.joined():
        pass
    assert told == []


def test_what_fp32_is_on_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "NVIDIA Something")
    for allowed in (True, False):
        with torch.backends.cudnn.flags(allow_tf32=allowed):
            found, none = environment(torch.device("cuda")), environment(torch.device("cpu"))
        assert (found["device"], found["tf32"]) == ("NVIDIA Something", allowed)
        assert (none["device"], none["tf32"]) == ("cpu", None)


def test_a_run_goes_on_from_another_folder(first_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(first_stage, tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    train(diffusion_recipe(Path("runs/first"), images=16), tmp_path / "run", device="cpu", quiet=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    other = diffusion_recipe(tmp_path / "runs" / "second", images=32)
    with pytest.raises(ValueError, match="holds another recipe"):
        train(other, tmp_path / "run", device="cpu", quiet=True, resume=True)
    again = diffusion_recipe(tmp_path / "runs" / "first", images=32)
    train(again, tmp_path / "run", device="cpu", quiet=True, resume=True)
    assert (tmp_path / "run" / "published").read_text() == "32"


def test_the_first_step_counts_as_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles, on a GPU for minutes, which is no pace of a training."""
    clock = iter([0.0, 50.0, 51.0, 52.0, 53.0, 53.0, 60.0, 61.0, 61.0])
    monkeypatch.setattr(log.time, "perf_counter", lambda: next(clock))
    one = Log(tmp_path, "a", 64, 0, quiet=True)
    for images in (8, 16, 24):
        one.advance(images)
    one.timed(24)  # 50 s, 1 s and 1 s, at 53
    one.advance(32)
    one.timed(32)  # of a later step, at 61
    told = [json.loads(line) for line in (tmp_path / "times.jsonl").read_text().splitlines()]
    assert [row["seconds"] for row in told] == [4.0, 8.0]


def test_a_thread_beside_changes_no_gradient() -> None:
    """The cache of autocast's weights is one for all threads: cleared by one that leaves, it was filled twice by another."""
    layer, cpu = torch.nn.Linear(64, 64), torch.device("cpu")
    x, y = torch.randn(32, 64), torch.randn(32, 64)

    def beside() -> None:
        with device.cast(torch.bfloat16, cpu):
            pass

    def gradient(disturbed: bool) -> Tensor:
        with device.cast(torch.bfloat16, cpu):
            first = layer(x)
            if disturbed:
                thread = threading.Thread(target=beside)
                thread.start()
                thread.join()
            loss = (first.float().square().sum() + layer(y).float().square().sum()) / 64
        return torch.autograd.grad(loss, layer.weight)[0]

    assert torch.equal(gradient(True), gradient(False))


def test_the_last_rate_is_the_floor_that_is_asked_for() -> None:
    config = autoencoder_recipe().training.model_copy(
        update={"images": 100_000, "batch": 10, "floor": 1e-4, "decay": 1.0, "warmup": 0.0}
    )
    assert rate_at(99_990, config) / config.rate < 2e-4
    assert rate_at(0, config.model_copy(update={"warmup": 0.1})) > 0


def test_what_a_family_settles_itself_is_told(caplog: pytest.LogCaptureFixture) -> None:
    recipe = parse(family("gan", width=8, critic=8), "gan")
    with caplog.at_level(logging.WARNING):
        modelling(recipe, torch.device("cpu"))  # type: ignore[arg-type]
        assert not caplog.text
        fields = family("gan", width=8, critic=8)
        modelling(parse({**fields, "training": {**fields["training"], "rate": 0.1}}, "gan"), torch.device("cpu"))  # type: ignore[arg-type]
    assert "training.rate has no effect on a model of kind gan" in caplog.text


def test_resumed_plots_keep_the_point_at_the_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, steps in ((0, (100, 200)), (200, (300,))):
        with Log(tmp_path, "a", 300, begin, quiet=True) as one:
            for images in steps:
                one.report(images, {"loss": 1.0})
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    # files that are begun in one second are read in the order of their names, 10 before 9
    assert sorted(event.step for event in found.Scalars("loss")) == [100, 200, 300]


def test_snapshots_of_a_run_that_is_begun_again_are_gone(tmp_path: Path) -> None:
    """They lie after what the new one has seen, and would be taken for its end."""
    for images in (32, 64, 4096):
        posthoc.save(tmp_path / "averages", images, 1, [0.05], [[torch.ones(2)]])
    train(autoencoder_recipe(ema=[0.05], snapshots=48), tmp_path, device="cpu", quiet=True)
    assert [s.images for s in posthoc.found(tmp_path)] == [48, 96]
    shutil.rmtree(checkpoint.found(tmp_path / "state")[-1])  # interrupted after 64
    shutil.rmtree(tmp_path / "model")
    train(autoencoder_recipe(ema=[0.05], snapshots=48), tmp_path, resume=True, device="cpu", quiet=True)
    assert [s.images for s in posthoc.found(tmp_path)] == [48, 96]


def test_a_critic_too_large_for_the_pictures_is_told_before_training(tmp_path: Path) -> None:
    critic = {"critic": {"start": 1_000_000, "layers": 4}}
    with pytest.raises(ValueError, match="the critic needs pictures of 48 pixels a side; these are 32x32"):
        train(autoencoder_recipe(critic), tmp_path, device="cpu", quiet=True)


def test_a_first_stage_without_weights_is_measured_and_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = parse(
        {"stage": "autoencoder", "autoencoder": "identity", "data": "emoji", "training": {"images": 1}}, "pixels"
    )
    codec = Codec.load(train(recipe, tmp_path, device="cpu", quiet=True))
    assert "nothing to train" in caplog.text
    assert 0.1 < float(codec.scale.max()) < 0.9
    assert float(codec.shift.min()) > 0.1  # emoji stand on white
    assert codec.factor == 1


def test_a_checkpoint_that_lost_a_file_while_it_was_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that goes on with the same run tidies up what it takes for left over."""
    inner, written = files.save_tensors, list[Path]()

    def save(path: Path, tensors: Any, half: bool = False) -> None:
        inner(path, tensors, half)
        written.append(path)
        if len(written) == 1:
            checkpoint.tidy(tmp_path)

    monkeypatch.setattr(files, "save_tensors", save)
    group = {"a": torch.ones(2)}
    with pytest.raises(OSError, match="weights"):
        checkpoint.save(tmp_path, 8, {"weights": group, "averages": group}, {}, 2)
    assert checkpoint.found(tmp_path) == []


def test_processes_agree_on_a_stop_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, now = list[float](), iter(range(1000))
    monkeypatch.setattr(distributed, "place", lambda: (0, 2))
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: 0.5 * next(now) if asked else 0.0)

    def total(tensors: list[Tensor]) -> None:  # the other process is as fast, and was stopped at the third meeting
        asked.append(float(tensors[0][0]))
        tensors[0].copy_(torch.tensor([float(len(asked) == 3), 2.0]))  # a second a step

    monkeypatch.setattr(distributed, "total", total)
    agreed = interrupt.Agreed()
    stops = [agreed(False) for _ in range(7)]
    assert stops == 6 * [False] + [True]
    assert len(asked) == 3  # after the first step, and then every third, of a second each
    monkeypatch.setattr(distributed, "place", lambda: (0, 1))
    assert [interrupt.Agreed()(told) for told in (False, True)] == [False, True]
    assert len(asked) == 3


def test_more_processes_than_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "place", lambda: (3, 4))
    monkeypatch.setattr(distributed, "local", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        with pytest.raises(ValueError, match="GPUs, of which it has 2: start 2, or give --device cpu"):
            device.pick(name)
    monkeypatch.setattr(distributed, "local", lambda: 1)
    assert device.pick("auto") == torch.device("cuda", 1)


def test_a_run_goes_neither_to_nor_from_double_precision(tmp_path: Path) -> None:
    train(autoencoder_recipe(precision="fp32"), tmp_path, device="cpu", quiet=True)
    longer = autoencoder_recipe(precision="fp64", images=96)
    with pytest.raises(ValueError, match="was begun in fp32, and no run changes to or from fp64"):
        train(longer, tmp_path, resume=True, device="cpu", quiet=True)


def test_a_machine_without_a_compiler_is_told_so() -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def backend() -> None:
        return

    assert cli.uncompiled(BackendCompilerFailed(backend, RuntimeError("no working C++ compiler"), None))
    assert not cli.uncompiled(RuntimeError("no compiler"))


def test_a_second_training_in_a_folder_is_refused_while_the_first_works(tmp_path: Path) -> None:
    asked = autoencoder_recipe(images=32, batch=16)
    told: list[str] = []

    def second(images: int, preview: Path | None) -> None:
        if preview is None and not told:
            with pytest.raises(ValueError, match="another process trains in") as caught:
                train(asked, tmp_path / "run", device="cpu", quiet=True)
            told.append(str(caught.value))

    train(asked, tmp_path / "run", device="cpu", quiet=True, watch=second)
    assert told
    assert (tmp_path / "run" / "model" / "model.yaml").is_file()


def test_a_recipe_that_no_longer_fits_its_checkpoint_is_said(tmp_path: Path) -> None:
    asked = autoencoder_recipe(images=16, batch=16)
    train(asked, tmp_path, device="cpu", quiet=True)
    path = tmp_path / "recipe.yaml"
    fields = yaml.safe_load(path.read_text())
    fields["training"] |= {"images": 32, "optimizer": "adamw"}
    path.write_text(yaml.safe_dump(fields))
    with pytest.raises(ValueError, match=r"recipe\.yaml no longer describes what .*state holds"):
        train(parse(yaml.safe_load(path.read_text())), tmp_path, resume=True, device="cpu", quiet=True)
    path.unlink()
    with pytest.raises(ValueError, match=r"holds a run whose recipe\.yaml is missing"):
        train(asked, tmp_path, resume=True, device="cpu", quiet=True)


def test_a_model_that_stands_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = autoencoder_recipe(images=16, batch=16)
    model = train(asked, tmp_path, device="cpu", quiet=True)
    before = Codec.load(model).fingerprint()
    monkeypatch.setattr(files, "seal", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    longer = asked.model_copy(update={"training": asked.training.model_copy(update={"images": 32})})
    with pytest.raises(OSError, match="full"):
        train(longer, tmp_path, resume=True, device="cpu", quiet=True)
    assert Codec.load(model).fingerprint() == before
