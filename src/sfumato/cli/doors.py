"""Options from a request type: the command line's door to a task."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Optional, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from sfumato.cli.handed import EACH
from sfumato.config import Config

SHORT = {"prompt": "-p", "negative": "-n", "seed": "-s", "count": "-c"}
ALIASES = {
    "negative": ["--negative-prompt"],
    "guidance": ["--cfg-scale"],
    "sampler": ["--sampling-method"],
    "grid": ["--scheduler"],
    "count": ["--batch-count"],
    "width": ["-W"],
    "height": ["-H"],
    "picture": ["--image", "--init-img", "-i"],
    "boxes": ["--box", "-b"],
}


def options(request: type[Config]) -> list[inspect.Parameter]:
    """One typer option a field of the request; what is not given stays the request's default."""
    return [_option(name, field) for name, field in request.model_fields.items()]


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    shown = None if field.default is None or field.is_required() else str(field.default)
    flag = name.replace("_", "-")
    both = f"--{flag}/--no-{flag}" if _plain(field.annotation) is bool else f"--{flag}"
    names = [both, *([SHORT[name]] if name in SHORT else []), *ALIASES.get(name, [])]
    several = "; repeated, or a folder: each in turn" if name == EACH else ""
    option = typer.Option(*names, help=f"{field.description}{several}", show_default=shown or False)
    kind: Any = Annotated[Optional[list[str] if several else _plain(field.annotation)], option]  # noqa: UP045
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _plain(annotation: Any) -> Any:
    """The type that typer should read: without None, and the request's own validators after it."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) is list:
        return list[str]
    if annotation is Any:  # a picture, which the command line names by its path
        return str
    if get_origin(annotation) is tuple:
        return str
    kinds = [a for a in get_args(annotation) if a is not type(None)]
    return _plain(kinds[0]) if kinds else annotation


def given(request: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """The fields of the request that the user set; they are taken out of `values`."""
    found = {name: values.pop(name) for name in request.model_fields}
    return {name: value for name, value in found.items() if value not in (None, [], ())}


def command(request: type[Config], run: Callable[..., None], own: list[inspect.Parameter]) -> Callable[..., None]:
    """A function for typer whose parameters are `own` and the request's fields; it calls `run(fields, **own values)`."""

    def entry(**values: Any) -> None:
        run(given(request, values), **values)

    entry.__signature__ = inspect.Signature([*own, *options(request)])  # type: ignore[attr-defined]
    entry.__doc__ = request.__doc__
    return entry
