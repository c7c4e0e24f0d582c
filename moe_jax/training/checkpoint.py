"""Checkpoints: whole or not there, checked byte by byte when read, the newest good one wins.

    checkpoints/400/model/       trained leaves and the rest of the model   (Orbax)
    checkpoints/400/optimizer/   optimizer, PRNG key, step and guard counts (Orbax)
    checkpoints/400/run.json     config, JAX's settings, data position, metric sums, shapes, and the
                                 SHA-256 of every other file

A checkpoint is written as `400.partial` and renamed when it is complete. What is restored is, in
this order: the newest step whose files all have their SHA-256; with a warning, the one before it,
and so on; nothing, if there has never been a checkpoint. If there are some but none is whole, that
is an error: starting again is for the user to decide. With several processes each writes the arrays
that its devices hold, and the first one the rest.
"""

import contextlib
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from orbax.checkpoint import v1 as ocp

from moe_jax.common.files import local_path
from moe_jax.errors import UserError
from moe_jax.training import hosts, seal, settings
from moe_jax.training.retention import Best, Figures
from moe_jax.training.state import Parts, TrainState, abstract_model
from moe_jax.training.task import Task

PARTIAL, DELETED, DAMAGED = ".partial", ".deleted", ".damaged"
NEWEST, BEST = "newest", "best"


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint can't be used and the one before it is used instead."""


class Found(NamedTuple):
    """A checkpoint whose files are whole."""

    step: int
    path: Path
    run: dict[str, Any]


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
            return Found(step, path, seal.verified(path))
        except (seal.Damaged, OSError) as error:
            warnings.warn(
                f"checkpoint {path} is damaged ({error}); trying the one before it",
                DamagedCheckpointWarning,
                stacklevel=2,
            )
    if steps:
        raise UserError(f"{folder}: every checkpoint is damaged; remove the folder to start again")
    return None


def find(folder: Path, which: str) -> Found:
    """The checkpoint that `which` names, as `restore_model_at` does.

    Raises:
      UserError: there is none, or it is damaged.
    """
    steps = list_steps(folder)
    if which == NEWEST or not steps:
        found = newest(folder)
        if found is None:
            raise UserError(f"{folder}: there is no checkpoint; train first")
        return found
    step = _best(folder, steps) if which == BEST else which
    if str(step) not in map(str, steps):
        there = ", ".join(map(str, steps))
        raise UserError(f"{folder}: there is no checkpoint {step}; there are {there}")
    path = folder.absolute() / str(step)
    try:
        return Found(int(step), path, seal.verified(path))
    except (seal.Damaged, OSError) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); name another one") from error


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
    return Found(step, path, seal.record(path))


def set_aside_newer(folder: Path, step: int) -> None:
    """Rename the (damaged) checkpoints after `step`, so that they are never tried again."""
    for later in list_steps(folder):
        if later > step:
            aside = folder / f"{later}{DAMAGED}"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(later)).rename(aside)


def check_settings(found: Found) -> None:
    """That a run goes on under the settings of JAX that it was begun with.

    Raises:
      UserError: one that changes results differs.
    """
    theirs = found.run.get("jax")
    if theirs is None:
        # Checkpoints of older versions tell of the key's kind alone.
        kind = found.run["arrays"]["optimizer"].get("key", "").removesuffix("[]")
        known = {
            str(jax.random.key(0, impl=name).dtype): name
            for name in ("threefry2x32", "rbg", "unsafe_rbg")
        }
        theirs = {"jax_default_prng_impl": known[kind]} if kind in known else {}
    settings.check(theirs, f"checkpoint {found.path}")


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
    arrays = _load(found, arrays_of(like))
    model, optimizer = arrays["model"], arrays["optimizer"]
    return TrainState(**model, **optimizer)


def restore_model(task: Task, workdir: Path | str) -> nnx.Module:
    """The task's model as the newest good checkpoint under `workdir` has it.

    Raises:
      UserError: there is no usable checkpoint, or it is of another model.
    """
    return restore_model_at(task, workdir)[0]


def restore_model_at(
    task: Task, workdir: Path | str, which: str = NEWEST
) -> tuple[nnx.Module, int]:
    """The task's model as a checkpoint has it, and the step of that.

    Args:
      task: what was trained.
      workdir: where.
      which: "newest" (the newest good one), "best" (by the run's train.keep_best), or a step.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or it is of another model.
    """
    folder = local_path(workdir, "workdir") / "checkpoints"
    found = find(folder, which)
    parts = Parts(model := abstract_model(task), task.trainable)
    params, rest = parts.split(model)
    arrays = _load(found, {"model": {"params": params, "rest": rest}})
    return parts.merge(**arrays["model"]), found.step


def _best(folder: Path, steps: list[int]) -> int:
    rule = ""
    for step in reversed(steps):
        with contextlib.suppress(seal.Damaged):
            rule = seal.record(folder / str(step))["config"]["train"]["keep_best"]
            break
    best = Best.parse(rule)
    if best is None:
        raise UserError(
            f"{folder}: the run keeps no best checkpoint (train.keep_best is empty): name a step"
        )
    found = best.of(figures_of(folder, steps))
    if found is None:
        raise UserError(f"{folder}: no checkpoint has a figure {best.name!r} yet")
    return found


def figures_of(folder: Path, steps: list[int]) -> dict[int, Figures]:
    """The figures of the checkpoints; of a damaged one, none."""
    figures: dict[int, Figures] = {}
    for step in steps:
        with contextlib.suppress(seal.Damaged):
            figures[step] = seal.record(folder / str(step)).get("figures", {})
    return figures


def arrays_of(state: TrainState) -> dict[str, Any]:
    """The state in the parts of a checkpoint."""
    fields = state._asdict()
    model = {name: fields.pop(name) for name in ("params", "rest")}
    return {"model": model, "optimizer": fields}


def _load(found: Found, like: dict[str, Any]) -> dict[str, Any]:
    saved, wanted = found.run["arrays"], describe(like)
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


def describe(arrays: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Shape and dtype of each leaf by name, for each part."""
    return {
        part: {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{[*leaf.shape]}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for part, tree in arrays.items()
    }
