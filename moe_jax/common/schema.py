"""Records (dataclasses, named tuples) as JSON values and back, with errors that name the field.

    values = plain(record)                    # or to_json(config), with the config's system
    record = from_json(Kind, values)          # UserError "config.train.steps='3': must be int"

Tuples are lists and NumPy arrays nested lists. JSON has no NaN and no infinity: each format says
with `number` how it writes them (`finite_or_none`, `marked`, or an error).
"""

import contextlib
import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

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
    """A config dataclass as JSON values, with its `system` if it names one; floats as they are."""
    fields: dict[str, Json] = plain(config)
    if hasattr(config, "system"):
        fields = {"system": config.system} | fields
    return fields


def plain(
    value: Any,
    *,
    number: Callable[[float], Json] = lambda value: value,
    empty_shapes: bool = False,
) -> Json:
    """A value as JSON has it, at any depth: records and dicts as objects, arrays as nested lists.

    Args:
      value: records, dicts, lists, tuples, arrays, texts, numbers, None.
      number: how a float is written; by default as it is, NaN too.
      empty_shapes: an array without a number is {"empty": [0, 4]}, its shape; else a list.

    Raises:
      TypeError: something else is within.
    """

    def inner(value: Any) -> Json:
        if isinstance(value, float):
            return number(float(value))
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, np.generic):
            return inner(value.item())
        if isinstance(value, np.ndarray):
            is_empty = empty_shapes and not value.size
            return {"empty": list(value.shape)} if is_empty else inner(value.tolist())
        if (names := _field_names(type(value))) is not None:
            return {name: inner(getattr(value, name)) for name in names}
        if isinstance(value, Mapping):
            return {str(name): inner(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [inner(item) for item in value]
        raise TypeError(f"a {type(value).__name__} can't be stored as JSON")

    return inner(value)


def from_json(
    kind: type[Config], values: Json, path: str = "config", *, null_is_nan: bool = False
) -> Config:
    """The record `kind` from what `plain` or `to_json` gave, nested records and arrays included.

    A dataclass may have got fields since: those that have defaults may be missing.

    Args:
      kind: a dataclass or named tuple. Arrays are annotated as jaxtyping has it and come back as
        float64, int64 or bool.
      values: as JSON had them.
      path: what the dotted paths in messages begin with.
      null_is_nan: null stands for NaN where a float belongs; else it is wrong there.

    Raises:
      UserError: an unknown or missing field, or a value of another type; names its dotted path.
    """
    record: Config = _Reader(null_is_nan).record(kind, values, path)
    return record


def finite_or_none(value: float | int) -> float | int | None:
    """A number, or None (null) for NaN and infinities."""
    return value if math.isfinite(value) else None


def marked(value: float) -> Json:
    """A number; None for NaN, {"inf": 1} and {"inf": -1} for infinities: `unmarked` reads them."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else {"inf": 1 if value > 0 else -1}


def unmarked(value: Json) -> Json:
    """JSON values written with `marked`, with their numbers: every null is NaN."""
    if value in ({"inf": 1}, {"inf": -1}):
        return math.inf * value["inf"]
    if isinstance(value, dict):
        return {name: unmarked(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [unmarked(inner) for inner in value]
    return math.nan if value is None else value


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


def _field_names(kind: type) -> list[str] | None:
    """The fields of a dataclass or named tuple; None of any other type."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return list(kind._fields) if issubclass(kind, tuple) and hasattr(kind, "_fields") else None


def _has_default(kind: type, name: str) -> bool:
    """Whether a field of a dataclass may be left out; those of named tuples may not."""
    if not dataclasses.is_dataclass(kind):
        return False
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    empty = dataclasses.MISSING
    return field.default is not empty or field.default_factory is not empty


_DTYPES = {Bool: np.bool_, Float: np.float64, Int: np.int64}
_KINDS = {Bool: "b", Float: "fi", Int: "i"}  # of the arrays that stand for each


class _Reader:
    """JSON values as what a type hint says; a UserError names the dotted path of what isn't."""

    def __init__(self, null_is_nan: bool):
        self._null_is_nan = null_is_nan

    def record(self, kind: type, values: Json, path: str) -> Any:
        """A dataclass or named tuple."""
        if not isinstance(values, dict):
            raise UserError(f"{path}={shown(values)}: must be an object of fields")
        names, hints, given = _field_names(kind) or [], typing.get_type_hints(kind), dict(values)
        if "system" not in names and given.get("system") == getattr(kind, "system", None):
            given.pop("system", None)
        for name in given:
            if name not in names:
                raise UserError(f"{path}.{name}: {kind.__name__} has no such field")
        for name in names:
            if name not in given and not _has_default(kind, name):
                raise UserError(f"{path}.{name}: missing")
        built = {name: self.value(hints[name], given[name], f"{path}.{name}") for name in given}
        if not dataclasses.is_dataclass(kind):
            return kind(**built)
        late = {f.name: built.pop(f.name) for f in dataclasses.fields(kind) if not f.init}
        made = kind(**built)
        for name, value in late.items():
            setattr(made, name, value)
        return made

    def value(self, hint: Any, value: Json, path: str) -> Any:
        """Anything that a field may hold."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return self._one_of(arguments, value, path)
        if origin is typing.Literal:
            if value in arguments:
                return value
            names = ", ".join(map(repr, arguments))
            raise UserError(f"{path}={shown(value)}: must be one of {names}")
        elif origin in (tuple, list):
            if isinstance(value, list):
                return origin(self._items(arguments, value, path))
        elif origin is dict:
            if isinstance(value, dict):
                inner = arguments[1]
                return {key: self.value(inner, v, f"{path}.{key}") for key, v in value.items()}
        elif getattr(hint, "dtype", None) in _DTYPES:
            return self._array(hint, value, path)
        elif isinstance(hint, type) and _field_names(hint) is not None:
            return self.record(hint, value, path)
        elif hint is float:
            return self._float(value, path)
        elif hint is int and type(value) is int and not -_MOST <= value <= _MOST:
            raise UserError(
                f"{path}={shown(value)}: must be at most {_MOST}, and at least -{_MOST}"
            )
        elif hint is Any or type(value) is hint or (value is None and hint is type(None)):
            return value
        raise UserError(f"{path}={shown(value)}: must be {getattr(hint, '__name__', hint)}")

    def _float(self, value: Json, path: str) -> float:
        if value is None and self._null_is_nan:
            return math.nan
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):
                return float(value)
        raise UserError(f"{path}={shown(value)}: must be float")

    def _items(self, arguments: tuple[Any, ...], values: list[Json], path: str) -> list[Any]:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = arguments[:1]
        hints = arguments * len(values) if len(arguments) == 1 else arguments
        if len(hints) != len(values):
            raise UserError(f"{path}={shown(values)}: must have {len(hints)} values")
        return [
            self.value(hint, value, f"{path}[{i}]")
            for i, (hint, value) in enumerate(zip(hints, values, strict=True))
        ]

    def _one_of(self, hints: tuple[Any, ...], value: Json, path: str) -> Any:
        if value is None and type(None) in hints:
            return None
        errors = []
        for hint in hints:
            try:
                return self.value(hint, value, path)
            except UserError as error:
                errors.append(error)
        raise errors[0]

    def _array(self, hint: Any, value: Json, path: str) -> np.ndarray:
        """An array; one without a number keeps its shape only if it was stored as its shape."""
        dtype, kinds = _DTYPES[hint.dtype], _KINDS[hint.dtype]
        with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
            if isinstance(value, dict) and 0 in value["empty"]:
                return np.zeros(value["empty"], dtype)
            array = np.array(value)
            if array.dtype.kind == "O" and self._null_is_nan and dtype is np.float64:
                filled = [math.nan if x is None else x for x in array.flat]
                array = np.array(filled).reshape(array.shape)
            if isinstance(value, list) and not array.size:
                return array.astype(dtype)
            if array.dtype.kind in kinds and isinstance(array := array.astype(dtype), hint):
                return array
        raise UserError(f"{path}={shown(value)}: must be an array {hint.__name__}")
