"""What the benchmarks have in common on a terminal: tables, progress, one-line errors."""

import contextlib
import importlib.util
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence

from absl import app


class Table:
    """Right-aligned columns without blanks inside a cell.

    On a terminal that is wide enough, with `rich` installed, the table is drawn when it is
    complete; anywhere else every row is printed at once, in columns apart by blanks.
    """

    def __init__(self, columns: Sequence[str], widths: dict[str, int] | None = None):
        self.columns = tuple(columns)
        self.widths = [max(len(c), 9, (widths or {}).get(c, 0)) for c in columns]
        self.rows: list[tuple[str, ...]] = []
        room = shutil.get_terminal_size().columns >= sum(self.widths) + 3 * len(columns) + 1
        has_rich = importlib.util.find_spec("rich") is not None
        self.fancy = sys.stdout.isatty() and room and has_rich
        if not self.fancy:
            self._print(self.columns)

    def add(self, cells: Sequence[str]) -> None:
        """One row, as many cells as columns."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(tuple(cells))
        if not self.fancy:
            self._print(cells)

    def close(self) -> None:
        """Draws the table where that is not done yet."""
        if not self.fancy:
            return
        from rich.console import Console
        from rich.table import Table as Drawn

        drawn = Drawn()
        for column in self.columns:
            drawn.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            drawn.add_row(*row)
        # Wide, so that no figure is ever cut short.
        Console(width=1000).print(drawn)

    def _print(self, cells: Sequence[str]) -> None:
        padded = (cell.rjust(width) for cell, width in zip(cells, self.widths, strict=True))
        print("  ".join(padded).rstrip(), flush=True)


@contextlib.contextmanager
def progress(doing: str, after: float = 3.0) -> Iterator[None]:
    """Says on stderr what is being done if it takes longer than `after` seconds."""

    def say() -> None:
        print(f"{doing} ...", file=sys.stderr, flush=True)

    timer = threading.Timer(after, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def fail(message: object) -> None:
    """One line on stderr, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def no_arguments(argv: list[str]) -> None:
    """Refuses words that are no flags."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
