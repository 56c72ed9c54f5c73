"""Shortcut models in sampling: at every step the network is told how long the step is (Frans et al., 2024, algorithm 2).

That is for samplers whose step is one estimate followed to its end. To any other sampler such a model is the flow that it
is told the stride 0 of: its teacher's, with the guidance, or as it is where the model keeps a plain flow.
"""

from collections.abc import Callable

from torch import Tensor

from sfumato.conditioning.stride import FIELD, Stride
from sfumato.diffusion.grid import Grid
from sfumato.diffusion.samplers.base import Denoise, made, moment
from sfumato.model import LatentDiffusion
from sfumato.tasks.requests import Request

STEPPING = ("ddim", "euler")  # and what goes by them: inversion, and resampling in a hole


def teller(model: LatentDiffusion, request: Request) -> Stride | None:
    """What tells the model strides under this request, None where it is told none."""
    distilled = model.config.distilled
    if distilled is None or distilled.how != "shortcut" or request.sampler not in STEPPING:
        return None
    found: Stride = model.conditions.reader(FIELD)
    # in many steps a plain flow is sampled as any model's, also where a grid has some steps as long as a stride
    return None if distilled.flow == "plain" and 2 * request.steps > found.finest else found


def asked_of(model: LatentDiffusion, request: Request, length: float) -> Request:
    """The request under a stride: beside a plain flow, which is guided as any model's, strides have it baked in."""
    distilled = model.config.distilled
    if distilled is None or distilled.flow == "guided" or length == 0.0:
        return request
    return request.model_copy(update={"guidance": 1.0, "negative": None})


def strode(under: Callable[[float], Denoise], rows: Grid, known: Callable[[float], float]) -> Denoise:
    """`denoise(x_t, t)` of steps between `rows`: `under(stride)`, for the stride that is `known` nearest below the length
    of the step from t. Each stride's is made once. Raises `ValueError` for a batch at times of its own."""
    begins, lengths = rows.t[:-1], rows.t[:-1] - rows.t[1:]
    places: dict[float, Denoise] = {}

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        time = moment(t)
        if time is None:
            raise ValueError("a shortcut is told one stride at a time; sample it by ddim or euler")
        stride = known(float(lengths[int((begins - time).abs().argmin())]))
        if stride not in places:
            places[stride] = under(stride)
        return places[stride](x_t, t)

    return made(denoise, places.values())
