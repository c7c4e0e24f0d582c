"""How far long work is, on stderr: a bar on a terminal, a line every few seconds elsewhere."""

import atexit
import collections
import io
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_REDRAW = 0.2  # seconds between changes of the bar


class Known(NamedTuple):
    """What a line of progress is made of.

    Attributes:
      done: how much is done, what was done before this start too.
      total: of how much.
      rate: done per second; None: not known yet.
      left: seconds; None: not known yet.
      detail: the newest thing to say; "": nothing.
    """

    done: float | int
    total: int
    rate: float | None
    left: float | None
    detail: str


def steps_line(known: Known) -> str:
    """A line of training: "step 50/1010  loss 0.1235  8 steps/s  2:00 left"."""
    parts = [f"step {int(known.done)}/{known.total}", known.detail]
    if known.rate is not None and known.left is not None:
        parts += [f"{known.rate:.3g} steps/s", f"{clock(known.left)} left"]
    return "  ".join(part for part in parts if part)


class Progress:
    """How far work is: by default steps of training, with their rate and the time left.

        progress = Progress(0, 1000)
        for step in range(1000):
            ...
            progress.step(step + 1)
        progress.close()

    It is also the callback (done, total) of functions that tell theirs. The first step compiles
    programs, so the rate is of those after it. After the last step the bar is closed.

    Args:
      done: what an earlier start did.
      total: in all; 0: `step` says it.
      stream: where to; None: stderr.
      line: makes the line of what is known.
      every: seconds between lines where there is no terminal.
      quiet: seconds in which nothing is shown; work that takes no longer shows nothing.
      recent: the rate is that of so many of the last steps; None: of all.
      fewest: steps that a rate needs.
    """

    def __init__(
        self,
        done: float | int = 0,
        total: int = 0,
        stream: io.TextIOBase | None = None,
        *,
        line: Callable[[Known], str] = steps_line,
        every: float = 5.0,
        quiet: float = 0.0,
        recent: int | None = None,
        fewest: int = 0,
    ):
        self.done, self.total = done, total
        self._stream: Any = stream or sys.stderr
        self._line, self._every, self._quiet = line, every, quiet
        self._recent, self._fewest, self._detail = recent, fewest, ""
        # (time, done) of the first step that the rate is of, and of those after it.
        self._marks: collections.deque[tuple[float, float | int]] = collections.deque(
            maxlen=None if recent is None else recent + 1
        )
        self._began = self._shown = time.monotonic()
        self._bar: _Bar | None = None

    def step(
        self,
        done: float | int,
        total: int | None = None,
        *,
        detail: str | None = None,
        at_once: bool = False,
    ) -> None:
        """So much is done (dispatched); shows it now and then, at the end, and `at_once`."""
        now = time.monotonic()
        self._detail = self._detail if detail is None else detail
        self.done, self.total = done, self.total if total is None else total
        if self._recent is None and len(self._marks) == 2:
            self._marks.pop()
        self._marks.append((now, done))
        self._show(now, at_once or done >= self.total)
        if done >= self.total:
            self.close()

    __call__ = step

    def metrics(self, values: Mapping[str, float | int]) -> None:
        """The newest metrics of training; only the loss is shown, with the next step."""
        if "loss" in values:
            self._detail = f"loss {values['loss']:.4g}"

    def detail(self, text: str) -> None:
        """What is being done now; shows it, if it is time to."""
        self._detail = text
        self._show(time.monotonic(), False)

    def note(self, text: str) -> None:
        """Say one thing between the lines of progress."""
        if self._bar is not None:
            self._bar.print(text)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, now: float, at_once: bool) -> None:
        terminal = self._stream.isatty()
        early = now - self._shown < (_REDRAW if terminal else self._every)
        if now - self._began < self._quiet or (early and not at_once):
            return
        self._shown = now
        line = self._line(self._known())
        if not terminal:
            print(line, file=self._stream, flush=True)
            return
        if self._bar is None:
            self._bar = _Bar(self._stream, self.done, self.total, line)
        else:
            self._bar.update(self.done, self.total, line)

    def _known(self) -> Known:
        if not self._marks:
            return Known(self.done, self.total, None, None, self._detail)
        (began, first), (now, last) = self._marks[0], self._marks[-1]
        if last <= first or last - first < self._fewest:
            return Known(self.done, self.total, None, None, self._detail)
        each = max(now - began, 1e-9) / (last - first)
        return Known(self.done, self.total, 1 / each, each * (self.total - last), self._detail)


def counting(verb: str, unit: str) -> Progress:
    """Progress of things that are counted: "reading 3 of 10 prompts, 9 s left".

    Silent where all is done within three seconds.
    """

    def line(known: Known) -> str:
        left = "" if known.left is None else f", {in_words(known.left)} left"
        return f"{verb} {int(known.done):,} of {known.total:,} {unit}{left}"

    return Progress(line=line, quiet=3.0)


def clock(seconds: float | int) -> str:
    """0:09, 12:05, 3:00:07."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def in_words(seconds: float | int) -> str:
    """Time left: 95 s, 3 min."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class _Bar:
    """A bar and a line on a terminal, with rich."""

    def __init__(self, stream: Any, done: float | int, total: int, line: str):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.fields[line]}", markup=False),
            console=Console(file=stream),
        )
        self._task = self._progress.add_task("", line=line)
        self.update(done, total, line)
        self._progress.start()
        # Where an error ends the work, the terminal gets its cursor back all the same.
        atexit.register(self._progress.stop)

    def update(self, done: float | int, total: int, line: str) -> None:
        self._progress.update(self._task, completed=done, total=total, line=line)

    def print(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()
        atexit.unregister(self._progress.stop)
