"""Flags as texts, for the two scripts that don't take theirs from dataclasses yet."""

import contextlib
from collections.abc import Mapping, Sequence

from absl import flags

from launch._cli import print_figures, print_files, run
from launch._flags import wants_help
from moe_jax.common.files import local
from moe_jax.errors import UserError

__all__ = ["print_figures", "print_files", "run", "wants_help"]


def parse(
    argv: Sequence[str],
    names: Mapping[str, str],
    defaults: Mapping[str, str] | None = None,
    paths: Sequence[str] = (),
) -> dict[str, str]:
    """The values of plain flags (name -> help) that must be given, and of those with defaults.

    Those named in `paths` are files or folders: "~" is expanded.

    Raises:
      UserError: an unknown, missing or empty flag, an argument that is no flag, or a path that is
        not one of this machine.
    """
    values, defaults = flags.FlagValues(), dict(defaults or {})
    _define(values, dict(names) | dict.fromkeys(defaults, ""))
    given = _parsed(argv, values, names)
    given |= {n: str(values[n].value or default) for n, default in defaults.items()}
    return _with_paths(given, paths)


def whole_number(name: str, text: str) -> int:
    """The value of a plain flag as a whole number.

    Raises:
      UserError: it is none.
    """
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--{name}={text}: must be a whole number") from None


def yes_or_no(name: str, text: str) -> bool:
    """The value of a plain flag as a truth value.

    Raises:
      UserError: it is none.
    """
    known = {"true": True, "false": False}
    if text.lower() not in known:
        raise UserError(f"--{name}={text}: must be true or false")
    return known[text.lower()]


def chat_flags(given: Mapping[str, str]) -> tuple[bool, str]:
    """The values of --chat and --system.

    Raises:
      UserError: --chat is no truth value, or there is no chat for --system to be in.
    """
    chat = yes_or_no("chat", given["chat"])
    if given["system"] and not chat:
        raise UserError("--system without --chat=true: only a chat has a system message")
    return chat, given["system"]


def print_help(text: str, argv: Sequence[str]) -> None:
    """The script's own text."""
    del argv
    print(text.strip())


def _with_paths(given: dict[str, str], paths: Sequence[str]) -> dict[str, str]:
    """The values with those of `paths`, where given, as paths of this machine."""
    return given | {name: local(given[name], f"--{name}") for name in paths if given[name]}


def _define(values: flags.FlagValues, names: Mapping[str, str]) -> None:
    for name, text in names.items():
        flags.DEFINE_string(name, None, text, flag_values=values)


def _parsed(
    argv: Sequence[str], values: flags.FlagValues, names: Mapping[str, str]
) -> dict[str, str]:
    with _flag_errors():
        left = values(list(argv))
    if len(left) > 1:
        raise UserError(f"{left[1]!r}: not a flag; flags are written --name=value")
    for name, text in names.items():
        if not values[name].value:
            raise UserError(f"--{name}={name[-3:].upper()} is missing: {text}")
    return {name: str(values[name].value) for name in names}


@contextlib.contextmanager
def _flag_errors():
    """Absl and ml_collections name the flag and the value: keep that, drop the traceback."""
    try:
        yield
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(str(error.args[0] if error.args else error)) from error
