"""A trace of some steps, to look at in XProf or TensorBoard."""

from pathlib import Path
from typing import NamedTuple

import jax

from moe_jax.errors import UserError
from moe_jax.training import hosts


class ProfileSteps(NamedTuple):
    """Which steps to trace, both ends included, counted from 1 as in metrics.jsonl."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "ProfileSteps":
        """From "FIRST:LAST".

        Raises:
          UserError: it is something else.
        """
        first, colon, last = text.partition(":")
        if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise UserError(
                f"--profile_steps={text}: must be FIRST:LAST, counted from 1, such as 10:15"
            )
        return cls(int(first), int(last))

    def check(self, done: int, steps: int) -> None:
        """A UserError if a run that has `done` of `steps` steps will not make these."""
        if self.first <= done or self.last > steps:
            raise UserError(
                f"--profile_steps={self.first}:{self.last}: the steps that are left are "
                f"{done + 1} to {steps}"
            )


class Profiler:
    """Traces the steps while entered. With several processes the first one's devices only.

    Args:
      steps: which, or None.
      folder: where the trace goes: FOLDER/plugins/profile/DATE/.
    """

    def __init__(self, steps: ProfileSteps | None, folder: Path):
        self._steps = steps if hosts.is_first() else None
        self._folder, self._running = folder, False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Step number `step` is about to be made."""
        if self._steps is not None and step == self._steps.first:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, outcome: object) -> None:
        """Step number `step` was started; `outcome` is what it will give."""
        if self._running and self._steps is not None and step == self._steps.last:
            jax.block_until_ready(outcome)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
