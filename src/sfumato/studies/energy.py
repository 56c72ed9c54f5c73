"""What training and sampling cost in kWh and CO2: measured where the machine can tell, else estimated and called so.

Linux tells what Intel's and AMD's packages use under `/sys/class/powercap` (RAPL; often readable by root alone, and not at
all in virtual machines), NVIDIA's driver what a GPU does. Elsewhere a stated number of watts stands in.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

WATTS_A_THREAD = 10.0  # of a server's processor under load: stated, not measured
WATTS_OF_APPLE = 40.0  # of a laptop's chip, all of it: stated, not measured
WATTS_A_GPU = 300.0  # of a data centre's under load, where NVML's bindings are not there: stated, not measured
GRID = 0.48  # kg of CO2 a kWh: the world's electricity in 2023 (Ember, Global Electricity Review 2024)
POWERCAP = Path("/sys/class/powercap")


@dataclass
class Energy:
    """Joules of a piece of work, and how they are known."""

    joules: float = 0.0
    seconds: float = 0.0
    how: str = ""

    @property
    def watts(self) -> float:
        """The mean power."""
        return self.joules / self.seconds if self.seconds else 0.0


def counters(root: Path = POWERCAP) -> dict[str, tuple[Path, int]]:
    """Readable energy counters of whole packages, each with the value at which it begins again."""
    found = {}
    for folder in sorted(root.glob("*:[0-9]*")):
        try:
            # parts of a package, the platform around it and the same counter by another road would count twice
            if (
                folder.name.count(":") > 1
                or "mmio" in folder.name
                or not (folder / "name").read_text().startswith("package")
            ):
                continue
            int((folder / "energy_uj").read_text())
            found[folder.name] = (folder / "energy_uj", int((folder / "max_energy_range_uj").read_text()))
        except (OSError, ValueError):
            continue
    return found


@contextmanager
def metered(device: torch.device, watts: float | None = None, root: Path = POWERCAP) -> Iterator[Energy]:
    """Fills an `Energy` with what passes within: by the GPU's power or the processor's counters, whichever of them works,
    or by stated `watts`."""
    found, packages = Energy(), counters(root)
    before = {name: int(path.read_text()) for name, (path, _) in packages.items()}
    begin = time.perf_counter()
    with _polled(device) as powers:
        yield found
    found.seconds = time.perf_counter() - begin
    if powers:
        power = sum(powers) / len(powers)
        found.joules, found.how = power * found.seconds, "measured (NVML, four times a second), the GPU alone"
    elif packages and device.type == "cpu":
        used = [(int(path.read_text()) - before[name]) % most for name, (path, most) in packages.items()]
        found.joules, found.how = sum(used) / 1e6, "measured (RAPL), whole processor packages"
    else:
        usual = {"cpu": WATTS_A_THREAD * torch.get_num_threads(), "mps": WATTS_OF_APPLE}.get(device.type, WATTS_A_GPU)
        stated = watts or usual
        found.joules, found.how = stated * found.seconds, f"estimated from stated {stated:g} W"


@contextmanager
def _polled(device: torch.device) -> Iterator[list[float]]:
    """Watts of the GPU while what is within runs, [] where nothing tells."""
    powers, done = list[float](), threading.Event()

    def poll() -> None:
        while not done.wait(0.25) and (power := _gpu(device)) is not None:
            powers.append(power)

    thread = threading.Thread(target=poll, daemon=True) if device.type == "cuda" else None
    if thread is not None:
        thread.start()
    try:
        yield powers
    finally:
        done.set()
        if thread is not None:
            thread.join()


def _gpu(device: torch.device) -> float | None:
    """Watts of the GPU now, None where nothing tells."""
    try:
        return torch.cuda.power_draw(device) / 1000.0
    except (ImportError, RuntimeError, AssertionError):  # without NVML's bindings
        return None


def kwh(watts: float, seconds: float) -> float:
    """Energy in kWh."""
    return watts * seconds / 3.6e6
