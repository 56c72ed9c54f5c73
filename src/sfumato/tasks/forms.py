"""How the fields of requests are said: what users write or hand in, as the values that a request holds.

Nothing here imports torch, as in `requests`.
"""

import json
import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from sfumato.diffusion.names import GRIDS, SAMPLERS

# What users of image generators call the samplers: the text inside pictures tells these names, and requests take them.
TITLES = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "plms": "PLMS",
    "deis": "DEIS",
    "unipc": "UniPC",
    "lcm": "LCM",
    "adaptive": "DPM adaptive",
}


SPOKEN = re.compile(r"\s*(.*?)" + 4 * r"[\s,]+([^\s,]+)" + r"[\s,]*")  # a box in words: a class and four corners
METHODS = ("auto", "trained", "free")  # of inpainting


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _known_sampler(value: Any) -> Any:
    titled = {title.lower(): name for name, title in TITLES.items()}
    if str(value).lower() in titled:
        return titled[str(value).lower()]
    name = str(value).lower().replace("-", "_").replace("++", "pp").replace(" ", "_")
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {value!r}; known: {', '.join(SAMPLERS)}")
    return name


def _known_grid(value: Any) -> Any:
    name = str(value).lower().replace("-", "_").replace(" ", "_")
    if name not in GRIDS:
        raise ValueError(f"unknown grid {value!r}; known: {', '.join(GRIDS)}")
    return name


def _known_method(value: Any) -> Any:
    if value not in METHODS:
        raise ValueError(f"unknown method {value!r}; known: {', '.join(METHODS)}")
    return value


def _classes(value: Any) -> Any:
    """Classes by name or by number, one or several."""
    several = value if isinstance(value, list | tuple) else [value]
    found = [_integer(one) for one in several]
    return [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in found]


def _integer(value: Any) -> Any:
    """A whole number of another library as Python's; anything else as it is."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


Texts = Annotated[list[str], BeforeValidator(_listed)]
Classes = Annotated[list[str], BeforeValidator(_classes)]


def _picture(value: Any) -> Any:
    """A path, or a picture that is open: PIL's, known by what it can do, for nothing here imports it."""
    if isinstance(value, str):
        value = Path(value)
    if isinstance(value, Path):
        if not value.is_file():
            raise ValueError(f"there is no file {value}; give a picture")
        return value
    if hasattr(value, "convert") and hasattr(value, "size"):
        return value
    raise ValueError(f"a picture is a path or a PIL picture; got {type(value).__name__}")


def _pictures(value: Any) -> Any:
    """One picture or several."""
    several = list(value) if isinstance(value, list | tuple) else [value]
    if not several:
        raise ValueError("the list of pictures is empty; leave it out")
    return [_picture(one) for one in several]


def _folder(value: Any) -> Any:
    if not Path(value).is_dir():
        raise ValueError(f"there is no folder {value}; give a folder of pictures")
    return Path(value)


def _boxes(value: Any) -> Any:
    """Boxes as Python has them, as words («red apple 0.1 0.2 0.5 0.9»), or in a JSON file."""
    if isinstance(value, str | Path | Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"boxes are a list; got {type(value).__name__}")
    found: list[Any] = []
    for one in value:
        if isinstance(one, str | Path) and str(one).lower().endswith(".json"):
            found += _boxes_of(Path(one))
        else:
            found.append(one)
    return [_spoken(one) if isinstance(one, str) else _plain(one) for one in found]


def _plain(one: Any) -> Any:
    """A box with the numbers of another library as Python's, which are kept in the picture; what is no box as it is."""
    if isinstance(one, Mapping) and set(one) == {"label", "box"}:
        corners = one["box"]
        return {"label": _integer(one["label"]), "box": _floats(corners)}
    if isinstance(one, list | tuple) and len(one) == 5:
        return (_integer(one[0]), *_floats(one[1:]))
    return one


def _floats(corners: Any) -> Any:
    try:
        return [float(c) for c in corners]
    except (TypeError, ValueError, OverflowError):
        return corners  # which is told where boxes are read


def _spoken(words: str) -> Any:
    """«red apple 0.1 0.2 0.5 0.9», its corners with commas or without."""
    found = SPOKEN.fullmatch(words)
    label, *corners = found.groups() if found else ("",)
    try:
        if label:
            return (" ".join(label.split()), *(float(c) for c in corners))
    except ValueError:
        pass
    raise ValueError(f'a box is a class and four corners, "dog 0.1 0.2 0.5 0.9"; got {words!r}')


def _boxes_of(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give a JSON list of boxes")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); give a list of {{label, box: [x0, y0, x1, y1]}}") from None
    if not isinstance(found, list):
        raise ValueError(f"{path} holds no list; give a list of {{label, box: [x0, y0, x1, y1]}}")
    return found


def _sides(value: Any) -> Any:
    """«32,0,32,0» or one number for all four sides."""
    words = [value] if isinstance(value, int) else value.split(",") if isinstance(value, str) else value
    try:
        sides = [int(w) for w in words]
    except (TypeError, ValueError):
        raise ValueError(f"pixels to add are left,top,right,bottom or one number; got {value!r}") from None
    sides = sides * 4 if len(sides) == 1 else sides
    if len(sides) != 4 or min(sides) < 0:
        raise ValueError(f"pixels to add are left,top,right,bottom, none below 0; got {value!r}")
    return tuple(sides)


def _span(value: Any) -> Any:
    """«0.2,0.8» or two numbers."""
    words = value.split(",") if isinstance(value, str) else value
    try:
        low, high = (float(w) for w in words)
    except (TypeError, ValueError):
        raise ValueError(
            f"an interval is two times from 0, clean, to 1, noise, such as 0.2,0.8; got {value!r}"
        ) from None
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"an interval goes up, from 0 at the least to 1 at the most; got {low:g},{high:g}")
    return low, high


Picture = Annotated[Any, BeforeValidator(_picture)]
Pictures = Annotated[list[Any], BeforeValidator(_pictures)]
Folder = Annotated[Path, BeforeValidator(_folder)]
Boxes = Annotated[list[Any], BeforeValidator(_boxes)]
Sides = Annotated[tuple[int, int, int, int], BeforeValidator(_sides)]
Span = Annotated[tuple[float, float], BeforeValidator(_span)]
Sampler = Annotated[str, BeforeValidator(_known_sampler)]
Grid = Annotated[str, BeforeValidator(_known_grid)]
Method = Annotated[str, BeforeValidator(_known_method)]
