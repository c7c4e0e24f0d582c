"""How far a run has come: a bar on a terminal, a line every few seconds elsewhere."""

import io
import sys
import time
from collections.abc import Mapping
from typing import Any


class Progress:
    """Step, loss, steps per second and time left, on stderr."""

    EVERY_SECONDS = 5.0

    def __init__(self, start: int, steps: int, stream: io.TextIOBase | None = None):
        self._stream: Any = stream or sys.stderr
        self._start, self._steps, self._loss, self._first = start, steps, "", True
        self._began = self._shown = time.monotonic()
        self._bar = _Bar(self._stream, start, steps) if self._stream.isatty() else None

    def step(self, step: int) -> None:
        """This step is done (dispatched); shows something now and then."""
        now = time.monotonic()
        if self._first:  # it was compiled: not what the next ones take
            self._first, self._start, self._began = False, step, now
        if now - self._shown >= (0.2 if self._bar else self.EVERY_SECONDS) or step == self._steps:
            self._shown = now
            self._show(step, now)

    def metrics(self, values: Mapping[str, float | int]) -> None:
        """The newest figures; only the loss is shown."""
        if "loss" in values:
            self._loss = f"loss {values['loss']:.4g}"

    def note(self, text: str) -> None:
        """Say one thing between the lines of progress."""
        if self._bar:
            self._bar.print(text)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.close()

    def _show(self, step: int, now: float) -> None:
        parts = [self._loss] if self._loss else []
        if step > self._start:
            rate = (step - self._start) / max(now - self._began, 1e-9)
            parts += [f"{rate:.3g} steps/s", f"{clock((self._steps - step) / rate)} left"]
        text = "  ".join(parts)
        if self._bar:
            self._bar.update(step, text)
        else:
            line = f"step {step}/{self._steps}  {text}".rstrip()
            print(line, file=self._stream, flush=True)


def clock(seconds: float | int) -> str:
    """0:09, 12:05, 3:00:07."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class _Bar:
    """The same on a terminal, with rich."""

    def __init__(self, stream: Any, start: int, steps: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(file=stream),
        )
        self._task = self._progress.add_task("step", completed=start, total=steps, text="")
        self._progress.start()

    def update(self, step: int, text: str) -> None:
        self._progress.update(self._task, completed=step, text=text)

    def print(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()
