"""What a run would be on a mesh, without a step: what lies where, how large, what is sent."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from moe_jax.training.collectives import Collective, collectives
from moe_jax.training.config import TrainConfig
from moe_jax.training.layout import Layout
from moe_jax.training.mesh import AXES, batch_spec, check_batch, make_mesh, mesh_sizes
from moe_jax.training.state import Parts, TrainState, abstract_model, first_state, streams
from moe_jax.training.step import make_optimizer, make_step
from moe_jax.training.task import Batch, Task


class Parameter(NamedTuple):
    """A trained parameter and its part on one device.

    Attributes:
      name: dotted.
      shape: of the whole.
      dtype: of the whole.
      spec: the mesh axis that splits each axis, as far as one does.
      bytes: of a device's part.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: jax.P
    bytes: int


class DryRun(NamedTuple):
    """What `dry_run` finds.

    Attributes:
      sizes: of the mesh's axes, by name.
      real: are these devices there?
      parameters: in the order of their names.
      memory: bytes on each device, by what for. Not in it are activations.
      temporary: bytes on each device that the compiled step takes beside its arguments and results
        (activations, gradients, parameters put together); None where no such devices are there.
      collectives: of one step, in order.
    """

    sizes: dict[str, int]
    real: bool
    parameters: list[Parameter]
    memory: dict[str, int]
    temporary: int | None
    collectives: list[Collective]


def dry_run(task: Task, config: TrainConfig, num_devices: int | None = None) -> DryRun:
    """Trace the step of a run on a mesh, without making a parameter or moving a byte.

    Args:
      task: what would be trained.
      config: how.
      num_devices: of a machine that need not exist; None: the devices that are here, for which the
        step is compiled too.

    Raises:
      UserError: the devices don't fit the mesh, the batch or the experts.
    """
    config.validate()
    mesh: Mesh | AbstractMesh
    if num_devices is None:
        mesh = make_mesh(config.mesh)
    else:
        sizes = tuple(mesh_sizes(config.mesh, num_devices).values())
        mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    parts = Parts(model := abstract_model(task), task.trainable)
    layout, optimizer = Layout(parts, mesh, config.dtype), make_optimizer(config)
    key = streams(config.seed)[2]
    state = jax.eval_shape(lambda p, r: first_state(p, r, optimizer, key), *parts.split(model))
    batch = task.batch_like()
    for name, array in batch.items():
        check_batch(name, array.shape, mesh)
    program = jax.make_jaxpr(make_step(task, parts, config, layout))(state, batch)
    temporary = None
    if num_devices is None:
        step = jax.jit(make_step(task, parts, config, layout), donate_argnums=0)
        lowered = step.lower(
            _laid(state, layout.shardings(optimizer, state)),
            {n: _laid(a, jax.NamedSharding(mesh, batch_spec(a, mesh))) for n, a in batch.items()},
        )
        memory = lowered.compile().memory_analysis()
        temporary = memory.temp_size_in_bytes if memory is not None else None
    return DryRun(
        dict(mesh.shape),
        num_devices is None,
        [_parameter(name, state.params[name], layout) for name in sorted(state.params)],
        _memory(layout, state, layout.state_specs(optimizer, state), batch),
        temporary,
        collectives(program, mesh.shape),
    )


def _laid(tree: Any, shardings: Any) -> Any:
    def one(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, tree, shardings)


def _parameter(name: str, leaf: Any, layout: Layout) -> Parameter:
    spec = layout.params[name]
    return Parameter(name, leaf.shape, str(leaf.dtype), spec, _part(leaf, spec, layout.mesh))


def _memory(layout: Layout, state: TrainState, specs: TrainState, batch: Batch) -> dict[str, int]:
    mesh = layout.mesh
    memory = {
        "parameters": _sum(state.params, specs.params, mesh),
        "optimizer": _sum(state.opt_state, specs.opt_state, mesh),
        "gradients": _sum(state.params, _together(layout), mesh),
        "other variables": _sum(state.rest, specs.rest, mesh),
        "batch": sum(_part(a, batch_spec(a, mesh), mesh) for a in batch.values()),
    }
    seen = jax.eval_shape(layout.rounded, state.params)
    if memory["gradients"] > memory["parameters"] or layout.dtype != jnp.float32:
        memory["parameters as the loss sees them"] = _sum(seen, _together(layout), mesh)
    return memory


def _together(layout: Layout) -> dict[str, jax.P]:
    """How parameters lie once fsdp has put them together."""
    return {
        name: jax.P(*(None if axis == "fsdp" else axis for axis in spec))
        for name, spec in layout.params.items()
    }


def _sum(tree: Any, specs: Any, mesh: Mesh | AbstractMesh) -> int:
    return sum(jax.tree.leaves(jax.tree.map(lambda a, spec: _part(a, spec, mesh), tree, specs)))


def _part(leaf: Any, spec: jax.P, mesh: Mesh | AbstractMesh) -> int:
    """Bytes of an array on one device."""
    names = [n for axis in spec for n in (axis if isinstance(axis, tuple) else (axis,)) if n]
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    return size // math.prod(mesh.shape[n] for n in names)
