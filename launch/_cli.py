"""What the launch scripts share: one-line errors, exit codes, flags, the table at the end."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch._configs import parse_with_config
from launch._flags import parse, wants_help
from moe_jax.common import Interrupted
from moe_jax.errors import UserError

__all__ = ["parse", "parse_with_config", "print_figures", "print_files", "run"]


def run(
    main: Callable[[Sequence[str]], None],
    argv: Sequence[str],
    *before: Callable[[], object],
) -> int:
    """Call `main(argv)` and give the exit status; `before` it, what sets up the process for work.

    0 done; 2 a mistake that the user can mend, told in one line on stderr; 130 after Ctrl-C, 143
    after SIGTERM, 141 if nobody reads the output any more. Any other exception is a fault of the
    program and keeps its traceback.
    """
    warnings.showwarning = _show_warning
    try:
        _check_characters(argv)
        for set_up in () if wants_help(argv) else before:
            set_up()
        try:
            main(argv)
        except SystemExit as end:
            if end.code:  # 0: help was printed
                raise
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


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """One line without the source, as for errors."""
    del filename, lineno, line
    name = "" if category is UserWarning else f" ({category.__name__})"
    print(f"warning: {message}{name}", file=file or sys.stderr)
