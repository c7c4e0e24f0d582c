"""Dataclasses as JSON values and back, with errors that name the field."""

import contextlib
import dataclasses
import inspect
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

from moe_jax.common.files import shown
from moe_jax.errors import UserError

Config = TypeVar("Config")
Json = Any


@dataclasses.dataclass(frozen=True)
class FlagText:
    r"""How a field is written on a command line: `Annotated[str, FlagText("DIR", path=True)]`.

    Attributes:
      value: what stands for the value in help and errors, such as DIR in --workdir=DIR.
      path: the value is a file or folder of this machine: "~" is the home, addresses are refused.
      escapes: \n and \t in the value stand for a line break and a tab.
    """

    value: str
    path: bool = False
    escapes: bool = False


Folder = Annotated[Path, FlagText("DIR", path=True)]
File = Annotated[Path, FlagText("FILE", path=True)]
FolderName = Annotated[str, FlagText("DIR", path=True)]
FileName = Annotated[str, FlagText("FILE", path=True)]
EscapedText = Annotated[str, FlagText("TEXT", escapes=True)]


def field_help(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each field, under `Attributes:`.

    A field's text is on one line, without its full stop; fields that no docstring names are left
    out. "a, b: text" is of both.
    """
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        doc = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = re.search(r"^Attributes:\n((?:[ ].*(?:\n|$)|\n)*)", doc, re.MULTILINE)
        if section is None:
            continue
        entries = inspect.cleandoc("\n" + section[1])
        for names, text in re.findall(r"^(\w+(?:, \w+)*): (.*(?:\n[ ].*)*)", entries, re.MULTILINE):
            for name in names.split(", "):
                texts[name] = " ".join(text.split()).removesuffix(".")
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: texts[name] for name in names if name in texts}


def to_json(config: Any) -> dict[str, Json]:
    """A config dataclass as JSON values, with its `system` if it names one."""
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    if hasattr(config, "system"):
        fields = {"system": config.system} | fields
    return fields


def from_json(kind: type[Config], values: Json, path: str = "config") -> Config:
    """The dataclass `kind` from what `to_json` gave, nested dataclasses included.

    Raises:
      UserError: an unknown or missing field, or a value of another type; names its dotted path.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path}={shown(values)}: must be an object of fields")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    given = dict(values)
    if "system" not in fields and given.get("system") == getattr(kind, "system", None):
        given.pop("system", None)
    for name in given:
        if name not in fields:
            raise UserError(f"{path}.{name}: {kind.__name__} has no such field")
    for name in fields:
        if name not in given:
            raise UserError(f"{path}.{name}: missing")
    built = {name: _value(hints[name], given[name], f"{path}.{name}") for name in given}
    late = {name: built.pop(name) for name in list(built) if not fields[name].init}
    config = kind(**built)
    for name, value in late.items():
        setattr(config, name, value)
    return config


def finite_or_none(value: float | int) -> float | int | None:
    """JSON has no NaN and no infinity: null stands for them."""
    return value if math.isfinite(value) else None


def first_difference(
    theirs: Json, ours: Json, path: str = "", may_differ: tuple[str, ...] = ()
) -> tuple[str, str, str] | None:
    """(dotted path, theirs, ours) of the first value that differs but may not, or None."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            inner = f"{path}.{name}" if path else name
            if inner in may_differ:
                continue
            found = first_difference(
                theirs.get(name, _NONE), ours.get(name, _NONE), inner, may_differ
            )
            if found is not None:
                return found
        return None
    same = theirs == ours and isinstance(theirs, bool) == isinstance(ours, bool)
    return None if same else (path, _show(theirs), _show(ours))


_NONE = object()
_MOST = 2**63 - 1  # of a whole number: no field has a use for more


def _show(value: Any) -> str:
    return "nothing" if value is _NONE else repr(value)


def _value(hint: Any, value: Json, path: str) -> Any:
    """`value` as the type `hint`, or a UserError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value, path)
    if origin is typing.Literal:
        if value in arguments:
            return value
    elif origin in (tuple, list):
        if isinstance(value, list):
            return origin(_items(arguments, value, path))
    elif origin is dict:
        if isinstance(value, dict):
            return {key: _value(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, path)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    elif hint is int and type(value) is int and not -_MOST <= value <= _MOST:
        raise UserError(f"{path}={shown(value)}: must be at most {_MOST}, and at least -{_MOST}")
    elif hint is Any or type(value) is hint or (value is None and hint is type(None)):
        return value
    raise UserError(f"{path}={shown(value)}: must be {getattr(hint, '__name__', hint)}")


def _items(arguments: tuple[Any, ...], values: list[Json], path: str) -> list[Any]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = arguments[:1]
    hints = arguments * len(values) if len(arguments) == 1 else arguments
    if len(hints) != len(values):
        raise UserError(f"{path}={shown(values)}: must have {len(hints)} values")
    return [
        _value(hint, value, f"{path}[{i}]")
        for i, (hint, value) in enumerate(zip(hints, values, strict=True))
    ]


def _one_of(hints: tuple[Any, ...], value: Json, path: str) -> Any:
    errors = []
    for hint in hints:
        try:
            return _value(hint, value, path)
        except UserError as error:
            errors.append(error)
    raise errors[0]
