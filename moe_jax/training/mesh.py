"""The mesh of devices, and which of its axes splits what: both are declared here, nowhere else."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from moe_jax.errors import UserError
from moe_jax.training.config import MeshConfig
from moe_jax.training.task import Batch

AXES = ("data", "fsdp", "expert")
"""Axes of every mesh, those of size 1 too. Neighbours on the last have the fastest links."""

RULES = {"expert": "expert", "embed": "fsdp", "hidden": "fsdp"}
"""Logical axis of a parameter -> mesh axis that splits it. A mesh axis splits a parameter once."""

MIN_SPLIT = 2**14
"""Numbers in a parameter below which fsdp leaves it whole: sending it would take longer."""


def mesh_sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """The size of each axis, with -1 resolved.

    Raises:
      UserError: the devices don't fit; says how many there are.
    """
    sizes = {name: getattr(config, name) for name in AXES}
    text = ", ".join(f"{name}={size}" for name, size in sizes.items())
    given = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if num_devices % given:
            raise UserError(
                f"train.mesh has {text}: {given} does not divide the {num_devices} devices here"
            )
        return {n: num_devices // given if size == -1 else size for n, size in sizes.items()}
    if given > num_devices:
        raise UserError(f"train.mesh has {text}: {given} devices, but here are {num_devices}")
    return sizes


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config over these devices (None: all there are).

    Raises:
      UserError: they don't fit.
    """
    devices = jax.devices() if devices is None else devices
    sizes = tuple(mesh_sizes(config, len(devices)).values())
    if jax.process_count() > 1 and math.prod(sizes) < len(devices):
        raise UserError(
            f"train.mesh has {math.prod(sizes)} devices, the {jax.process_count()} processes have "
            f"{len(devices)}: with several processes all must be used"
        )
    if config.pmap:
        if jax.process_count() > 1:
            raise UserError("train.mesh.pmap=True works in one process only: leave it False")
        sizes = sizes[:1]
    names = AXES[: len(sizes)]
    return jax.make_mesh(
        sizes, names, devices=devices[: math.prod(sizes)], axis_types=(AxisType.Auto,) * len(names)
    )


def param_spec(
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...] | None,
    mesh: Mesh | AbstractMesh,
) -> jax.P:
    """How a parameter lies on the mesh.

    By its logical axes and RULES where it has them; else fsdp splits the longest of its axes that
    it divides, if the parameter has at least MIN_SPLIT numbers.

    Args:
      name: of the parameter, for errors.
      shape: of the whole parameter.
      axes: logical axis of each of its axes, or None.
      mesh: real or abstract.

    Raises:
      UserError: the number of experts is not a multiple of the expert axis.
      ValueError: another number of logical axes than the parameter has.
    """
    if axes is not None and len(axes) != len(shape):
        raise ValueError(f"{name} has shape {shape}, but axes={axes}: give one name for each")
    spec: list[str | None] = [None] * len(shape)
    large = math.prod(shape) >= MIN_SPLIT
    for i in sorted(range(len(shape)), key=lambda i: -shape[i]):
        wanted = "fsdp" if axes is None else RULES.get(axes[i] or "")
        if wanted is None or wanted in spec or (wanted == "fsdp" and not large):
            continue
        size = mesh.shape.get(wanted, 1)
        if size == 1:
            continue  # and no None at the end: as JAX gives it back, so the step compiles once
        if not shape[i] % size:
            spec[i] = wanted
        elif wanted == "expert":
            raise UserError(
                f"{name} has {shape[i]} experts, which train.mesh.expert={size} does not divide"
            )
    while spec and spec[-1] is None:
        spec.pop()
    return jax.P(*spec)


def place_batch(batch: Batch, mesh: Mesh | AbstractMesh) -> dict[str, Any]:
    """The batch on the devices, its first axis split over all of them; scalars are copied.

    With several processes `batch` is this one's part of it, in equal parts (`Task.train_data`).

    Raises:
      UserError: the devices don't divide the number of examples.
    """
    return {name: _place(name, np.asarray(array), mesh) for name, array in batch.items()}


def batch_spec(array: Any, mesh: Mesh | AbstractMesh) -> jax.P:
    """How an array of a batch lies on the mesh."""
    return jax.P(mesh.axis_names) if array.ndim else jax.P()


def check_batch(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> None:
    """A UserError if the devices don't divide the examples of a batch's array `name`."""
    if shape and shape[0] % mesh.size:
        raise UserError(
            f"a batch has {shape[0]} examples ({name}), which the {mesh.size} devices of "
            "train.mesh do not divide: change the batch size, or use fewer devices "
            "(such as train.mesh.data=1)"
        )


def batch_axes() -> tuple[str, ...]:
    """The mesh axes that the batch is split over where this is called; () outside shard_map.

    For losses over the batch inside `Task.loss`: `load_balance(..., axis_name=batch_axes())`.
    """
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def _place(name: str, array: np.ndarray, mesh: Mesh | AbstractMesh) -> jax.Array:
    shape = array.shape
    if array.ndim:
        shape = (shape[0] * jax.process_count(), *shape[1:])
    check_batch(name, shape, mesh)
    sharding = NamedSharding(mesh, batch_spec(array, mesh))
    return jax.make_array_from_process_local_data(sharding, array, shape)
