"""The folder of a run: its lock, its config.json, and files that appear whole or not at all."""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import threading
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from moe_jax.common.json_files import read_object, shown
from moe_jax.errors import UserError

Config = TypeVar("Config")
MAY_DIFFER = ("train.mesh",)
"""Fields that an interrupted run may go on with other values of."""
Json = Any


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


def claim(workdir: Path, config: Any) -> bool:
    """Make `workdir` the folder of this config: write config.json, or check that it is the same.

    Returns:
      Whether it is a new run, and config.json was written now.

    Raises:
      UserError: the folder holds another run (names the first field that differs), or it can't
        be made.
    """
    mine = to_json(config)
    target, new = workdir / "config.json", False
    with file_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            draft = _draft(target, json.dumps(mine, indent=2) + "\n")
            # A link fails if the name is taken, so of two runs that start at once only one wins.
            with contextlib.suppress(FileExistsError):
                os.link(draft, target)
                new = True
            draft.unlink()
    check_same(workdir, load(workdir), mine)
    return new


@contextlib.contextmanager
def claimed(workdir: Path, config: Any) -> Iterator[None]:
    """`claim`; and if a new run fails with a UserError before it wrote anything, take it back.

    So that a corpus that can't be read does not leave a folder that refuses the corrected command.
    """
    existed = workdir.exists()
    new = claim(workdir, config)
    try:
        yield
    except UserError:
        ours = {"config.json", ".lock"}
        if new and {path.name for path in workdir.iterdir()} <= ours:
            for name in ours:
                (workdir / name).unlink(missing_ok=True)
            if not existed:
                workdir.rmdir()
        raise


def check_same(workdir: Path, theirs: Json, ours: Json, path: str = "") -> None:
    """A UserError that names the first field in which the run in `workdir` differs from this."""
    difference = first_difference(theirs, ours, path)
    if difference is not None:
        name, their, our = difference
        raise UserError(
            f"workdir {workdir} holds a run with {name}={their}, not {our}: "
            "give the same value, or another folder"
        )


def load(workdir: Path) -> dict[str, Json]:
    """The fields of config.json.

    Raises:
      UserError: there is none, or it is not a JSON object.
    """
    missing = f"workdir {workdir}: no config.json, so no run was started here"
    return read_object(workdir / "config.json", missing=missing)


def first_difference(
    theirs: Json, ours: Json, path: str = "", may_differ: tuple[str, ...] = MAY_DIFFER
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


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Hold the folder against a second training run; a killed run holds nothing.

    Raises:
      UserError: another process trains here now.
    """
    with file_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        handle = (workdir / ".lock").open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"workdir {workdir}: another process is training here; wait for it or stop it"
            ) from None
        yield


def write_atomically(target: Path, text: str) -> None:
    """Replace the file, or leave it as it was: never a half of it."""
    with file_errors(target):
        os.replace(_draft(target, text), target)


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one clear line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror or error}") from error


def finite_or_none(value: float | int) -> float | int | None:
    """JSON has no NaN and no infinity: null stands for them."""
    return value if math.isfinite(value) else None


def _draft(target: Path, text: str) -> Path:
    draft = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return draft


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
