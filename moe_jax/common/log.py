"""A log of records, one JSON object a line, for work that is resumed after it was killed.

    log = Log(folder / "done.jsonl")
    for item in items:
        if item.name not in log.records:
            log.add({"key": item.name, **work(item)})

Runs of a study, items of a batch job, requests of a server: whatever has a name and is done once.
"""

import json
import os
from pathlib import Path
from typing import Any

from moe_jax.common.files import file_errors, log_lines
from moe_jax.common.schema import marked, plain, unmarked
from moe_jax.errors import UserError


class Log:
    """Records by their "key", in a file that only grows; one process writes it at a time.

    A line that was cut off when its writer died is dropped, so its record counts as not yet made.
    Where a key is there twice, the later record counts.

    Attributes:
      records: by key. NaN is stored as null and infinities as {"inf": 1} and {"inf": -1}; they come
        back as numbers, arrays and tuples as lists.
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
            self.records[line.values["key"]] = unmarked(line.values)
            whole += len(line.raw)
        if lines and whole < file.stat().st_size:
            with file_errors(file):
                os.truncate(file, whole)

    def add(self, record: dict[str, Any]) -> None:
        """Append a record, on disk before this returns.

        Args:
          record: with its name, a text, as "key".

        Raises:
          UserError: the file can't be written.
          ValueError: the record has no such key.
        """
        if not isinstance(record.get("key"), str):
            raise ValueError(f"key={record.get('key')!r}: must be a text, the record's name")
        line = json.dumps(plain(record, number=marked), allow_nan=False)
        with file_errors(self._file), self._file.open("a", encoding="utf-8") as out:
            out.write(line + "\n")
            out.flush()
            os.fsync(out.fileno())
        self.records[record["key"]] = unmarked(json.loads(line))
