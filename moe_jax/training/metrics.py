"""Where the figures of a run go: metrics.jsonl always, TensorBoard if asked for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from moe_jax.common.files import LogLine, file_errors, log_lines, write_atomically
from moe_jax.common.schema import finite_or_none
from moe_jax.errors import UserError
from moe_jax.training.config import TrainConfig

Number = float | int
"""A figure: beartype does not take an int for a float."""

EVALUATION = "eval/"
"""What the names of evaluation figures begin with in metrics.jsonl."""


@runtime_checkable
class Writer(Protocol):
    """Takes scalars by name at a step."""

    def write(self, step: int, values: Mapping[str, Number]) -> None:
        """Record the figures of this step."""

    def close(self) -> None:
        """Finish what is buffered."""


class JsonlWriter:
    """One JSON object per line, {"step": n, name: value, ...}; null = a value not finite."""

    def __init__(self, path: Path):
        with file_errors(path):
            self._path, self._file = path, path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Number]) -> None:
        """Append one line; it is in the file, whole, when this returns."""
        line = {"step": step} | {name: finite_or_none(value) for name, value in values.items()}
        with file_errors(self._path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """Event files for TensorBoard; events after `resumed_at` from before a resume are hidden."""

    def __init__(self, folder: Path, resumed_at: int):
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            raise UserError(
                "train.tensorboard=True: needs the package tensorboardX; "
                "run pip install 'moe-jax[tensorboard]', or set it to False"
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=resumed_at + 1)

    def write(self, step: int, values: Mapping[str, Number]) -> None:
        """Add each figure as a scalar."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def open_writers(workdir: Path, config: TrainConfig, resumed_at: int) -> list[Writer]:
    """The writers that the config asks for, on a metrics.jsonl cut back to the resumed step."""
    path = workdir / "metrics.jsonl"
    truncate(path, resumed_at)
    writers: list[Writer] = [JsonlWriter(path)]
    if config.tensorboard:
        writers.append(TensorBoardWriter(workdir / "tensorboard", resumed_at))
    return writers


def truncate(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a last line that a kill left half-written.

    What the interrupted run wrote after its last checkpoint is then written a second time by the
    resumed one, so the file ends up as if nothing had happened.
    """
    if not path.exists():
        return
    lines = log_lines(path)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        write_atomically(path, b"".join(line.raw for line in kept).decode())


def evaluation_at(path: Path, step: int) -> dict[str, float] | None:
    """The figures of the evaluation at this step, if metrics.jsonl holds one."""
    if not path.exists():
        return None
    for line in reversed(read(path)):
        figures = {name: value for name, value in line.items() if name.startswith(EVALUATION)}
        if line["step"] == step and figures:
            return {
                name.removeprefix(EVALUATION): math.nan if value is None else value
                for name, value in figures.items()
            }
    return None


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that was left half-written is left out."""
    lines = log_lines(path)
    return [line.values for line in lines if line.values is not None and _step_of(line) < math.inf]


def _step_of(line: LogLine) -> Number:
    step = math.inf if line.values is None else line.values.get("step")
    return step if isinstance(step, int) else math.inf


class Window:
    """Running sums of the metrics since the last line of metrics.jsonl.

    The step's scalars stay on the device until `BACKLOG` of them have gathered or someone asks,
    so the loop doesn't wait for the device at every step. Sums are made in order in float64 and
    are saved with each checkpoint, so the means don't depend on where a run was interrupted.
    """

    BACKLOG = 128

    def __init__(self, saved: Mapping[str, Any] | None = None):
        saved = saved or {"taken": 0, "skipped": 0, "sums": {}}
        self._taken, self._skipped = saved["taken"], saved["skipped"]
        self._sums: dict[str, float] = dict(saved["sums"])
        self._waiting: list[Mapping[str, Any]] = []

    def add(self, metrics: Mapping[str, Any]) -> bool:
        """Take one step's scalars; True when the backlog was fetched just now."""
        self._waiting.append(metrics)
        if len(self._waiting) < self.BACKLOG:
            return False
        self.fetch()
        return True

    def fetch(self) -> None:
        """Wait for the steps so far and add their scalars up."""
        waiting, self._waiting = self._waiting, []
        for metrics in jax.device_get(waiting):
            if not metrics["ok"]:
                self._skipped += 1
                continue
            self._taken += 1
            for name in sorted(metrics.keys() - {"ok"}):
                self._sums[name] = self._sums.get(name, 0.0) + float(metrics[name])

    def close(self) -> dict[str, Number]:
        """Means over the steps taken, `loss` first, and the number skipped; then start anew."""
        self.fetch()
        names = sorted(self._sums, key=lambda name: (name != "loss", name))
        line: dict[str, Number] = {name: self._sums[name] / self._taken for name in names}
        line["skipped"] = self._skipped
        self._taken, self._skipped, self._sums = 0, 0, {}
        return line

    def save(self) -> dict[str, Any]:
        """What the constructor takes to go on from here."""
        self.fetch()
        return {"taken": self._taken, "skipped": self._skipped, "sums": dict(self._sums)}


def append_timing(path: Path, step: int, steps: int, seconds: float) -> None:
    """One line of timing.jsonl: it differs from run to run, so it isn't in metrics.jsonl."""
    line = {"step": step, "steps": steps, "seconds": round(seconds, 6)}
    with file_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
