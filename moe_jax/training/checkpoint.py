"""Checkpoints: whole or not there, checked byte by byte when read, the newest good one wins.

    checkpoints/400/model/       trained leaves and the rest of the model   (Orbax)
    checkpoints/400/optimizer/   optimizer, PRNG key, step and guard counts (Orbax)
    checkpoints/400/run.json     config, data position, metric sums, shapes, and the SHA-256 of
                                 every other file

A checkpoint is written as `400.partial` and renamed when it is complete. What is restored is, in
this order: the newest step whose files all have their SHA-256; with a warning, the one before it,
and so on; nothing, if there has never been a checkpoint. If there are some but none is whole, that
is an error: starting again is for the user to decide. With several processes each writes the arrays
that its devices hold, and the first one the rest.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from orbax.checkpoint import v1 as ocp

from moe_jax.errors import UserError
from moe_jax.training import hosts
from moe_jax.training.state import Parts, TrainState, abstract_model, own
from moe_jax.training.task import Task

PARTIAL, DELETED, DAMAGED = ".partial", ".deleted", ".damaged"


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint can't be used and the one before it is used instead."""


class _Damaged(Exception):
    """The files of a checkpoint are not those that were written."""


class Found(NamedTuple):
    """A checkpoint whose files are whole."""

    step: int
    path: Path
    run: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a checkpoint carries besides arrays; all JSON.

    Attributes:
      config: the run's config.
      data: the position of the data iterator, from its get_state.
      window: the metric sums since the last line of metrics.jsonl.
    """

    config: dict[str, Any]
    data: Any
    window: dict[str, Any]


class Saver:
    """Saves in a thread of its own, one checkpoint at a time, and keeps the newest few.

    A context manager: leaving it waits for the save under way. A save that failed is reported by
    the next call of `save`, `check` or `wait` as a UserError (full disk, no permission).
    """

    def __init__(self, folder: Path, keep: int):
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
        step, arrays = int(state.step), _arrays(own(state))
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
            run = {"step": step} | dataclasses.asdict(record) | {"arrays": _describe(arrays)}
            _write_record(partial, run)
            if final.exists():
                _delete(final)
            partial.rename(final)
        except Exception as error:
            self._clear(partial.name + "*")
            reason = _disk_error(error)
            if reason is None:
                raise
            raise UserError(self._failure(step, reason)) from error
        for old in list_steps(self._folder)[: -self._keep]:
            _delete(self._folder / str(old))

    def _clear(self, pattern: str) -> None:
        """Remove what an unfinished save or removal left (Orbax adds an ending while it writes)."""
        for leftover in self._folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)

    def _failure(self, step: int, reason: str) -> str:
        left = list_steps(self._folder)
        rest = f"the newest one left is that of step {left[-1]}" if left else "there is none yet"
        return f"{self._folder}: the checkpoint of step {step} was not saved ({reason}); {rest}"


def list_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def newest(folder: Path) -> Found | None:
    """The newest checkpoint whose files are whole; warns of each newer one that is not.

    Returns None if there is no checkpoint at all.

    Raises:
      UserError: there are checkpoints, but all are damaged.
    """
    steps = list_steps(folder)
    for step in reversed(steps):
        path = folder.absolute() / str(step)
        try:
            return Found(step, path, _verified(path))
        except (_Damaged, OSError) as error:
            warnings.warn(
                f"checkpoint {path} is damaged ({error}); trying the one before it",
                DamagedCheckpointWarning,
                stacklevel=2,
            )
    if steps:
        raise UserError(f"{folder}: every checkpoint is damaged; remove the folder to start again")
    return None


def newest_for_all(folder: Path) -> Found | None:
    """`newest`, found by the first process for all of them.

    Raises:
      UserError: there are checkpoints, but all are damaged; on every process.
    """
    mine: list[Found | None] = [None]

    def look() -> int | None:
        mine[0] = newest(folder)
        return mine[0].step if mine[0] else None

    step = hosts.first_does(look)
    if step is None or mine[0] is not None:
        return mine[0]
    path = folder.absolute() / str(step)
    return Found(step, path, _record(path))


def set_aside_newer(folder: Path, step: int) -> None:
    """Rename the (damaged) checkpoints after `step`, so that they are never tried again."""
    for later in list_steps(folder):
        if later > step:
            aside = folder / f"{later}{DAMAGED}"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(later)).rename(aside)


def restore_state(
    found: Found, like: TrainState, shardings: TrainState | None = None
) -> TrainState:
    """The state saved in a checkpoint, whatever mesh it was saved on.

    Args:
      found: the checkpoint.
      like: its structure, shapes and dtypes (abstract or real).
      shardings: where each array is to lie; None: on the first device.

    Raises:
      UserError: the checkpoint is of a model or optimizer with other leaves.
    """
    if shardings is not None:
        like = jax.tree.map(_target, like, shardings)
    arrays = _load(found, _arrays(like))
    model, optimizer = arrays["model"], arrays["optimizer"]
    return TrainState(**model, **optimizer)


def restore_model(task: Task, workdir: Path | str) -> nnx.Module:
    """The task's model as the newest good checkpoint under `workdir` has it.

    Raises:
      UserError: there is no usable checkpoint, or it is of another model.
    """
    return restore_model_at(task, workdir)[0]


def restore_model_at(task: Task, workdir: Path | str) -> tuple[nnx.Module, int]:
    """`restore_model`, and the step of its checkpoint."""
    folder = Path(workdir) / "checkpoints"
    found = newest(folder)
    if found is None:
        raise UserError(f"{folder}: there is no checkpoint; train first")
    parts = Parts(model := abstract_model(task), task.trainable)
    params, rest = parts.split(model)
    arrays = _load(found, {"model": {"params": params, "rest": rest}})
    return parts.merge(**arrays["model"]), found.step


def _arrays(state: TrainState) -> dict[str, Any]:
    fields = state._asdict()
    model = {name: fields.pop(name) for name in ("params", "rest")}
    return {"model": model, "optimizer": fields}


def _load(found: Found, like: dict[str, Any]) -> dict[str, Any]:
    saved, wanted = found.run["arrays"], _describe(like)
    for part, leaves in wanted.items():
        for name in sorted(leaves.keys() | saved[part].keys()):
            one, other = saved[part].get(name, "nothing"), leaves.get(name, "nothing")
            if one != other:
                raise UserError(
                    f"checkpoint {found.path} has {one} at {name}, the model needs {other}: "
                    "it was saved by another version of the code, or for another config"
                )
    return ocp.load_checkpointables(found.path, jax.tree.map(_target, like))


def _target(leaf: Any, sharding: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
    sharding = sharding or getattr(leaf, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _describe(arrays: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Shape and dtype of each leaf by name, for each part."""
    return {
        part: {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{[*leaf.shape]}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for part, tree in arrays.items()
    }


def _write_record(folder: Path, run: dict[str, Any]) -> None:
    run["files"] = {name: _sha256(folder / name) for name in _files(folder)}
    body = json.dumps(run)
    sealed = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "run": body}
    (folder / "run.json").write_text(json.dumps(sealed), encoding="utf-8")


def _verified(folder: Path) -> dict[str, Any]:
    """The content of run.json, once every file has been found to be what was written."""
    run = _record(folder)
    for name, expected in run["files"].items():
        path = folder / name
        if not path.is_file():
            raise _Damaged(f"{name} is missing")
        if _sha256(path) != expected:
            raise _Damaged(f"{name} was changed")
    return run


def _record(folder: Path) -> dict[str, Any]:
    """The content of run.json."""
    try:
        sealed = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        body, digest = sealed["run"], sealed["sha256"]
        if hashlib.sha256(body.encode()).hexdigest() != digest:
            raise _Damaged("run.json was changed")
        return json.loads(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"run.json can't be read: {error}") from error


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
