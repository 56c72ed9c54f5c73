"""Layout: a picture whose things stand where boxes say (Rombach et al., 2022, section 4.3.1)."""

from collections.abc import Iterator

from torch import Tensor

from sfumato.model import LatentDiffusion
from sfumato.tasks.requests import Layout
from sfumato.tasks.walk import Made, Progress, Rows, batches, fits, takes, walk


def layout(model: LatentDiffusion, request: Layout, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures, each with all boxes. Raises `ValueError` for boxes that the model cannot read."""
    takes(model, "boxes", "layouts")
    fits(model, request.width or model.size, request.height or model.size)
    shape = model.latent_shape(request.width, request.height)

    def make(rows: Rows) -> Tensor:
        x = rows.noise.normal(shape, 0).to(model.device)
        return model.pictures(walk(model, x, request, rows.every("boxes", request.boxes), rows.noise, rows.tell))

    yield from batches(model, request, make, tell)
