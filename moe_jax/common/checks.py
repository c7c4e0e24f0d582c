"""Checks of fields and arguments in one wording: "train.steps=0: must be at least 1".

Every config has `validate(path)`, where `path` is the config's own dotted path ("train.mesh"), or
"" for its fields alone. The checks take that path, a field's name and its value, and raise a
UserError of one line. For an argument of a function the path is "".

    def validate(self, path: str = "") -> None:
        whole(path, "steps", self.steps, 1)
        number(path, "learning_rate", self.learning_rate, above=0)
        nested(path, "mesh", self.mesh, MeshConfig)
        if self.warmup_steps >= self.steps:
            limit = setting(path, "steps", self.steps)
            raise wrong(path, "warmup_steps", self.warmup_steps, f"be less than {limit}")
"""

import math
from collections.abc import Iterable
from typing import Any

from moe_jax.common.files import shown
from moe_jax.errors import UserError

Bound = float | int | None
"""Of a number; None: there is none."""


def joined(path: str, name: str) -> str:
    """The dotted path of a field."""
    return f"{path}.{name}" if path else name


def setting(path: str, name: str, value: Any) -> str:
    """A field with its value, as messages name it."""
    return f"{joined(path, name)}={shown(value)}"


def wrong(path: str, name: str, value: Any, must: str) -> UserError:
    """The error of a field: what it is, and what it `must` do or be ("be less than b=2")."""
    return UserError(f"{setting(path, name, value)}: must {must}")


def whole(
    path: str,
    name: str,
    value: Any,
    low: int | None = None,
    high: int | None = None,
    *,
    none: str = "",
    why: str = "",
) -> None:
    """Check a whole number; True and 2.0 are none.

    Args:
      path: of the config.
      name: of the field.
      value: to check.
      low: the least that is right; None: any.
      high: the most; None: any.
      none: what None stands for, such as "dropless"; "": None is wrong.
      why: more about what is right, for the message.

    Raises:
      UserError: it isn't one, or out of range.
    """
    if value is None and none:
        return
    ends = [f"{word} {x}" for word, x in (("at least", low), ("at most", high)) if x is not None]
    bounds = f"from {low} to {high}" if len(ends) == 2 else "".join(ends)
    if isinstance(value, bool) or not isinstance(value, int):
        comma = f", {bounds}" if bounds else ""
        raise wrong(path, name, value, f"be a whole number{comma}{_notes(none, why)}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise wrong(path, name, value, f"be {bounds}{_notes(none, why)}")


def number(
    path: str,
    name: str,
    value: Any,
    *,
    low: Bound = None,
    above: Bound = None,
    high: Bound = None,
    below: Bound = None,
    none: str = "",
    why: str = "",
) -> None:
    """Check a finite number, whole or not; True is none.

    Args:
      path: of the config.
      name: of the field.
      value: to check.
      low: the least that is right.
      above: what it must be more than.
      high: the most that is right.
      below: what it must be less than.
      none: what None stands for; "": None is wrong.
      why: more about what is right, for the message.

    Raises:
      UserError: it isn't one, is NaN or infinite, or out of range.
    """
    if value is None and none:
        return
    limits = {"at least": low, "more than": above, "at most": high, "less than": below}
    bounds = " and ".join(f"{word} {x:g}" for word, x in limits.items() if x is not None)
    if not _is_finite(value):
        comma = ", " if bounds else ""
        raise wrong(path, name, value, f"be a finite number{comma}{bounds}{_notes(none, why)}")
    too_small = (low is not None and value < low) or (above is not None and value <= above)
    too_large = (high is not None and value > high) or (below is not None and value >= below)
    if too_small or too_large:
        raise wrong(path, name, value, f"be {bounds}{_notes(none, why)}")


def flag(path: str, name: str, value: Any) -> None:
    """Check a bool; 1 is none.

    Raises:
      UserError: it isn't one.
    """
    if not isinstance(value, bool):
        raise wrong(path, name, value, "be True or False")


def text(path: str, name: str, value: Any, *, empty: bool = False) -> None:
    """Check a text, which may be empty only if `empty` says so.

    Raises:
      UserError: it isn't one, or is empty.
    """
    if not isinstance(value, str):
        raise wrong(path, name, value, "be a text")
    if not value and not empty:
        raise wrong(path, name, value, "be a text that isn't empty")


def one_of(path: str, name: str, value: Any, allowed: Iterable[str]) -> None:
    """Check that a text is one of those allowed.

    Raises:
      UserError: it isn't.
    """
    names = tuple(allowed)
    if not isinstance(value, str) or value not in names:
        raise wrong(path, name, value, f"be one of {', '.join(names)}")


def several(path: str, name: str, value: Any) -> None:
    """Check that a field is a tuple (or a list), whatever is in it.

    Raises:
      UserError: it isn't one.
    """
    if not isinstance(value, (tuple, list)):
        raise wrong(path, name, value, "be a tuple")


def nested(path: str, name: str, value: Any, kind: type) -> None:
    """Check that a field is a config of this kind, and each of its fields.

    Raises:
      UserError: it isn't one, or a field of it is wrong.
    """
    if not isinstance(value, kind):
        raise wrong(path, name, value, f"be of type {kind.__name__}")
    value.validate(joined(path, name))  # type: ignore[attr-defined]


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _notes(none: str, why: str) -> str:
    notes = [f"None: {none}"] if none else []
    notes += [why] if why else []
    return f" ({'; '.join(notes)})" if notes else ""
