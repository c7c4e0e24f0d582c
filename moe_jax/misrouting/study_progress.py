"""How far a study is, on stderr, and what Ctrl-C says."""

import collections
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from moe_jax.common.interrupt import Interrupted

_EVERY = 10.0  # seconds between lines where lines can't be rewritten
_FEWEST, _RECENT = 3, 8  # runs that time left is estimated from: the first ones compile programs


class Stopped(Interrupted):
    """A study was asked to stop; runs that were done are on disk."""

    def __init__(self, signum: int, done: int, total: int):
        """Args: the signal; how many runs are done, of how many (0: not known yet)."""
        super().__init__(signum, done)
        of = f"after {done} of {total} runs" if total else "before the first run"
        self.args = (f"{signal.Signals(signum).name}: stopped {of}",)


class StudyProgress:
    """A `study.Progress`: run k of n, its name, time left. Rewritten on a terminal.

    Attributes:
      done: runs that are done, those before this start too.
      total: runs in all; 0 until it is known.
    """

    def __init__(self, done: int):
        """`done`: runs that an earlier start did."""
        self.done, self.total = done, 0
        self._before, self._last = done, -_EVERY
        self._starts: collections.deque[float] = collections.deque(maxlen=_RECENT + 1)
        self._open, self._line = False, ""

    def __call__(self, number: int, total: int, name: str) -> None:
        """Run `number` (from 0) is next, or all are done."""
        first, self.total = not self.total, total
        if first and self._before:
            self._say_before(total)
        elif not first:
            self.done = min(self.done + 1, total)
        now = time.monotonic()
        self._starts.append(now)
        if number >= total:
            self.close()
            return
        self._line = f"run {self.done + 1} of {total}: {name}{self._left()}"
        self._print(self._line, now)

    def detail(self, text: str) -> None:
        """What the run is doing, after the run's own line."""
        self._print(f"{self._line}: {text}", time.monotonic())

    def close(self) -> None:
        """End the line that is rewritten."""
        if self._open:
            print(file=sys.stderr)
            self._open = False

    def _print(self, line: str, now: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{line[:100]:<100}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif now - self._last >= _EVERY:
            self._last = now
            print(line, file=sys.stderr, flush=True)

    def _say_before(self, total: int) -> None:
        if self._before >= total:
            print(f"all {total} runs were done: only the files are written anew", file=sys.stderr)
        else:
            print(f"going on: {self._before} of {total} runs were done", file=sys.stderr)

    def _left(self) -> str:
        runs = len(self._starts) - 1
        if runs < _FEWEST:
            return ""
        seconds = (self._starts[-1] - self._starts[0]) / runs * (self.total - self.done)
        return f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"


@contextlib.contextmanager
def stoppable(progress: StudyProgress) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block with `Stopped`, which says how far it got."""
    seen = [signal.SIGINT]

    def leave(signum: int, frame: Any) -> None:
        del frame
        seen[0] = signal.Signals(signum)
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    caught = main and before is not None and before is not signal.SIG_IGN
    if caught:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt:
        progress.close()
        raise Stopped(seen[0], progress.done, progress.total) from None
    finally:
        if caught:
            signal.signal(signal.SIGTERM, before)
