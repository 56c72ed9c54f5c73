"""What a part of the data says, asked of a conditioner before training: a value that it cannot read would stop the run
when it is first shown, which may be after hours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfumato.conditioning.base import ConditionerConfig
from sfumato.conditioning.bundle import silent
from sfumato.data.base import Part


def readable(
    conditioner: ConditionerConfig, texts: Mapping[str, str], part: Part, values: Sequence[Any] | None = None
) -> None:
    """Raise `ValueError` where a part has a value that a conditioner, completed by the data, cannot read.

    `texts` are those that lie beside its weights, `values` what is asked: None for all that the part has. Maps are asked
    by the numbers in them, a pixel each.
    """
    field = conditioner.field
    for number, shows in part.numbers(field).items():
        try:
            conditioner.check([np.array([[number]])], texts)
        except ValueError as error:
            raise ValueError(f"{shows}: {error}") from None
    if values is None and conditioner.beside:
        conditioner.check_heard(_told(part, conditioner.beside), texts)
    if values is None and field and conditioner.reads:
        values = _told(part, field)
    if values:
        conditioner.check(values, texts)


def _told(part: Part, field: str) -> list[Any]:
    return [value for k in part.telling(field) if not silent(value := part.field(k, field))]
