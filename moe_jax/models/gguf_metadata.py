"""The keys and values at the start of a GGUF file."""

import math
import pathlib
from typing import Any, TypeVar

from moe_jax.errors import UserError

_T = TypeVar("_T", int, float, str, list)


class Metadata:
    """The keys and values at a file's start."""

    def __init__(self, file: pathlib.Path, fields: dict[str, Any]):
        """Keep the reader's fields; values are made when asked for."""
        self.file, self._fields = file, fields

    def need(self, key: str, kind: type[_T]) -> _T:
        """The value of a key that must be there.

        Raises:
          UserError: it isn't, or it's of another type.
        """
        value = self.get(key, kind)
        if value is None:
            raise UserError(f"{self.file} lacks the metadata key {key}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number from 1; the default, if any, where the key isn't there.

        Raises:
          UserError: it isn't there and has no default, or it's anything else.
        """
        if default is not None and key not in self._fields:
            return default
        value = self.need(key, int)
        if isinstance(value, bool) or value < 1:
            raise UserError(f"{self.file}: {key}={value} must be a whole number >= 1")
        return value

    def more_than_0(self, key: str, default: float | None = None) -> float:
        """A number more than 0; the default, if any, where the key isn't there.

        Raises:
          UserError: it isn't there and has no default, or it's anything else.
        """
        if default is not None and key not in self._fields:
            return default
        value = self.need(key, float)
        if not value > 0:
            raise UserError(f"{self.file}: {key}={value} must be more than 0")
        return value

    def get(self, key: str, kind: type[_T]) -> _T | None:
        """The value of a key, or None.

        Raises:
          UserError: it's of another type.
        """
        if key not in self._fields:
            return None
        try:
            value = self._fields[key].contents()
        except UnicodeDecodeError:
            raise UserError(f"{self.file}: {key} is not UTF-8") from None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is float):
            raise UserError(f"{self.file}: {key}={value!r:.60} must be of type {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{self.file}: {key}={value} must be a finite number")
        return value
