"""Semantic synthesis: a picture from a map that says what is where (Rombach et al., 2022, section 4.3.2).

Maps larger than the model was trained on are worked on in windows that agree where they overlap.
"""

from collections.abc import Iterator

from torch import Tensor

from sfumato.model import LatentDiffusion
from sfumato.tasks import canvas, given
from sfumato.tasks.requests import Semantic
from sfumato.tasks.said import TOLD, takes
from sfumato.tasks.walk import Made, Progress, Rows, batches, walk


def semantic(model: LatentDiffusion, request: Semantic, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures, as large as the map where no size is asked for, up to the first stage's multiples: these are
    cut off again.

    Raises `ValueError` for maps with unknown classes or colours, for those that are too large, and for a size of another
    shape.
    """
    field = takes(model, "map", TOLD["map"])
    numbers = model.conditions.reader(field).value(given.opened(request.map, "map"))
    high, wide = numbers.shape
    width = request.width or max(round(wide * (request.height or high) / high), 1)
    made = canvas.parted(model, width, request.height or max(round(high * width / wide), 1))

    def make(rows: Rows) -> Tensor:
        x = rows.noise.normal(made.shape, 0).to(model.device)
        return model.pictures(walk(model, x, request, rows.said, rows.noise, rows.tell, stride=made.stride))

    yield from batches(model, request, made, make, tell)
