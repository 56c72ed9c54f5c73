"""The command line: every verb, and for bad input one sentence and exit code 2."""

import json
import os
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato import cli
from sfumato.cli.train import _folder
from sfumato.tasks import metadata
from tests.features.test_network import Looks, save


def call(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command run in this process."""
    code = 0
    try:
        cli.main([str(w) for w in words])
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_and_version_answer(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("--help", capsys=capsys)
    assert code == 0
    assert all(verb in out for verb in cli.VERBS)
    assert call("--version", capsys=capsys)[1].startswith("sfumato ")
    for verb in cli.VERBS:
        assert call(verb, "--help", capsys=capsys)[0] == 0


def test_generate_writes_pictures_that_carry_their_settings(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "generate",
        model_folder,
        "--prompt",
        "red heart",
        "-c",
        2,
        "--seed",
        4,
        "--steps",
        2,
        "--out",
        tmp_path,
    ]
    assert call(*words, capsys=capsys)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000-4.png", "00001-5.png"]
    assert metadata.read(tmp_path / "00001-5.png")["prompt"] == "red heart"
    assert call(*words, "--cfg-scale", 2, capsys=capsys)[0] == 0
    assert len(list(tmp_path.iterdir())) == 4  # nothing is written over


def test_evaluate_prints_and_writes_json(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(
        "evaluate", model_folder, "--captions", 2, "--steps", 1, "--out", tmp_path / "e.json", capsys=capsys
    )
    assert code == 0
    whole = json.loads((tmp_path / "e.json").read_text())
    assert len(whole.pop("caption_ranks")["train"]) == 2  # too many numbers to be read on a screen
    assert json.loads(out) == whole
    code, out, _ = call("evaluate", model_folder / "autoencoder", "--data", "emoji", "--size", 32, capsys=capsys)
    assert json.loads(out)["reconstruction"]["count"] == 186


@pytest.mark.slow
def test_evaluate_measures_folders_models_and_first_stages_through_features(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    net = save(Looks(), tmp_path / "net.pt", "{name: Looks, size: 8}")
    real = tmp_path / "real"
    real.mkdir()
    for k in range(12):
        Image.new("RGB", (16 + k, 16), (k * 20, 90, 255 - k * 20)).save(real / f"{k}.png")
    words: list[object] = ["evaluate", real, "--reference", real, "--features", net]
    code, out, err = call(*words, "--out", "a.json", "--report", "a.html", capsys=capsys)
    assert code == 0
    assert json.loads(out)["features"][0]["Fréchet distance (Looks)"] == pytest.approx(0, abs=1e-6)
    assert "12 images against 12 of real" in err
    assert "data:image/png" in (tmp_path / "a.html").read_text()
    assert list((tmp_path / "runs" / "features").iterdir())
    assert "Fréchet distance (Looks): " in call(*words, "--against", "a.json", capsys=capsys)[2]
    code, _, err = call(*words, "--size", 8, "--against", "a.json", capsys=capsys)
    assert (code, "do not compare: reference.size: 8 and as they are" in err) == (2, True)
    small = ["--features", net, "--images", 6, "--steps", 1, "--captions", 2, "--report", "b.html", "--reference", real]
    code, out, _ = call("evaluate", model_folder, *small, capsys=capsys)
    assert code == 0
    assert [row["count"] for row in json.loads(out)["features"]] == [6, 6, 6]
    assert "Worst images" in (tmp_path / "b.html").read_text()
    stage = [model_folder / "autoencoder", "--data", real, "--size", 0, "--perceptual", net, "--report", "c.html"]
    code, out, _ = call("evaluate", *stage, "--out", "c.json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["reconstruction"]["perceptual distance (net)"] > 0
    assert len(json.loads((tmp_path / "c.json").read_text())["pictures"]) == 12
    assert "Worst reconstructions" in (tmp_path / "c.html").read_text()


def test_show_and_schema(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (model_folder, model_folder / "autoencoder", "emoji-autoencoder", "emoji"):
        code, out, _ = call("show", source, capsys=capsys)
        assert code == 0
        assert "parameters" in out
    assert "GFLOPs" in call("show", model_folder, capsys=capsys)[1]
    assert "UNetConfig" in json.loads(call("schema", capsys=capsys)[1])["$defs"]


def test_encode_and_train_from_the_command_line(
    first_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "encode",
        first_stage,
        "emoji",
        "--size",
        32,
        "--part",
        "held_out",
        "--out",
        tmp_path / "latents",
    ]
    code, out, _ = call(*words, capsys=capsys)
    assert code == 0
    assert "186 pictures, moments 8x4x4" in out
    small = [
        "data.size=32",
        "training.images=32",
        "training.batch=16",
        "autoencoder.coder.width=16",
        "training.precision=fp32",
    ]
    best = ["training.held_out=16", "training.best=true"]
    code, out, err = call(
        "train", "emoji-autoencoder", *small, *best, "--run", tmp_path / "run", "--quiet", capsys=capsys
    )
    assert code == 0
    assert out.strip() == str(tmp_path / "run" / "model")
    assert f"The best model is {tmp_path / 'run' / 'best'}" in err
    assert (tmp_path / "run" / "model" / "model.yaml").is_file()
    assert call("train", "emoji", *small[:2], "--dry-run", capsys=capsys)[1].count("images: 32") == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["trian"], "there is no verb 'trian'"),
        (["train", "nothing"], "there is no recipe 'nothing'"),
        (["train", "emoji", "training.bach=2"], "training.bach: unknown key"),
        (["train", "emoji", "backbone.kind=net"], "known kinds: dit, unet"),
        (["train", "emoji", "autoencoder=nowhere"], "there is no model folder nowhere"),
        (["train", "emoji-autoencoder", "data.font=no.ttf", "--run", "{tmp}/a"], "use the emoji that ship"),
        (
            ["train", "emoji-autoencoder", "data={kind: folder, path: nowhere}", "--run", "{tmp}/b"],
            "there is no folder nowhere",
        ),
        (
            ["train", "emoji-autoencoder", "data={kind: folder, path: ., size: 60}", "--run", "{tmp}/c"],
            "there are no pictures",
        ),
        (
            ["train", "photo-few", "data.path=pics", "autoencoder={tmp}/photo-f8/model", "--run", "{tmp}/d"],
            "train it first with `sfumato train photo-f8 data.path=pics data.held_out=0.1`",
        ),
        (
            ["train", "emoji-autoencoder", "objective.perceptual={kind: lpips, network: squeezenet1_1-b8a52dc0.pth}"],
            "`sfumato fetch squeezenet --out .` gets it, or give the path of the file, or do without: objective.perceptual=null",
        ),
        (
            ["train", "photo-label", "data.path=pics", "autoencoder={tmp}/photo-f8/model", "--run", "{tmp}/d"],
            "train it first with `sfumato train photo-f8 data.path=pics`",
        ),
        (
            ["train", "photo", "data.kind=table", "data.path=x.parquet", "autoencoder={tmp}/photo-f8/model"],
            "with `sfumato train photo-f8 data.kind=table data.path=x.parquet`",
        ),
        (["train", "emoji-few", "teacher={tmp}/emoji/model", "--run", "{tmp}/e"], "with `sfumato train emoji`, or"),
        (
            ["train", "two-stage-transformer", "autoencoder={tmp}/x/model", "--run", "{tmp}/f"],
            "/x/model; train it first, or",
        ),
        (["train", "gan", "autoencoder={tmp}/x/model", "--run", "{tmp}/f"], "set autoencoder=null"),
        (
            ["train", "emoji-autoencoder", "autoencoder.coder.attention=[64]", "--run", "{tmp}/g"],
            "attention [64] is at no level",
        ),
        (["train", "emoji-autoencoder", "--device", "tpu"], "unknown device 'tpu'"),
        (["train", "emoji-autoencoder", "--device", "cpu:one"], "there is no device 'cpu:one'"),
        (["train", "emoji-autoencoder", "data=./pictures"], "data.kind=folder data.path=./pictures"),
        (["train", "emoji", "prediction=noise"], "choose prediction flow or v"),
        (["generate", "nowhere", "--prompt", "a"], "there is no model folder nowhere"),
        (["generate", "{model}", "--prompt", ""], "prompt is empty"),
        (["generate", "{model}", "--prompt", "red \udcff heart"], "not UTF-8"),
        (["generate", "{model}", "--out", "{model}/model.yaml"], "is a file; --out names a folder"),
        (["generate", "{model}", "--prompt", "heart " * 4000], "shorten it"),
        (["generate", "{model}", "--steps", "0"], "greater than or equal to 1"),
        (["generate", "{model}", "--width", "3300"], "no more than 256x256"),
        (["generate", "{model}", "--sampler", "x"], "known: ddim"),
        (["generate", "{model}", "--precision", "fp8"], "known: auto, fp32, bf16"),
        (["generate", "{model}", "--promt", "x"], "No such option"),
        (["evaluate", "{tmp}"], "names its data"),
        (["evaluate", "{model}", "--features", "no.pt"], "there is no feature network no.pt"),
        (["evaluate", "{model}", "--features", "{tmp}"], "has no config.json"),
        (["evaluate", "{model}", "--reference", "nowhere"], "--reference would do nothing"),
        (["evaluate", "{model}", "--against", "no.json"], "there is no result no.json"),
        (["evaluate", "{model}", "--perceptual", "no.pt"], "there are no weights no.pt; give the path of the file"),
        (
            ["evaluate", "{model}", "--perceptual", "weights/squeezenet1_1-b8a52dc0.pth"],
            "`sfumato fetch squeezenet` gets",
        ),
        (["evaluate", "{model}", "--images", "3"], "greater than or equal to 4"),
        (["evaluate", "{model}/autoencoder", "--data", "emoji", "--steps", "5"], "--steps would do nothing"),
        (["evaluate", "{pictures}", "--sampler", "ddim", "--grid", "even"], "--sampler and --grid would do nothing"),
        (["study", "cost", "--features", "{tmp}", "--scale", "0.75"], "multiple of 0.5"),
        (["evaluate", "{model}/autoencoder", "--data", "emoji", "--reference", "emoji"], "leave --reference out"),
        (["evaluate", "{model}/autoencoder", "--data", "emoji", "--one-each"], "leave --one-each out"),
        (["evaluate", "{model}", "--one-each"], "--one-each would do nothing"),
        (["show", "{tmp}"], "there are no pictures"),
        (["encode", "{tmp}"], "not a model folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    words: list[str],
    text: str,
    model_folder: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save((pictures := tmp_path_factory.mktemp("pictures")) / "one.png")
    named = {"{tmp}": tmp_path, "{model}": model_folder, "{pictures}": pictures}
    filled = [reduce(lambda word, name: word.replace(name, str(named[name])), named, w) for w in words]
    code, _, err = call(*filled, capsys=capsys)
    assert code == 2
    assert text in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("verb", "error", "text"),
    [
        ("train", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "training.checkpointing"),
        ("generate", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "smaller --batch"),
        ("vary", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "--batch"),
        ("encode", MemoryError(), "free some, or use a machine that has more"),
    ],
)
def test_where_memory_ends_it_is_said_what_takes_less(
    verb: str, error: Exception, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr(f"sfumato.cli.{verb}.command", command)
    code, _, err = call(verb, capsys=capsys)
    assert code == 2
    assert err.startswith("sfumato: there is not enough memory: ")
    assert text in err
    assert len(err.splitlines()) == 1


def test_other_faults_of_torch_are_shown_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("sfumato.cli.encode.command", command)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        call("encode", capsys=capsys)


def test_a_demo_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").write_text(
        '{"minutes": 3, "first_stage_images": 64, "denoiser_images": 128, "captions": 4, "rates": {}}'
    )
    code, _, err = call("demo", "--out", tmp_path, capsys=capsys)
    assert (code, "add --resume" in err) == (2, True)
    code, _, err = call("demo", "--out", tmp_path, "--resume", "--minutes", 4, capsys=capsys)
    assert (code, "--minutes 3" in err) == (2, True)


def test_the_installed_command_reports_bad_input_without_a_traceback(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "sfumato", "generate", str(tmp_path), "--steps", "0"],
        capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"}, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith("sfumato: ")
    assert "Traceback" not in run.stderr


def test_show_draws_a_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(8):
        (tmp_path / "data" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20 + k, 24), 90).save(tmp_path / "data" / "ab"[k % 2] / f"{k}.png")
    code, out, _ = call(
        "show", tmp_path / "data", "size=16", "held_out=0.3", "--sheet", tmp_path / "s.png", capsys=capsys
    )
    assert code == 0
    assert "2: " in out
    assert "cut to their centred square" in out
    with Image.open(tmp_path / "s.png") as opened:
        assert opened.width > 500
    code, _, err = call("show", tmp_path / "data", "sice=16", capsys=capsys)
    assert code == 2
    assert "sice: unknown key" in err


def test_conversions_of_a_given_picture_are_said(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Image.effect_noise((32, 24), 90)
    turned = Image.Exif()
    turned[0x0112] = 6
    whole.convert("RGB").save(tmp_path / "turned.jpg", exif=turned)
    whole.convert("RGBA").save(tmp_path / "opaque.png")
    whole.convert("CMYK").save(tmp_path / "print.jpg")
    seen_through = whole.convert("RGBA")
    seen_through.putalpha(whole)
    seen_through.save(tmp_path / "clear.png")
    whole.save(tmp_path / "moves.gif", save_all=True, append_images=[whole.rotate(90)])
    whole.convert("RGB").save(tmp_path / "plain.png")
    told = {}
    for name in ("turned.jpg", "clear.png", "moves.gif", "plain.png", "opaque.png", "print.jpg"):
        words = ["vary", model_folder, "-i", tmp_path / name, "--steps", 1, "--seed", 0, "--out", tmp_path / "out"]
        code, out, err = call(*words, capsys=capsys)
        assert code == 0
        assert "turned" not in out
        told[name] = [line for line in err.splitlines() if line.startswith(str(tmp_path / name))]
    assert "turned as EXIF says" in told["turned.jpg"][0]
    assert "over white" in told["clear.png"][0]
    assert "first frame of an animation" in told["moves.gif"][0]
    assert "centred square" not in str(told)
    assert "CMYK made RGB" in told["print.jpg"][0]
    assert told["plain.png"] == told["opaque.png"] == []
    (tmp_path / "text.png").write_text("no picture")
    code, _, err = call("vary", model_folder, "-i", tmp_path / "text.png", capsys=capsys)
    assert (code, "cannot be read as a picture" in err) == (2, True)


def test_what_is_refused_leaves_no_empty_folder(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    for out in (new, old):  # too large, which is found when the model is there
        assert call("generate", model_folder, "--width", 3300, "--out", out, capsys=capsys)[0] == 2
    assert (new.exists(), old.exists()) == (False, True)
    assert call("generate", model_folder, "--steps", 1, "--seed", 0, "--out", new, capsys=capsys)[0] == 0
    assert [path.name for path in new.iterdir()] == ["00000-0.png"]


def test_every_task_has_its_verb(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / "a.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "m.png")
    given = ["--picture", tmp_path / "a.png", "--steps", 1, "--seed", 3, "--out", tmp_path / "out"]
    assert call("vary", model_folder, *given, "--strength", 0.5, "-p", "red heart", capsys=capsys)[0] == 0
    assert call("inpaint", model_folder, *given, "--mask", tmp_path / "m.png", capsys=capsys)[0] == 0
    assert call("inpaint", model_folder, *given, "--expand", "8,0,8,0", capsys=capsys)[0] == 0
    wide = ["--width", 64, "--steps", 1, "--seed", 3, "--out", tmp_path / "out"]
    assert call("panorama", model_folder, *wide, "--wrap", capsys=capsys)[0] == 0
    made = sorted((tmp_path / "out").iterdir())
    assert [metadata.read(p)["task"] for p in made] == ["vary", "inpaint", "inpaint", "panorama"]
    assert metadata.read(made[0])["picture"] == "a.png"
    with Image.open(made[2]) as opened:
        assert opened.size == (48, 32)
    for words, fault in (
        (["upscale", model_folder, *given], "not trained for super-resolution"),
        (["layout", model_folder, "--box", "dog 0 0 1"], "a class and four corners"),
        (["layout", model_folder, "--box", "dog 0 0 1 1"], "not trained for layouts"),
        (["semantic", model_folder, "--map", tmp_path / "none.png"], "there is no file"),
        (["vary", model_folder], "picture"),
        (["vary", model_folder, *given, "--label", " "], "a label is empty; leave label out"),
        (["inpaint", model_folder, *given], "inpaint: there is nothing to fill"),
        (["inpaint", model_folder, *given, "--expand", 8, "--method", "fill"], "known: auto, trained, free"),
    ):
        code, _, err = call(*words, capsys=capsys)
        assert code == 2
        assert fault in err


def test_a_run_s_own_recipe_goes_on_in_its_folder(tmp_path: Path) -> None:

    own = tmp_path / "runs" / "a" / "recipe.yaml"
    assert _folder(own, True) == Path("runs/recipe")
    (own.parent / "state").mkdir(parents=True)
    assert _folder(own, True) == own.parent
    assert _folder(own, False) == Path("runs/recipe")
    assert _folder(Path("photo-f8"), True) == Path("runs/photo-f8")


def test_trust_may_stand_before_the_verb_and_sheets_are_pngs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--trust", "show", "emoji", capsys=capsys)[0] == 0
    code, _, err = call("show", "emoji", "--sheet", tmp_path / "a.txt", capsys=capsys)
    assert code == 2
    assert "the contact sheet is a PNG; give --sheet a name such as" in err


@pytest.mark.parametrize(("verb", "option"), [("demo", "--minutes"), ("study", "--hours")])
def test_endless_times_are_refused(verb: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cost", "--features", save(Looks(), tmp_path / "f.pt")] if verb == "study" else []
    code, _, err = call(verb, *words, option, "inf", "--out", tmp_path / "out", capsys=capsys)
    assert code == 2
    assert "less than 100,000; got inf" in err


def test_an_evaluation_is_told_before_its_file_is_written(
    first_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call("evaluate", first_stage, "--data", "emoji", "--out", tmp_path, capsys=capsys)
    assert code == 2
    assert out == ""
    assert "is a folder; give --out and --report the name of a file" in err


def test_letters_that_a_stream_has_not_end_nothing(tmp_path: Path) -> None:
    """As on Windows where the output goes into a file."""
    name = tmp_path / "写真.yaml"
    name.write_text("stage: autoencoder\nautoencoder: {kind: kl}\ndata: emoji\ntraining: {images: 8}\n")
    ran = subprocess.run(
        [sys.executable, "-m", "sfumato", "train", str(name), "--run", str(tmp_path / "写"), "--dry-run", "--quiet"],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
    )
    assert b"charmap" not in ran.stderr
    missing = subprocess.run(
        [sys.executable, "-m", "sfumato", "show", str(tmp_path / "无")],
        env={**os.environ, "PYTHONIOENCODING": "cp1252:strict"},
        capture_output=True,
    )
    assert missing.returncode == 2
    assert b"\\u65e0" in missing.stderr
