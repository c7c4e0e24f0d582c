"""What the launch scripts share: flags, one-line errors, exit codes, the table at the end."""

import contextlib
import dataclasses
import difflib
import importlib.util
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from moe_jax.common.files import local, local_path
from moe_jax.common.interrupt import Interrupted
from moe_jax.common.schema import from_json, to_json
from moe_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(=.*)?$", re.DOTALL)


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Call `main(argv)` and give the exit status.

    0 done; 2 a mistake that the user can mend, told in one line on stderr; 130 after Ctrl-C, 143
    after SIGTERM, 141 if nobody reads the output any more. Any other exception is a fault of the
    program and keeps its traceback.
    """
    warnings.showwarning = _show_warning
    try:
        _check_characters(argv)
        main(argv)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"{error}; the same command goes on from there", file=sys.stderr)
        return 128 + error.signum
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader has gone (`| head`); what Python still holds for it must not be flushed there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


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


def parse_with_config(
    argv: Sequence[str],
    names: Mapping[str, str],
    optional: Sequence[str] = (),
    bare: Mapping[str, str] | None = None,
    paths: Sequence[str] = (),
) -> tuple[Any, dict[str, str]]:
    """The config that --config=FILE names, with every --config.FIELD=VALUE set and checked.

    The file is Python with a function `get_config()` that returns a dataclass; --config=FILE:TEXT
    calls `get_config(TEXT)`. Also gives the values of the plain flags `names`, as `parse` does, and
    of the `optional` ones ("" where not given), of which `bare` are those that may stand without a
    value, and what they are then, and `paths` files or folders.

    Raises:
      UserError: no such file or field, a value of another type, or a config that is not valid.
    """
    alone = {
        f"{dash}{name}": f"--{name}={value}"
        for name, value in (bare or {}).items()
        for dash in ("--", "-")
    }
    where, rest = _take_config([alone.get(arg, arg) for arg in argv])
    if where is None:
        raise UserError(f"--config=FILE is missing: a file of configs/, such as {_examples()}")
    config = load_config_file(where)
    _check_fields(rest, config)
    values = flags.FlagValues()
    _define(values, dict(names) | dict.fromkeys(optional, ""))
    with _flag_errors():
        # The flags of the fields are made from the fields that argv names, so it goes in here too.
        config_flags.DEFINE_config_dataclass(
            "config", config, flag_values=values, sys_argv=list(rest)
        )
    plain = _parsed(rest, values, names)
    plain |= {name: str(values[name].value or "") for name in optional}
    set_up: Any = values["config"].value
    # Types the flags don't look at (items of tuples), and what a config file itself got wrong.
    from_json(type(set_up), to_json(set_up), path="--config")
    set_up.validate()
    return set_up, _with_paths(plain, paths)


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


def load_config_file(where: str) -> Any:
    """What `get_config()` of the Python file returns; `FILE:TEXT` passes it the text.

    Raises:
      UserError: there is no such file, or it does not define a config.
    """
    name, colon, argument = where.partition(":")
    path = local_path(name, "--config")
    if not path.is_file():
        known = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "configs").glob("*.py"))]
        raise UserError(f"--config={name}: no such file{_did_you_mean(name, known)}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={name}: must be a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--config={name}: line {error.lineno}: {error.msg}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={name}: must define get_config()")
    config = module.get_config(argument) if colon else module.get_config()
    missing = [part for part in ("train", "validate", "make_task") if not hasattr(config, part)]
    if not dataclasses.is_dataclass(config) or missing:
        raise UserError(
            f"--config={name}: get_config() must return a dataclass with train, validate() "
            f"and make_task(), not {type(config).__name__}"
        )
    return config


def wants_help(argv: Sequence[str]) -> bool:
    """Is the only sensible answer the help text?"""
    return len(argv) < 2 or any(arg in ("-h", "--help", "-help", "--helpfull") for arg in argv[1:])


def print_help(text: str, argv: Sequence[str]) -> None:
    """The script's own text, and the fields of the config if one is named."""
    print(text.strip())
    where, _ = _take_config(argv)
    if where is not None:
        config = load_config_file(where)
        print(f"\nFields of {where} and their values:")
        for path in field_paths(config):
            print(f"  --config.{path}={_get(config, path)}")


def field_paths(config: Any, prefix: str = "") -> list[str]:
    """Dotted paths of the fields of nested dataclasses, groups left out."""
    paths = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            paths += field_paths(value, f"{prefix}{field.name}.")
        else:
            paths.append(prefix + field.name)
    return paths


def print_figures(title: str, figures: Mapping[str, float | None]) -> None:
    """The title and a table of the figures, on stdout."""
    from rich.console import Console
    from rich.table import Table

    print(title)
    if not figures:
        return
    table = Table()
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, "-" if value is None else f"{value:.4g}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    console.print(table)


def print_files(workdir: Path) -> None:
    """What is in the run's folder."""
    for path in sorted(workdir.iterdir()):
        if not path.name.startswith("."):
            print(f"{path}/" if path.is_dir() else path)


def _check_characters(argv: Sequence[str]) -> None:
    """A UserError for bytes that aren't UTF-8: nothing that names them could be written."""
    for arg in argv[1:]:
        if any("\ud800" <= char <= "\udfff" for char in arg):
            raise UserError(f"{arg!r}: holds bytes that are not UTF-8; write it in UTF-8")


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


def _take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """(value of --config, argv without it)."""
    where, rest, following = None, [], False
    for arg in argv:
        if following:
            where, following = arg, False
        elif arg in ("--config", "-config"):
            following = True
        elif re.match("--?config=", arg):
            where = arg.split("=", 1)[1]
        else:
            rest.append(arg)
    return where or None, rest


def _check_fields(argv: Sequence[str], config: Any) -> None:
    known = field_paths(config)
    for arg in argv[1:]:
        match = _OVERRIDE.match(arg)
        if match is None or match[1] in known:
            continue
        inside = [path for path in known if path.startswith(match[1] + ".")]
        if inside:
            raise UserError(
                f"--config.{match[1]}: a group of fields; set one, such as --config.{inside[0]}"
            )
        hint = _did_you_mean(match[1], known, "--config.")
        raise UserError(f"--config.{match[1]}: no such field{hint}")


def _did_you_mean(given: str, known: Sequence[str], prefix: str = "") -> str:
    """The nearest known name; a path's last part counts too, if it was given without the rest."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.0)
    last = {path.rsplit(".", 1)[-1]: path for path in known}
    tails = difflib.get_close_matches(given.rsplit(".", 1)[-1], last, n=1, cutoff=0.8)
    found = last[tails[0]] if tails else (close[0] if close else None)
    return f"; did you mean {prefix}{found}?" if found else ""


def _examples() -> str:
    names = [f"configs/{path.name}" for path in sorted((ROOT / "configs").glob("*.py"))]
    return ", ".join(names[:5]) or "configs/NAME.py"


def _get(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """One line without the source, as for errors."""
    del filename, lineno, line
    name = "" if category is UserWarning else f" ({category.__name__})"
    print(f"warning: {message}{name}", file=file or sys.stderr)
