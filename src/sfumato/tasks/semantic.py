"""Semantic synthesis: a picture from a map that says what is where (Rombach et al., 2022, section 4.3.2).

Maps larger than the model was trained on are worked on in windows that agree where they overlap.
"""

from collections.abc import Iterator

from torch import Tensor

from sfumato.model import LatentDiffusion
from sfumato.tasks import given
from sfumato.tasks.requests import Semantic
from sfumato.tasks.walk import Made, Progress, Rows, apart, batches, takes, walk


def semantic(model: LatentDiffusion, request: Semantic, tell: Progress | None = None) -> Iterator[Made]:
    """The request's pictures, as large as the map, up to the first stage's multiples: these are cut off again.

    Raises `ValueError` for maps with unknown classes or colours, and for those that are too large.
    """
    takes(model, "map", "semantic maps")
    reader = model.conditions.reader("map")
    numbers = reader.value(given.opened(request.map, "map"))
    high, wide = numbers.shape
    numbers = given.whole(numbers.float(), model.codec.factor).long()
    shape = model.latent_shape(numbers.shape[-1], numbers.shape[-2])
    stride = apart(model, wide, high)

    def make(rows: Rows) -> Tensor:
        x = rows.noise.normal(shape, 0).to(model.device)
        said = rows.every("map", numbers)
        return model.pictures(walk(model, x, request, said, rows.noise, rows.tell, stride=stride))[..., :high, :wide]

    yield from batches(model, request, make, tell)
