"""Layout: a picture whose things stand where boxes say (Rombach et al., 2022, section 4.3.1).

Pictures larger than the model was trained on are worked on in windows that agree where they overlap, each told the boxes
that reach into it.
"""

from collections.abc import Iterator

from torch import Tensor

from sfumato.model import LatentDiffusion
from sfumato.tasks import canvas
from sfumato.tasks.requests import Layout
from sfumato.tasks.said import TOLD, takes
from sfumato.tasks.walk import Made, Progress, Rows, batches, walk


def layout(model: LatentDiffusion, request: Layout, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures, each with all boxes. Raises `ValueError` for boxes that the model cannot read."""
    takes(model, "boxes", TOLD["boxes"])
    made = canvas.parted(model, request.width, request.height)

    def make(rows: Rows) -> Tensor:
        x = rows.noise.normal(made.shape, 0).to(model.device)
        return model.pictures(walk(model, x, request, rows.said, rows.noise, rows.tell, stride=made.stride))

    yield from batches(model, request, made, make, tell)
