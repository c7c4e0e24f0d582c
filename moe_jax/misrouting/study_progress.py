"""How far a study is, on stderr, and what Ctrl-C says."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from moe_jax.common.interrupt import Interrupted
from moe_jax.common.progress import Known, Progress, in_words


class Stopped(Interrupted):
    """A study was asked to stop; runs that were done are on disk."""

    def __init__(self, signum: int, done: int, total: int):
        """Args: the signal; how many runs are done, of how many (0: not known yet)."""
        super().__init__(signum, done)
        of = f"after {done} of {total} runs" if total else "before the first run"
        self.args = (f"{signal.Signals(signum).name}: stopped {of}",)


class StudyProgress:
    """A `study.Progress`: "run 4 of 900: NAME, 15 min left" (`common.progress`).

    Attributes:
      done: runs that are done, those before this start too.
      total: runs in all; 0 until it is known.
    """

    def __init__(self, done: int):
        """`done`: runs that an earlier start did."""
        self.done, self.total = done, 0
        self._before, self._name = done, ""
        # The first runs compile programs.
        self._progress = Progress(done, line=self._line, every=10.0, recent=8, fewest=3)

    def __call__(self, number: int, total: int, name: str) -> None:
        """Run `number` (from 0) is next, or all are done."""
        first, self.total = not self.total, total
        if first and self._before:
            self._say_before(total)
        elif not first:
            self.done = min(self.done + 1, total)
        if number >= total:
            self.close()
            return
        self._name = name
        self._progress.step(self.done, total, detail="", at_once=first)

    def detail(self, text: str) -> None:
        """What the run is doing, after the run's own line."""
        self._progress.detail(text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.close()

    def _line(self, known: Known) -> str:
        left = "" if known.left is None else f", {in_words(known.left)} left"
        detail = f": {known.detail}" if known.detail else ""
        return f"run {self.done + 1} of {known.total}: {self._name}{left}{detail}"

    def _say_before(self, total: int) -> None:
        if self._before >= total:
            self._progress.note(f"all {total} runs were done: only the files are written anew")
        else:
            self._progress.note(f"going on: {self._before} of {total} runs were done")


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
        raise Stopped(seen[0], progress.done, progress.total) from None
    finally:
        progress.close()
        if caught:
            signal.signal(signal.SIGTERM, before)
