"""Says, before anything is downloaded, what the installation will need. Runs on a bare Python."""

import platform
import sys


def advice(index: str, system: str, machine: str, version: tuple[int, int]) -> tuple[int, str]:
    """The exit code and the line to print for this machine."""
    if version < (3, 11):
        return (
            2,
            f"Sfumato needs Python 3.11 or newer; this is {version[0]}.{version[1]}. Try `make PYTHON=python3.12 ...`.",
        )
    if system == "Linux" and machine == "x86_64" and not index:
        return 0, (
            "Note: on Linux, PyPI's torch brings several gigabytes of CUDA libraries. For the CPU-only build (0.2 GB) stop now\n"
            "and run the same command with INDEX=https://download.pytorch.org/whl/cpu"
        )
    return 0, ""


if __name__ == "__main__":
    code, line = advice(
        sys.argv[1] if len(sys.argv) > 1 else "", platform.system(), platform.machine(), sys.version_info[:2]
    )
    if line:
        print(line, file=sys.stderr)
    sys.exit(code)
