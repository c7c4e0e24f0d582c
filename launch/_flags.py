r"""Flags from the fields of a dataclass: one mechanism for all scripts.

A field's type makes its flag: a whole number, a number, a truth value (--name, --noname, also
--name=true), one of several words (`Literal`), texts or numbers with commas between (`tuple`), a
path (`common.schema.Folder`, `File`) or a text; `bool | int` is a flag that may stand alone or have
a number. The field's default is the flag's, and a field without one is a flag that must be given.
Help comes from the `Attributes:` of the docstring. --flagfile=FILE reads flags from a file, one a
line. A flag with an empty value counts as not given.
"""

import contextlib
import dataclasses
import difflib
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from absl import flags

from moe_jax.common import FlagText, field_help
from moe_jax.common.files import local
from moe_jax.errors import UserError

Flags = TypeVar("Flags")

HELP = ("-h", "--help", "-help", "--helpshort", "--helpfull")
COMMON = (
    ("--flagfile=FILE", "read flags from a file, one --name=value a line"),
    ("--help", "this text"),
)


class Kind(NamedTuple):
    """How a field's type is written, read and refused.

    Attributes:
      value: what stands for a value: N, DIR, "a|b"; "" for a truth value.
      read: the value of a text; ValueError: it is none.
      must: what it must be, for that error.
      alone: the flag may stand without a value.
      path: what becomes of the name of a file or folder: Path or str; None: it is none.
    """

    value: str
    read: Callable[[str], Any]
    must: str = ""
    alone: bool = False
    path: type[Path] | type[str] | None = None


def parse(argv: Sequence[str], kind: type[Flags], doc: str | None = None) -> Flags:
    """The dataclass `kind` with the flags that `argv` gives, checked by its `validate`, if any.

    If only help makes sense (--help, or no flag at all), `doc` and the flags are printed instead.

    Raises:
      SystemExit: help was printed.
      UserError: an unknown or missing flag, an argument that is no flag, a value of another type,
        or a path that is not one of this machine.
    """
    argv = with_flagfiles(argv)
    if wants_help(argv):
        print_help(doc, flag_lines(kind))
        raise SystemExit(0)
    return read_flags(argv, kind, flags.FlagValues())


def read_flags(argv: Sequence[str], kind: type[Flags], values: flags.FlagValues) -> Flags:
    """`parse` without help and flag files; `values` may have further flags, which it sets."""
    kinds = {name: kind_of(hint) for name, hint in _hints(kind).items()}
    for name, each in kinds.items():
        flag = flags.Flag(_Parser(each), None, name, None, "", boolean=each.alone)
        flags.DEFINE_flag(flag, values)
    with flag_errors(list(values)):
        left = values(_joined(argv, [name for name, each in kinds.items() if each.alone]))
    if len(left) > 1:
        raise UserError(f"{left[1]!r}: not a flag; flags are written --name=value")
    given = {name: values[name].value for name in kinds if values[name].value is not None}
    for name, each in kinds.items():
        if each.path is not None and name in given:
            given[name] = each.path(local(str(given[name]), f"--{name}"))
    for name in _needed(kind):
        if name not in given:
            text = field_help(kind).get(name, "it must be given")
            raise UserError(f"--{name}={kinds[name].value} is missing: {text}")
    built = kind(**given)
    if hasattr(built, "validate"):
        built.validate()
    return built


def wants_help(argv: Sequence[str]) -> bool:
    """Is the only sensible answer the help text?"""
    return len(argv) < 2 or any(arg in HELP for arg in argv[1:])


def with_flagfiles(argv: Sequence[str]) -> list[str]:
    """`argv` with the lines of the files that --flagfile names in their place.

    Raises:
      UserError: a file can't be read.
    """
    try:
        return [*argv[:1], *flags.FlagValues().read_flags_from_files(list(argv[1:]))]
    except flags.Error as error:
        # "ERROR:: Unable to open flagfile: [Errno 2] No such file ...: 'NAME'"
        text = re.sub(r"^ERROR:.*\[Errno \d+\]", "--flagfile:", str(error))
        raise UserError(text) from None
    except (OSError, UnicodeError) as error:
        raise UserError(f"--flagfile can't be read: {error}") from None


def flag_lines(kind: type) -> list[tuple[str, str]]:
    """(flag, help with the default) of each field, those that must be given first."""
    help_of, hints, needed = field_help(kind), _hints(kind), _needed(kind)
    lines = []
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in needed):
        if field.name in hints:
            default = "" if field.name in needed else _shown(_default(field))
            text = help_of.get(field.name, "") + (f" (default {default})" if default else "")
            lines.append((_written(field.name, kind_of(hints[field.name])), text.strip()))
    return lines


def print_help(
    doc: str | None,
    lines: Sequence[tuple[str, str]],
    common: Sequence[tuple[str, str]] = COMMON,
) -> None:
    """The script's text and its flags as one block."""
    print(f"{(doc or '').strip()}\n\nFlags:")
    print_block([*lines, *common])


def print_block(lines: Sequence[tuple[str, str]]) -> None:
    """Names and their texts in two columns."""
    column = min(max(len(name) for name, _ in lines), 28) + 4
    wide = max(60, min(shutil.get_terminal_size((100, 24)).columns, 100))
    for name, text in lines:
        head = f"  {name}".ljust(column)
        if len(head) > column or not head.endswith("  "):
            print(head.rstrip())
            head = " " * column
        indent = " " * column
        print(textwrap.fill(text, wide, initial_indent=head, subsequent_indent=indent) or head)


def did_you_mean(given: str, known: Sequence[str], prefix: str = "") -> str:
    """The nearest known name; a path's last part counts too, if it was given without the rest."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.4)
    last = {path.rsplit(".", 1)[-1]: path for path in known}
    tails = difflib.get_close_matches(given.rsplit(".", 1)[-1], last, n=1, cutoff=0.8)
    found = last[tails[0]] if tails else (close[0] if close else None)
    return f"; did you mean {prefix}{found}?" if found else ""


@contextlib.contextmanager
def flag_errors(names: Sequence[str]) -> Iterator[None]:
    """Absl and ml_collections name the flag and the value: keep that, drop the traceback."""
    try:
        yield
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, names, "--")
        raise UserError(f"--{error.flagname}: no such flag{hint}") from None
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        text = str(error.args[0] if error.args else error)
        raise UserError(text.removeprefix("flag ")) from error


def kind_of(hint: Any) -> Kind:
    """How a field of this type is a flag.

    Raises:
      TypeError: no flag can be of this type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [argument for argument in arguments if argument is not type(None)]
        if set(kinds) == {bool, int}:
            return Kind("N", _truth_or_whole, "a whole number", alone=True)
        if len(kinds) == 1:
            return kind_of(kinds[0])
    elif origin is Annotated:
        return _annotated(kind_of(arguments[0]), hint.__metadata__)
    elif origin is typing.Literal:
        return Kind("|".join(arguments), _word(arguments), f"one of {', '.join(arguments)}")
    elif origin is tuple and arguments[1:] == (Ellipsis,):
        inner = kind_of(arguments[0])
        must = "numbers with commas between, such as -1,0,1" if arguments[0] in (int, float) else ""
        return Kind(f"{inner.value},...", _several(inner.read), must)
    elif hint in _PLAIN:
        return _PLAIN[hint]
    raise TypeError(f"{hint}: no flag can be of this type")


class _Parser(flags.ArgumentParser):
    """A `Kind` as absl has it; None for the empty text, which counts as not given."""

    def __init__(self, kind: Kind):
        self._kind = kind

    def parse(self, argument: str) -> Any:
        """The value, or a ValueError, which absl has begin with the flag."""
        try:
            return self._kind.read(argument) if argument else None
        except (ValueError, TypeError):
            raise ValueError(f"must be {self._kind.must}") from None


def _annotated(kind: Kind, metadata: Sequence[Any]) -> Kind:
    for text in metadata:
        if isinstance(text, FlagText):
            kind = kind._replace(value=text.value)
            if text.path and kind.path is None:
                kind = kind._replace(path=str)
            if text.escapes:
                kind = kind._replace(read=_unescaped)
    return kind


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _truth_or_whole(text: str) -> bool | int:
    words = {"true": True, "false": False}
    return words[text.lower()] if text.lower() in words else flags.IntegerParser().parse(text)


def _word(words: Sequence[str]) -> Callable[[str], str]:
    return flags.EnumParser(words).parse


def _several(read: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(read(part.strip()) for part in text.split(","))


_PLAIN: dict[Any, Kind] = {
    bool: Kind("", flags.BooleanParser().parse, "true or false", alone=True),
    int: Kind("N", flags.IntegerParser().parse, "a whole number"),
    float: Kind("X", flags.FloatParser().parse, "a number"),
    str: Kind("TEXT", str),
    Path: Kind("PATH", str, path=Path),
}


def _hints(kind: type) -> dict[str, Any]:
    """The types of the fields that are flags, by name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}


def _needed(kind: type) -> list[str]:
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return [f.name for f in fields if f.init and f.default is f.default_factory is missing]


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _shown(value: Any) -> str:
    """A default as one would write it; "" for one that says nothing."""
    if value is None or value is False or value == "":
        return ""
    if value is True:
        return "true"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).replace("\n", "\\n").replace("\t", "\\t")


def _written(name: str, kind: Kind) -> str:
    if not kind.alone:
        return f"--{name}={kind.value}"
    return f"--{name}[={kind.value}]" if kind.value else f"--[no]{name}"


def _joined(argv: Sequence[str], alone: Sequence[str]) -> list[str]:
    """`argv` with "--chat true" as "--chat=true": absl takes no value apart for such a flag."""
    joined: list[str] = []
    for arg in argv:
        before = joined[-1].lstrip("-") if joined and joined[-1].startswith("-") else ""
        if before in alone and arg.lower() in ("true", "false"):
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined
