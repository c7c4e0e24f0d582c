"""Which checkpoints of a run are kept."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from moe_jax.errors import UserError

Figures = Mapping[str, float | None]
"""What an evaluation measured, by name; None for what was not finite."""


class Best(NamedTuple):
    """What makes a checkpoint the best: a figure of `Task.evaluate`, and which way."""

    name: str
    highest: bool

    @classmethod
    def parse(cls, text: str, path: str = "train.keep_best") -> "Best | None":
        """From "max:NAME" or "min:NAME"; None for "".

        Raises:
          UserError: it is something else; `path` is named.
        """
        if text == "":
            return None
        way, colon, name = text.partition(":")
        if not (colon and name and way in ("max", "min")):
            raise UserError(f"{path}={text!r}: must be max:NAME or min:NAME, such as max:accuracy")
        return cls(name, way == "max")

    def of(self, figures: Mapping[int, Figures]) -> int | None:
        """The step whose figure is the best, the earliest of equals; None if none has one."""
        known = {step: each.get(self.name) for step, each in figures.items()}
        values = {s: v for s, v in known.items() if v is not None and math.isfinite(v)}
        sign = 1 if self.highest else -1
        return max(values, key=lambda step: (sign * values[step], -step), default=None)


class Retention(NamedTuple):
    """Which checkpoints to keep.

    Attributes:
      newest: so many of the newest.
      every: and those whose step is a multiple of this (0: none; step 0 doesn't count as one).
      best: and the best, if given.
    """

    newest: int
    every: int = 0
    best: Best | None = None

    def kept(self, steps: Iterable[int], figures: Mapping[int, Figures]) -> set[int]:
        """The steps to keep.

        Args:
          steps: of the checkpoints that there are.
          figures: of the evaluations at these steps, where there was one.
        """
        steps = sorted(steps)
        chosen = set(steps[-self.newest :])
        if self.every:
            chosen |= {step for step in steps if step and step % self.every == 0}
        if self.best is not None:
            best = self.best.of({step: figures.get(step, {}) for step in steps})
            if best is not None:
                chosen.add(best)
        return chosen
