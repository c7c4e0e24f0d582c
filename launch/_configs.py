"""--config=FILE and --config.FIELD=VALUE: a config file, with fields changed by flags."""

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from launch import _flags
from moe_jax.common import field_help, from_json, local_path, to_json
from moe_jax.errors import UserError

Flags = TypeVar("Flags")

ROOT = Path(__file__).resolve().parents[1]
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(=.*)?$", re.DOTALL)
_FIRST = (
    (
        "--config=FILE",
        "the experiment, one file of configs/ (the text at its top says what it is); FILE:TEXT "
        "calls its get_config(TEXT)",
    ),
    ("--config.FIELD=VALUE", "change a field, such as --config.train.steps=100"),
)


_LAST = (
    _flags.COMMON[0],
    ("--help", "this text; with --config=FILE also its fields (--helpfull: and what they are)"),
)


def parse_with_config(
    argv: Sequence[str], kind: type[Flags], doc: str | None = None
) -> tuple[Any, Flags]:
    """The config that --config=FILE names, with every --config.FIELD=VALUE set and checked.

    The file is Python with a function `get_config()` that returns a dataclass; --config=FILE:TEXT
    calls `get_config(TEXT)`. Also gives the script's own flags, as `parse` does. Help lists the
    fields, too, if a file is named; with --helpfull it says what they are.

    Raises:
      SystemExit: help was printed.
      UserError: as `parse`; no such file or field, or a config that is not valid.
    """
    argv = _flags.with_flagfiles(argv)
    where, rest = _take_config(argv)
    if _flags.wants_help(argv):
        _flags.print_help(doc, [*_FIRST, *_flags.flag_lines(kind)], _LAST)
        if where is not None:
            _print_fields(where, full="--helpfull" in argv)
        raise SystemExit(0)
    if where is None:
        raise UserError(f"--config=FILE is missing: a file of configs/, such as {_examples()}")
    config = load_config_file(where)
    _check_fields(rest, config)

    from ml_collections import config_flags

    values = flags.FlagValues()
    with _flags.flag_errors(()):
        # The flags of the fields are made from the fields that argv names, so it goes in here too.
        config_flags.DEFINE_config_dataclass(
            "config", config, flag_values=values, sys_argv=list(rest)
        )
    given = _flags.read_flags(rest, kind, values)
    set_up: Any = values["config"].value
    # Types the flags don't look at (items of tuples), and what a config file itself got wrong.
    from_json(type(set_up), to_json(set_up), path="--config")
    set_up.validate()
    return set_up, given


def load_config_file(where: str) -> Any:
    """What `get_config()` of the Python file returns; `FILE:TEXT` passes it the text.

    Raises:
      UserError: there is no such file, or it does not define a config.
    """
    name, colon, argument = where.partition(":")
    path = local_path(name, "--config")
    if not path.is_file():
        known = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "configs").glob("*.py"))]
        raise UserError(f"--config={name}: no such file{_flags.did_you_mean(name, known)}")
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
    missing = [part for part in ("system", "train", "validate") if not hasattr(config, part)]
    if not dataclasses.is_dataclass(config) or missing:
        raise UserError(
            f"--config={name}: get_config() must return a dataclass with system, train and "
            f"validate(), not {type(config).__name__}"
        )
    return config


def field_paths(config: Any) -> list[str]:
    """Dotted paths of the fields of nested dataclasses, groups left out."""
    return [path for path, _, _ in _fields(config)]


def _fields(config: Any, prefix: str = "") -> list[tuple[str, Any, str]]:
    """(dotted path, value, help) of each field."""
    found, help_of = [], field_help(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += _fields(value, f"{prefix}{field.name}.")
        else:
            found.append((prefix + field.name, value, help_of.get(field.name, "")))
    return found


def _print_fields(where: str, *, full: bool) -> None:
    print(f"\nFields of {where} and their values:")
    fields = _fields(load_config_file(where))
    if full:
        _flags.print_block([(f"--config.{path}={value}", text) for path, value, text in fields])
        return
    for path, value, _ in fields:
        print(f"  --config.{path}={value}")


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
        hint = _flags.did_you_mean(match[1], known, "--config.")
        raise UserError(f"--config.{match[1]}: no such field{hint}")


def _examples() -> str:
    names = [f"configs/{path.name}" for path in sorted((ROOT / "configs").glob("*.py"))]
    return ", ".join(names[:5]) or "configs/NAME.py"
