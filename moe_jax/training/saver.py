"""Saves the checkpoints of a run, one at a time, and removes those that are no longer kept."""

import dataclasses
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from moe_jax.errors import UserError
from moe_jax.training import hosts, seal, settings
from moe_jax.training.checkpoint import (
    DELETED,
    PARTIAL,
    arrays_of,
    describe,
    figures_of,
    list_steps,
)
from moe_jax.training.retention import Figures, Retention
from moe_jax.training.state import TrainState, own


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a checkpoint carries besides arrays; all JSON.

    Attributes:
      config: the run's config.
      data: the position of the data iterator, from its get_state.
      window: the metric sums since the last line of metrics.jsonl.
      figures: of the evaluation at this step, if there was one.
      jax: the settings that results depend on (`settings.current`).
    """

    config: dict[str, Any]
    data: Any
    window: dict[str, Any]
    figures: Figures = dataclasses.field(default_factory=dict)
    jax: dict[str, str] = dataclasses.field(default_factory=settings.current)


class Saver:
    """Saves in a thread of its own, one checkpoint at a time, and removes those no longer kept.

    A context manager: leaving it waits for the save under way. A save that failed is reported by
    the next call of `save`, `check` or `wait` as a UserError (full disk, no permission).
    """

    def __init__(self, folder: Path, keep: Retention):
        self._folder, self._keep = folder.absolute(), keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None

    def __enter__(self) -> "Saver":
        self._folder.mkdir(parents=True, exist_ok=True)
        if hosts.is_first():
            self._clear("*" + DELETED)
            self._clear("*" + PARTIAL + "*")
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()

    def save(self, state: TrainState, record: RunRecord) -> None:
        """Start saving this state; it may be donated as soon as this returns."""
        self.wait()
        step, arrays = int(state.step), arrays_of(own(state))
        partial = self._folder / f"{step}{PARTIAL}"
        if hosts.part() == (0, 1):
            self._job = self._pool.submit(self._write, step, arrays, record, None)
            return
        # Its beginning talks to the other processes, which only the main thread does in order.
        writing = ocp.save_checkpointables_async(partial, arrays)
        self._job = self._pool.submit(self._write, step, arrays, record, writing)

    def check(self) -> None:
        """Raise what went wrong in the last save, if it is over; never waits."""
        if self._job is not None and self._job.done():
            self.wait()

    def busy(self) -> bool:
        """Is a save under way?"""
        return self._job is not None and not self._job.done()

    def wait(self) -> None:
        """Wait for the save under way."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def _write(
        self, step: int, arrays: dict[str, Any], record: RunRecord, writing: Any | None
    ) -> None:
        final = self._folder / str(step)
        partial = final.with_name(final.name + PARTIAL)
        try:
            if writing is None:
                ocp.save_checkpointables(partial, arrays)
            else:
                writing.result()  # when all processes have written
            if not hosts.is_first():
                return
            run = {"step": step} | dataclasses.asdict(record) | {"arrays": describe(arrays)}
            seal.write_record(partial, run)
            if final.exists():
                _delete(final)
            partial.rename(final)
        except Exception as error:
            self._clear(partial.name + "*")
            reason = _disk_error(error)
            if reason is None:
                raise
            raise UserError(self._failure(step, reason)) from error
        steps = list_steps(self._folder)
        figures = figures_of(self._folder, steps) if self._keep.best is not None else {}
        for old in set(steps) - self._keep.kept(steps, figures):
            _delete(self._folder / str(old))

    def _clear(self, pattern: str) -> None:
        """Remove what an unfinished save or removal left (Orbax adds an ending while it writes)."""
        for leftover in self._folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)

    def _failure(self, step: int, reason: str) -> str:
        left = list_steps(self._folder)
        rest = f"the newest one left is that of step {left[-1]}" if left else "there is none yet"
        return f"{self._folder}: the checkpoint of step {step} was not saved ({reason}); {rest}"


def _delete(folder: Path) -> None:
    """Remove a checkpoint; a kill half-way leaves no damaged one behind."""
    doomed = folder.with_name(folder.name + DELETED)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _disk_error(error: BaseException) -> str | None:
    """The reason in words, if the file system refused to take the data; None for other errors."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen.strerror or str(seen)
        # TensorStore reports a failed write as a ValueError that quotes the system's number.
        if code := re.search(r"os_error_code='(\d+)'", str(seen)):
            return os.strerror(int(code[1]))
        seen = seen.__cause__ or seen.__context__
    return None
