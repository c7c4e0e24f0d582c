"""A training state on a mesh: where its arrays lie, and the sums over devices that follow."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jaxtyping import Array, Float, Key

from moe_jax.training.mesh import batch_spec, param_spec
from moe_jax.training.state import Leaves, Parts, TrainState, own
from moe_jax.training.task import Batch

Mapped = Callable[[TrainState, Batch], tuple[TrainState, Any]]


class Layout:
    """Which mesh axes split each parameter; everything else is the same on every device.

    The methods from `device_key` to `square_sums` are for the step of one device, where the axes
    have names; a gradient there is that of the device's own loss.

    Attributes:
      mesh: real, or abstract for a program that is only traced.
      axes: of the mesh, those with several devices.
      params: how each parameter lies on it, by name.
      dtype: of float32 parameters in the step, those left out that ask for full precision.
    """

    def __init__(self, parts: Parts, mesh: Mesh | AbstractMesh, dtype: str = "float32"):
        self.mesh, self.dtype, self._exact = mesh, jnp.dtype(dtype), parts.full_precision()
        self.axes = tuple(name for name, size in mesh.shape.items() if size > 1)
        self.params = {
            name: param_spec(name, shape, axes, mesh)
            for name, (shape, axes) in parts.param_axes().items()
        }

    def state_specs(self, optimizer: optax.GradientTransformation, state: TrainState) -> TrainState:
        """The state's PartitionSpecs: averages of gradients lie as their parameters do."""
        same = jax.tree.map(lambda _: jax.P(), state._replace(params={}, opt_state=()))
        moments = optax.tree_map_params(
            optimizer,
            lambda _, spec: spec,
            state.opt_state,
            self.params,
            transform_non_params=lambda _: jax.P(),
        )
        return same._replace(params=self.params, opt_state=moments)

    def shardings(self, optimizer: optax.GradientTransformation, state: TrainState) -> TrainState:
        """`state_specs` as shardings."""
        specs = self.state_specs(optimizer, state)
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)

    def map(
        self,
        step: Mapped,
        optimizer: optax.GradientTransformation,
    ) -> Mapped:
        """The step of the mesh from the step of one device."""

        def whole(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
            specs = self.state_specs(optimizer, state)
            # Without check_vma: a task's own loops would have to mark what varies over devices.
            mapped = jax.shard_map(
                step,
                mesh=self.mesh,
                in_specs=(specs, {n: batch_spec(a, self.mesh) for n, a in batch.items()}),
                out_specs=(specs, jax.P()),
                check_vma=False,
            )
            return mapped(state, batch)

        return whole

    def pmap(self, step: Mapped, donate: tuple[int, ...]) -> Mapped:
        """`map` and compiled, by `jax.pmap` over the axis "data" of a mesh that has no other."""
        devices = list(self.mesh.devices.flat) if isinstance(self.mesh, Mesh) else []

        @functools.cache
        def mapped(split: frozenset[str], whole: frozenset[str]) -> Mapped:
            axes = dict.fromkeys(split, 0) | dict.fromkeys(whole, None)
            return jax.pmap(
                step,
                axis_name="data",
                in_axes=(None, axes),
                out_axes=(None, None),
                devices=devices,
                donate_argnums=donate,
            )

        def whole(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
            split = {
                n: a.reshape(len(devices), -1, *a.shape[1:]) for n, a in batch.items() if a.ndim
            }
            scalars = batch.keys() - split.keys()
            return mapped(frozenset(split), frozenset(scalars))(state, {**batch, **split})

        return whole

    def device_key(self, key: Key[Array, ""]) -> Key[Array, ""]:
        """A key of this device's own; on a mesh of one device, the key itself."""
        return key if self.mesh.size == 1 else jax.random.fold_in(key, lax.axis_index(self.axes))

    def rounded(self, params: Leaves) -> Leaves:
        """Parameters in the step's dtype."""

        def one(name: str, leaf: Array) -> Array:
            round_it = leaf.dtype == jnp.float32 and name not in self._exact
            return leaf.astype(self.dtype) if round_it else leaf

        return {name: one(name, leaf) for name, leaf in params.items()}

    def gather(self, params: Leaves) -> Leaves:
        """Parameters as the loss sees them: rounded, and what fsdp splits put together."""

        def one(leaf: Array, spec: jax.P) -> Array:
            if "fsdp" not in spec:
                return leaf
            return lax.all_gather(leaf, "fsdp", axis=spec.index("fsdp"), tiled=True)

        with jax.named_scope("gather_params"):
            return {n: one(leaf, self.params[n]) for n, leaf in self.rounded(params).items()}

    def mean(self, tree: Any) -> Any:
        """Means over devices; counters and keys, the same on all of them, as they are."""

        def one(leaf: Array) -> Array:
            return lax.pmean(leaf, self.axes) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

        with jax.named_scope("mean_metrics"):
            return tree if self.mesh.size == 1 else jax.tree.map(one, tree)

    def mean_grads(self, grads: Leaves) -> Leaves:
        """Gradients of the mean loss, from those of every device's own.

        Where fsdp splits a parameter, a device keeps its part of the sum. The sum over the experts'
        axis was taken on the way back, by the tokens that came from other devices.
        """

        def scatter(name: str, leaf: Array) -> Array:
            spec = self.params[name]
            if "fsdp" not in spec:
                return leaf
            axis = spec.index("fsdp")
            return lax.psum_scatter(leaf, "fsdp", scatter_dimension=axis, tiled=True)

        with jax.named_scope("mean_grads"):
            mine = {name: scatter(name, leaf) for name, leaf in grads.items()}
            sums = self._sum(mine, lambda spec: tuple(a for a in self.axes if a not in spec))
        return jax.tree.map(lambda g: g / self.mesh.size, sums)

    def square_sums(self, grads: Leaves) -> Float[Array, " leaves"]:
        """The sum of squares of each gradient, in the order of sorted names."""
        squares = {n: jnp.sum(jnp.square(jnp.abs(g).astype(jnp.float32))) for n, g in grads.items()}
        with jax.named_scope("grad_norm"):
            sums = self._sum(squares, lambda spec: tuple(a for a in self.axes if a in spec))
        return jnp.stack([sums[name] for name in sorted(sums)])

    def _sum(self, leaves: Leaves, over: Callable[[jax.P], tuple[str, ...]]) -> Leaves:
        """Each leaf summed over the axes that its parameter's spec gives: few, large messages."""
        groups: dict[tuple[str, ...], Leaves] = {}
        for name, leaf in leaves.items():
            groups.setdefault(over(self.params[name]), {})[name] = leaf
        done = [lax.psum(group, axes) if axes else group for axes, group in groups.items()]
        return {name: leaf for group in done for name, leaf in group.items()}


def spread(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has whole, as one array each, laid out over all devices."""
    is_key = jax.tree.map(lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key), tree)
    bare = jax.tree.map(
        lambda a, key: np.asarray(jax.random.key_data(a) if key else a), tree, is_key
    )

    def dressed(bare: Any) -> Any:
        def one(a: Array, like: Array, key: bool) -> Array:
            return jax.random.wrap_key_data(a, impl=jax.random.key_impl(like)) if key else a

        return jax.tree.map(one, bare, tree, is_key)

    return jax.jit(dressed, out_shardings=shardings)(bare)


def whole_copies(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """The arrays put together on this process's first device, in buffers of their own."""
    same = jax.tree.map(lambda _: NamedSharding(mesh, jax.P()), tree)
    everywhere = jax.jit(lambda tree: tree, out_shardings=same)(tree)
    return own(jax.tree.map(lambda leaf: leaf.addressable_data(0), everywhere))
