"""A log of finished runs, one JSON object a line, that survives being killed at any moment."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.common.files import file_errors, log_lines
from moe_jax.errors import UserError


class Log:
    """Records by their "key", in a file that only grows.

    A line that was cut off when its writer died is dropped; the run that it was of is done again.

    Attributes:
      records: by key. NaN is stored as null and infinities as {"inf": 1} and {"inf": -1}; they come
        back as numbers.
    """

    def __init__(self, file: Path):
        """Read the file, if it exists.

        Raises:
          UserError: a line in the middle isn't a record.
        """
        self._file = file
        self.records: dict[str, dict[str, Any]] = {}
        lines = log_lines(file) if file.exists() else []
        whole = 0
        for number, line in enumerate(lines, start=1):
            if line.values is None or not isinstance(line.values.get("key"), str):
                if number < len(lines):
                    raise UserError(f"{file}, line {number}: not a record: move the file away")
                break
            self.records[line.values["key"]] = _numbers(line.values)
            whole += len(line.raw)
        if lines and whole < file.stat().st_size:
            with file_errors(file):
                os.truncate(file, whole)

    def add(self, record: dict[str, Any]) -> None:
        """Append a record, on disk before this returns.

        Raises:
          UserError: the file can't be written.
        """
        line = json.dumps(plain(record), allow_nan=False)
        with file_errors(self._file), self._file.open("a", encoding="utf-8") as out:
            out.write(line + "\n")
            out.flush()
            os.fsync(out.fileno())
        self.records[record["key"]] = _numbers(json.loads(line))


def plain(value: Any) -> Any:
    """Arrays as lists; NaN as null, infinities as {"inf": 1} and {"inf": -1}."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else {"inf": 1 if value > 0 else -1}
    return value


def _numbers(value: Any) -> Any:
    """The inverse of `plain`, but for arrays, which stay lists."""
    if value in ({"inf": 1}, {"inf": -1}):
        return math.inf * value["inf"]
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return math.nan if value is None else value
