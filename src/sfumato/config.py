"""Configs: frozen pydantic models. A `Choice` is one of several kinds, and its `kind` is the name of the file it lives in.

`kind: unet` in a recipe reads `sfumato/backbones/unet.py`, which defines one subclass of the family's `Choice`. Nothing
is registered: the directory is the registry, so an unknown kind can list the known ones without importing any.
A dotted kind (`my_lab.nets.mamba`) reads a module of the user's own. Foreign code runs when it is imported, so model
folders are read inside `trusting(False)`, where a dotted kind is refused.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

_trust: ContextVar[bool] = ContextVar("trust", default=True)
_all: ContextVar[bool] = ContextVar("all", default=False)  # whether the user trusts every folder of this command


@contextmanager
def trusting(allowed: bool) -> Iterator[None]:
    """Within this context dotted kinds are imported (True) or refused (False)."""
    token = _trust.set(allowed or _all.get())
    try:
        yield
    finally:
        _trust.reset(token)


@contextmanager
def trusting_all() -> Iterator[None]:
    """Within this context dotted kinds of model folders are imported, as the command's `--trust` asks."""
    token = _all.set(True)
    try:
        yield
    finally:
        _all.reset(token)


class Config(BaseModel):
    """A frozen set of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _no_truths(cls, value: Any) -> Any:
        """Refuse `true` for a number, which pydantic reads as 1: `flip: true` would mirror every picture."""
        for name, given in value.items() if isinstance(value, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(given, bool) and field is not None and numeric(field.annotation):
                or_none = " or null" if NoneType in _kinds(field.annotation) else ""
                raise ValueError(f"{name} is a number, and {str(given).lower()} is none; give a number{or_none}")
        return value


def numeric(annotation: Any) -> bool:
    """Whether a field takes numbers, and neither truths nor words such as `off`, which YAML reads as truths."""
    kinds = _kinds(annotation)
    return (
        bool(kinds & {int, float})
        and not kinds & {bool, str, Any}
        and not kinds & {"on", "off", "yes", "no", True, False}
    )


def _kinds(annotation: Any) -> set[Any]:
    """The types in an annotation, and the values of its literals."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for one in get_args(annotation) for kind in _kinds(one)}
    return {annotation}


def known(family: type["Choice"]) -> list[str]:
    """Names of the kinds of a family: the files of its package that subclass it, found without importing them."""
    package = importlib.import_module(family.home)
    heir = re.compile(rf"^class \w+\({family.__name__}\):", re.MULTILINE)
    files = [Path(package.__path__[0], f"{m.name}.py") for m in pkgutil.iter_modules(package.__path__)]
    return sorted(f.stem for f in files if f.is_file() and heir.search(f.read_text(encoding="utf-8")))


class Choice(Config):
    """One of several kinds. A family subclasses it with `home`, its package; each kind file holds one further subclass.

    `paths` is what to say to whom gives a path in place of a kind, {} being the path.
    """

    home: ClassVar[str] = ""
    paths: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _choose(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if "home" not in vars(cls) or isinstance(value, cls):
            return handler(value)
        if isinstance(value, str):  # `codec: kl` is short for `codec: {kind: kl}`
            value = {"kind": value}
        if not isinstance(value, dict):
            raise ValueError(f"expected a mapping with a `kind`, one of {', '.join(known(cls))}; got {value!r}")
        kind = value.get("kind")
        chosen = cls.of(kind if isinstance(kind, str) else "")
        return chosen.model_validate({k: v for k, v in value.items() if k != "kind"})

    @classmethod
    def of(cls, kind: str) -> type[Self]:
        """The subclass that `kind` names. Raises `ValueError` with the known kinds."""
        relative = not all(kind.split(".")) or bool({"/", "\\", "~"} & set(kind))
        if relative or ("." not in kind and kind not in known(cls)):
            remedy = cls.paths.format(kind) if {".", "/", "\\", "~"} & set(kind) else ""
            raise ValueError(f"unknown kind {kind!r}; known kinds: {', '.join(known(cls))}{remedy}")
        if "." in kind and not _trust.get():
            raise ValueError(
                f"kind {kind!r} would run foreign code; if you trust its author load it with trust=True, or --trust on the command line"
            )
        path = kind if "." in kind else f"{cls.home}.{kind}"
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or not path.startswith(error.name):
                raise
            more = "; to import one of this folder set PYTHONPATH=." if "." in kind else ""
            raise ValueError(f"kind {kind!r}: there is no module {path}{more}") from None
        found = [
            c for c in vars(module).values() if isinstance(c, type) and issubclass(c, cls) and c.__module__ == path
        ]
        if len(found) != 1:
            raise ValueError(f"kind {kind!r}: {path} must define exactly one {cls.__name__}, it defines {len(found)}")
        return found[0]

    @model_serializer(mode="plain")
    def _tell(self) -> dict[str, Any]:
        # not by the handler: where a field is declared as the family, that knows only the family's own fields
        return {"kind": self.kind_name(), **{name: getattr(self, name) for name in type(self).model_fields}}

    @classmethod
    def kind_name(cls) -> str:
        """The kind as a recipe writes it: the module's name, without the family's package."""
        home = next((vars(c)["home"] for c in cls.__mro__ if vars(c).get("home")), "")
        return cls.__module__.removeprefix(f"{home}.")


def explain(error: ValidationError, name: str, skip: int = 0) -> str:
    """One line a fault: where it stands, what is wrong, and the keys that are known there. The first `skip` names of a place
    are of the validation and not of the user's keys."""
    lines = []
    for fault in error.errors():
        place = ".".join(map(str, fault["loc"][skip:]))
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            text = "unknown key"
        elif fault["type"] == "missing":
            text = "is missing"
        else:
            text += f" (got {str(fault['input'])[:60]!r})" if fault["type"] != "value_error" else ""
        lines.append(": ".join(part for part in (name, place, text) if part))
    return "\n".join(lines)
