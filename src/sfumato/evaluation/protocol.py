"""What a number was measured with, and the refusal to compare numbers that were measured otherwise.

Two Fréchet distances over other counts, resizes, references or networks are two quantities. So every result carries
`protocol`, how it was measured, beside `subject`, what was measured: protocols must agree for a comparison, subjects
are what is compared.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sfumato import __version__

FORMAT = 3  # of the measures; a change that moves a number makes it another


def record(**parts: Any) -> dict[str, Any]:
    """A protocol: the parts that are not None, with the format of the measures."""
    return {"measures": FORMAT, "sfumato": __version__, **{k: v for k, v in parts.items() if v is not None}}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """`place: one value and another` for every place where two protocols differ. The package's version may."""
    a, b = dict(_leaves(first)), dict(_leaves(second))
    places = [p for p in {**a, **b} if a.get(p) != b.get(p) and p != "sfumato"]
    return [f"{p}: {_short(a.get(p))} and {_short(b.get(p))}" for p in places]


def check(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str] = ("one", "the other")) -> None:
    """Raise `ValueError` where two results were measured by other protocols, or one has none."""
    for result, name in zip((first, second), names, strict=True):
        if not isinstance(result.get("protocol"), Mapping):
            raise ValueError(f"{name} has no protocol, so its numbers compare with nothing; measure again")
    found = differences(first["protocol"], second["protocol"])
    if found:
        raise ValueError(f"{names[0]} and {names[1]} were measured otherwise and do not compare: {'; '.join(found)}")


def compared(
    first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str] = ("one", "the other")
) -> dict[str, tuple[float, float]]:
    """Place -> both numbers, where both results have one. Raises `ValueError` as `check` does."""
    check(first, second, names)
    apart = ("protocol", "subject", "pictures", "extremes")
    a, b = (
        {p: v for p, v in _leaves({k: w for k, w in result.items() if k not in apart}) if _number(v)}
        for result in (first, second)
    )
    return {place: (value, b[place]) for place, value in a.items() if place in b}


def read(path: Path) -> dict[str, Any]:
    """A result that was written before. Raises `ValueError` where the file is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no result {path}; write one with `sfumato evaluate ... --out {path}`") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); write it again with `sfumato evaluate --out`") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no result of `sfumato evaluate`; write one with --out")
    return found


def sentence(protocol: Mapping[str, Any]) -> str:
    """The protocol of a set of images in one line: whose features, which resize, which reference, how many."""
    network, reference = protocol["features"], protocol["reference"]
    digest = f", SHA-256 {network['sha256'][:12]}..." if network.get("sha256") else ""
    return (
        f"features of {network['name']}{digest}, resize {network['resize']}; {protocol['images']:,} images against "
        f"{protocol['reference_images']:,} of {reference.get('name', reference['kind'])} ({reference.get('size', '?')} pixels, "
        f"{str(reference.get('fingerprint', ''))[:12]})"
    )


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from _leaves(v, f"{place}.{k}" if place else str(k))
    elif isinstance(value, list) and any(isinstance(v, Mapping | list) for v in value):
        for k, v in enumerate(value):
            yield from _leaves(v, f"{place}.{v.get('images', k) if isinstance(v, Mapping) else k}")
    else:
        yield place, value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
