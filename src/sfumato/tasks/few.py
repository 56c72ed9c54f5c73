"""Requests as a model that wants few steps, or was distilled into few, wants them, in all that the user did not say."""

from typing import Any, TypeVar

from sfumato.conditioning.stride import FIELD
from sfumato.diffusion.names import SAMPLERS
from sfumato.model import DistilledConfig, LatentDiffusion
from sfumato.tasks.requests import Request
from sfumato.tasks.said import denied
from sfumato.tasks.strides import STEPPING

Asked = TypeVar("Asked", bound=Request)


def settled(model: LatentDiffusion, request: Asked) -> Asked:
    """The request with the model's own steps, and of a distilled one sampler, grid and guidance, where none were said.

    A model with a plain flow is sampled in its few steps, its guidance baked in, unless something is said that only the
    flow can do: more steps, another sampler, guidance or a negative. Raises `ValueError` where both are said.
    """
    distilled = model.config.distilled
    if not SAMPLERS[request.sampler].evaluations:
        if "steps" in request.model_fields_set:
            raise ValueError(f"sampler {request.sampler} finds its own steps; leave steps out, or take another sampler")
        if distilled is None:
            return request  # whose steps only say where its grid ends
    if distilled is None:
        steps, method = model.config.steps, getattr(request, "method", None)
        # which wants its usual steps
        free = method == "free" or (method == "auto" and not model.conditions.asked("masked"))
        if steps is None or free or "steps" in request.model_fields_set:
            return request
        return request.model_copy(update={"steps": steps})
    own: dict[str, Any] = {"sampler": distilled.sampler, "grid": "even", "steps": distilled.steps, "guidance": 1.0}
    if getattr(request, "invert", False):
        own["sampler"] = "ddim"  # which inversion turns round
    if distilled.flow == "plain":
        own["guidance"] = distilled.guidance
        if not _few(model, distilled, request):
            # more than strides take: inversion and resampling in a hole go by a sampler that would be told them
            own = {"guidance": distilled.guidance, "steps": max(request.steps, _finest(model) // 2 + 1)}
    elif "guidance" not in request.model_fields_set and (denied(request) or request.interval is not None):
        what = "a negative" if denied(request) else "an interval"
        raise ValueError(
            f"this model has its guidance baked in and needs none, so {what} would do nothing; leave it out, or say a "
            "guidance above 1, which comes on top"
        )
    return request.model_copy(update={k: v for k, v in own.items() if k not in request.model_fields_set})


def _few(model: LatentDiffusion, distilled: DistilledConfig, request: Request) -> bool:
    """Whether a model with a plain flow is to take strides."""
    said, finest = request.model_fields_set, _finest(model)
    if "sampler" in said and request.sampler not in STEPPING:
        return False
    other = "guidance" in said and request.guidance != distilled.guidance
    free = {"guidance": other, "negative": denied(request), "interval": request.interval is not None}
    wanted = [name for name, is_wanted in free.items() if is_wanted]
    if "steps" not in said:
        return not wanted
    if 2 * request.steps > finest:
        return False
    if wanted and not (wanted == ["guidance"] and request.guidance == 1.0):  # 1: nothing beyond what it has in it
        raise ValueError(
            f"in {request.steps} steps this model has its guidance of {distilled.guidance:g} baked in, so "
            f"{' and '.join(wanted)} would do nothing; leave it out, or take {finest // 2 + 1} steps or more"
        )
    return True


def _finest(model: LatentDiffusion) -> int:
    """The most strides of one way to a picture."""
    found: int = model.conditions.reader(FIELD).finest
    return found
