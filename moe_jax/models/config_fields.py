"""The fields of a config.json, read one by one; each wrong value is one line that names it."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from moe_jax.common.files import same, shown
from moe_jax.errors import UserError

_LARGEST_INT = 2**31 - 1
_LARGEST_FLOAT = 3.4e38  # of float32, in which they are used
_REQUIRED: Any = object()


class Fields:
    """The fields of a JSON object, each read as what it must be.

    A method that takes several names reads a field that files have under any of them. Where a file
    has it under two, both must say the same.

    Attributes:
      raw: the object.
      where: the file, for messages.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, *, inside: str = ""):
        """Keep the object.

        Args:
          raw: the object.
          where: the file, for messages.
          inside: the dotted path of an object within the file, with its dot.
        """
        self.raw, self.where, self._inside = raw, where, inside

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.raw.get(name) is not None

    def path(self, name: str) -> str:
        """The field's name in messages."""
        return f"{self._inside}{name}"

    def value(self, *names: str, default: Any = _REQUIRED) -> Any:
        """What the file says under any of the names, unchecked; a null counts as said.

        Raises:
          UserError: it is missing and has no default, or two names say different things.
        """
        found = [name for name in names if name in self.raw]
        if not found:
            if default is _REQUIRED:
                raise UserError(f"{self.where} lacks the field {self.path(names[0])!r}")
            return default
        first = found[0]
        for other in found[1:]:
            if not same(self.raw[first], self.raw[other]):
                raise self.differ(first, self.raw[first], other, self.raw[other])
        return self.raw[first]

    def whole(
        self,
        *names: str,
        least: int = 1,
        most: int = _LARGEST_INT,
        default: Any = _REQUIRED,
    ) -> int:
        """A whole number from `least` to `most`.

        Raises:
          UserError: it is missing or anything else.
        """
        value = self.value(*names, default=default)
        if not _is_int(value) or value < least:
            raise self.wrong(names, f"must be a whole number >= {least}")
        if value > most:
            raise self.wrong(names, f"must be a whole number up to {most}")
        return value

    def whole_or_none(self, *names: str, most: int = _LARGEST_INT) -> int | None:
        """A whole number from 1, or None where it is null or missing."""
        return None if self._none(names) else self.whole(*names, most=most)

    def number(self, name: str, *, default: Any = _REQUIRED, zero: bool = False) -> float:
        """A number more than 0 (or 0 with `zero`) that float32 can hold.

        Raises:
          UserError: it is missing or anything else.
        """
        value = self.value(name, default=default)
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if right:
            right = (value >= 0 if zero else value > 0) and value <= _LARGEST_FLOAT
        if not right:
            bound = ">= 0" if zero else "more than 0"
            raise self.wrong((name,), f"must be a number {bound} (that float32 can hold)")
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        """The same, or None where it is null or missing."""
        return None if self._none((name,)) else self.number(name)

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false.

        Raises:
          UserError: it is anything else.
        """
        value = self.value(name, default=default)
        if not isinstance(value, bool):
            raise self.wrong((name,), "must be true or false")
        return value

    def text(self, *names: str, default: str) -> str:
        """A string.

        Raises:
          UserError: it is anything else.
        """
        value = self.value(*names, default=default)
        if not isinstance(value, str):
            raise self.wrong(names, "must be a string")
        return value

    def items(self, name: str, kind: type) -> list[Any] | None:
        """A list of whole numbers (kind=int) or strings (kind=str); None: null or missing.

        Raises:
          UserError: it is anything else.
        """
        value = self.value(name, default=None)
        if value is None:
            return None
        right = _is_int if kind is int else lambda x: isinstance(x, str)
        if not isinstance(value, list) or not all(right(x) for x in value):
            what = "whole numbers" if kind is int else "strings"
            raise self.wrong((name,), f"must be a list of {what}")
        return value

    def inner(self, name: str) -> "Fields | None":
        """The fields of an object; None: null, missing or without any.

        Raises:
          UserError: it is anything else.
        """
        value = self.value(name, default=None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong((name,), "must be an object")
        return Fields(value, self.where, inside=f"{self.path(name)}.") if value else None

    def token_id(self, name: str, vocab_size: int) -> int | None:
        """The id of a token; None: null or missing.

        Raises:
          UserError: it is none of the vocabulary's.
        """
        if self._none((name,)):
            return None
        value = self.raw[name]
        if not _is_int(value):
            raise self.wrong((name,), "must be a whole number")
        self._in_vocabulary(name, value, vocab_size)
        return value

    def token_ids(self, name: str, vocab_size: int) -> tuple[int, ...] | None:
        """The ids of one token or of several, in a list; None: null or missing.

        Raises:
          UserError: one is none of the vocabulary's.
        """
        if self._none((name,)):
            return None
        value = self.raw[name]
        ids = value if isinstance(value, list) else [value]
        if not all(_is_int(i) for i in ids):
            raise self.wrong((name,), "must be a whole number or a list of them")
        for i in ids:
            self._in_vocabulary(name, i, vocab_size)
        return tuple(ids)

    def wrong(self, names: tuple[str, ...], must: str) -> UserError:
        """The error of a value: the file, the field, the value and what it must be."""
        name = next((n for n in names if n in self.raw), names[0])
        return self.misfit(name, self.raw.get(name), must)

    def misfit(self, name: str, value: Any, must: str) -> UserError:
        """The error of a value that does not go with others; the field may be a default."""
        default = "" if name in self.raw else " (its default)"
        return UserError(f"{self.where}: {self.path(name)}={shown(value)}{default} {must}")

    def differ(self, name: str, value: Any, other: str, its: Any) -> UserError:
        """The error of two fields that say different things."""
        return UserError(
            f"{self.where}: {self.path(name)}={shown(value)} and {self.path(other)}={shown(its)} "
            "must be the same, or one of them left out"
        )

    def _none(self, names: tuple[str, ...]) -> bool:
        return self.value(*names, default=None) is None

    def _in_vocabulary(self, name: str, i: int, vocab_size: int) -> None:
        if not 0 <= i < vocab_size:
            raise UserError(
                f"{self.where}: {self.path(name)}={shown(i)} must be an id of the vocabulary, "
                f"0 to {vocab_size - 1} (vocab_size={vocab_size})"
            )


@contextlib.contextmanager
def fields_of(where: str) -> Iterator[None]:
    """Around the checks of a config that was read from a file: their errors name the file.

    Raises:
      UserError: the checks'.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
