"""Ctrl-C and SIGTERM: finish the step, leave a checkpoint, then go."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and did, after saving.

    Attributes:
      signum: the signal: SIGINT or SIGTERM. The shell's exit status is 128 + signum.
      step: the step of the checkpoint that was left.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(f"{signal.Signals(signum).name}: stopped at step {step}")
        self.signum, self.step = signum, step


class _Now(BaseException):
    """Leaves a long evaluation from inside the signal handler."""


class Interrupts:
    """While entered, the first SIGINT or SIGTERM is only noted; a second one acts as before.

    Signals that the process was told to ignore (nohup, a shell's background job) stay ignored,
    and in any thread but the main one, where Python can't catch signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}
        self._leave_at_once = False

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(signum)
                if before is not None and before is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @contextlib.contextmanager
    def abandoning(self) -> Iterator[None]:
        """In this block a signal ends the block at once: for work that can be done again."""
        self._leave_at_once = True
        try:
            yield
        except _Now:
            pass
        finally:
            self._leave_at_once = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.signum = signum
        self._restore()
        if self._leave_at_once:
            raise _Now

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
