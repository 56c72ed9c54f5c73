"""Settings inside the picture: the text that users of image generators know, and our own JSON, in a PNG's text chunks."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato import files
from sfumato.diffusion.names import SAMPLERS
from sfumato.tasks.forms import TITLES
from sfumato.tasks.requests import Request

A1111, OURS = "parameters", "sfumato"


def settings(
    request: Request,
    place: int,
    seed: int,
    prompt: str | None,
    size: tuple[int, int],
    model: str,
    model_hash: str,
    version: str,
) -> dict[str, Any]:
    """Everything that is needed to make picture `place` of a request again, alone.

    What counts up with the place is told as it was for this picture; of a way between two seeds, which is not made of
    one picture, `count` and `place`.
    """
    kept = request.model_dump(exclude={"prompt", "seed", "count", "batch", "width", "height"}, exclude_none=True)
    if "variation_seed" in kept:
        kept["variation_seed"] = (kept["variation_seed"] + place) % 2**63
    if not SAMPLERS[request.sampler].evaluations:
        del kept["steps"]  # which it finds itself
    if "until" in kept:
        kept.update(count=request.total, place=place)
    if len(kept.get("label", ())) == 1:
        kept["label"] = kept["label"][0]
    kept = {name: value if _plain(value) else _told(value) for name, value in kept.items()}
    return {
        "task": type(request).__name__.lower(),
        "prompt": prompt,
        "seed": seed,
        **({"width": size[0], "height": size[1]} if "width" in type(request).model_fields else {}),
        **kept,
        "model": model,
        "model_hash": model_hash,
        "version": version,
    }


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _told(value: Any) -> str:
    """What a picture that was handed in is called, or several: its file, or its size."""
    if isinstance(value, list):
        return ", ".join(_told(one) for one in value)
    if isinstance(value, Path):
        return value.name
    size = getattr(value, "size", None)
    return f"{type(value).__name__} {size[0]}x{size[1]}" if isinstance(size, tuple) else str(value)


def infotext(s: dict[str, Any], size: tuple[int, int]) -> str:
    """The `parameters` text of AUTOMATIC1111's web UI, of a picture of this width and height."""
    lines = [s.get("prompt") or ""]
    if s.get("negative"):
        lines.append(f"Negative prompt: {s['negative']}")
    facts = {
        **(_walked(s) if "sampler" in s else {}),
        **({"CFG scale": f"{s['guidance']:g}"} if "guidance" in s else {}),
        "Seed": s["seed"],
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": s["model_hash"],
        "Model": s["model"],
        "RNG": "CPU",
        **({"Denoising strength": f"{s['strength']:g}"} if "strength" in s else {}),
        **_variation(s),
        "Version": f"sfumato {s['version']}",
    }
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in facts.items())])


def _walked(s: dict[str, Any]) -> dict[str, Any]:
    """How it was sampled, which is told of all but the other families."""
    return {
        **({"Steps": s["steps"]} if "steps" in s else {}),
        "Sampler": TITLES.get(s["sampler"], s["sampler"]),
        "Schedule type": s["grid"].replace("_", " ").capitalize(),
    }


def _variation(s: dict[str, Any]) -> dict[str, Any]:
    """A mixture with another seed's noise, as that web UI tells it, which goes between two seeds by nothing else."""
    if s.get("until") is not None:
        share = s["place"] / (s["count"] - 1)
        return {"Variation seed": s["until"], "Variation seed strength": f"{share:g}"}
    if s.get("variation_seed") is not None:
        return {"Variation seed": s["variation_seed"], "Variation seed strength": f"{s['variation']:g}"}
    return {}


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG with the settings in `picture.info` inside, whole or not at all. Raises as `files.write`."""
    chunks = PngInfo()
    for name in (A1111, OURS):
        if name in picture.info:
            chunks.add_itxt(name, picture.info[name])
    files.write(path, lambda part: picture.save(part, "PNG", pnginfo=chunks))


def attach(picture: Image.Image, s: dict[str, Any]) -> Image.Image:
    """The picture with the settings in its `info`, as `save` writes them."""
    picture.info[A1111], picture.info[OURS] = infotext(s, picture.size), json.dumps(s, ensure_ascii=False)
    return picture


def read(path: Path) -> dict[str, Any]:
    """The settings inside a PNG that `save` wrote. Raises `ValueError` where there are none."""
    with Image.open(path) as opened:
        opened.load()
        text = opened.info.get(OURS)
    if not isinstance(text, str):
        raise ValueError(f"{path} holds no settings of Sfumato")
    found: dict[str, Any] = json.loads(text)
    return found
