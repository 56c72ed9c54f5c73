"""The house keeps its floors: imports go down, rooms of one floor do not know one another, files stay one noun long."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "sfumato"
FLOORS: dict[str, int] = {
    "nn": 1, "features": 1, "config": 1, "image": 1, "streams": 1, "windows": 1, "files": 1, "device": 1, "lanes": 1, "paths": 1,
    "distributed": 1, "page": 1, "shape": 1, "shipped": 1,
    "diffusion": 2, "conditioning": 2, "autoencoder": 2, "data": 2,
    "backbones": 3,
    "model": 4,
    "tasks": 5, "training": 5, "evaluation": 5, "families": 5, "convert": 5,
    "server": 6, "demo": 6, "studies": 6,
    "cli": 7,
    "__main__": 8,
}  # fmt: skip
TOGETHER = 5  # the floor whose rooms may import one another, without a circle


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports() -> list[tuple[str, str, Path]]:
    """(room, imported room, file) of every import of the package within it, lazy ones too."""
    found = []
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not getattr(node, "level", 0), f"{path}: write imports of the package in full"
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if isinstance(node, ast.ImportFrom) and node.module == "sfumato":
                names = [f"sfumato.{a.name}" for a in node.names]
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            found += [(parts[0], room(n), path) for n in names if n.startswith("sfumato.") and room(n) != "__version__"]
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {p.relative_to(SOURCE).with_suffix("").parts[0] for p in SOURCE.rglob("*.py")} - {"__init__"}
    assert rooms <= set(FLOORS)


def test_no_arrow_goes_up_and_rooms_of_a_floor_are_apart() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} imports {to}"
        for of, to, path in imports()
        if of != to and (FLOORS[to] > FLOORS[of] or (FLOORS[to] == FLOORS[of] and FLOORS[of] not in (1, TOGETHER)))
    ]
    assert not wrong


def test_rooms_make_no_circle() -> None:
    edges = {(a, b) for a, b, _ in imports() if a != b}
    seen: dict[str, int] = {}

    def visit(name: str) -> None:
        seen[name] = 1
        for a, b in sorted(edges):
            if a == name:
                assert seen.get(b) != 1, f"{a} and {b} import one another"
                if b not in seen:
                    visit(b)
        seen[name] = 2

    for name in FLOORS:
        if name not in seen:
            visit(name)


def test_files_hold_one_noun() -> None:
    long = [str(p) for p in SOURCE.rglob("*.py") if len(p.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long


def test_nothing_needs_torchvision_or_pickle() -> None:
    words = ("torch" + "vision", "import pickle", "weights_only=False")
    bad = [str(p) for p in SOURCE.rglob("*.py") if any(w in p.read_text(encoding="utf-8") for w in words)]
    assert not bad


def calls() -> list[tuple[str, str, dict[str, str]]]:
    """(place, what is called, what it is given by name or number) of every call in the package."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                told = {k.arg or "**": ast.unparse(k.value) for k in node.keywords}
                places = {str(n): ast.unparse(given) for n, given in enumerate(node.args)}
                found.append(
                    (f"{path.relative_to(SOURCE).as_posix()}:{node.lineno}", ast.unparse(node.func), told | places)
                )
    return found


def test_weights_are_read_whole_and_without_running_what_is_in_their_file() -> None:
    every = calls()
    loads = [(place, told) for place, name, told in every if name in ("torch.load", "load")]
    assert loads  # of the published checkpoints
    assert not [place for place, told in loads if told.get("weights_only") != "True"]
    states = [(place, told) for place, name, told in every if name.rpartition(".")[2] == "load_state_dict"]
    assert states
    assert not [place for place, told in states if told.get("strict", "True") != "True" or "1" in told]


# what is on the host: features and pictures that are measured, draws and rows of a schedule, what users hand in
HOST = {
    "diffusion/loss.py", "families/autoregressive.py", "studies/judge.py", "tasks/given.py",
    *(f"evaluation/{name}.py" for name in (
        "alignment", "captions", "frechet", "generation", "inception", "manifold", "memorising", "reconstruction"
    )),
}  # fmt: skip


def test_no_device_is_asked_for_doubles() -> None:
    """Apple's GPUs have none: what may lie on one goes through `device.fine`, or to the host first."""
    asked = [
        place
        for place, name, told in calls()
        if place.partition(":")[0] not in HOST
        and (
            (name.endswith(".double") and not name.endswith(".cpu().double"))
            or ("device" in told and told.get("dtype") == "torch.float64")
        )
    ]
    assert not asked


VERBS = [f"sfumato.cli.{p.stem}" for p in sorted((SOURCE / "cli").glob("*.py"))]


@pytest.mark.parametrize("module", ["sfumato", "sfumato.tasks.requests", *VERBS])
def test_help_does_not_wait_for_torch(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scripts_import_what_there_is() -> None:
    """Those that documents name are run by hand, long after what they import was last moved."""
    root = SOURCE.parent.parent
    for path in (*root.glob("benchmarks/*.py"), *root.glob("tools/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sfumato":
                module = importlib.import_module(node.module or "")
                for name in (a.name for a in node.names):
                    there = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}")
                    assert there, f"{path.name}: {node.module} has no {name}"
