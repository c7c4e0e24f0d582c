"""A model as plain dicts of arrays, and all that one training step reads and writes.

The step works on flat dicts {"layers.0.kernel": array}: JAX flattens them in C++ at every call,
checkpoints do not depend on how Flax nests its states, and a bad leaf has a name.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int, Key

from moe_jax.training.task import Filter, Task

Leaves = dict[str, Any]
"""Arrays by dotted path: parameters, and the rest of a model's variables."""


class BadSteps(NamedTuple):
    """What the NaN guard has seen, kept on the device so that no step waits for the host.

    Attributes:
      total: skipped steps since step 0.
      in_a_row: skipped steps up to now without a good one between; the guard latches at
        `max_bad_steps`, after which nothing changes any more.
      last: the last of them, counted from 1.
      where: what was not finite in it: 0 the loss, i + 1 the gradient of the i-th trained leaf
        (from 0, sorted by name).
    """

    total: Int[Array, ""]
    in_a_row: Int[Array, ""]
    last: Int[Array, ""]
    where: Int[Array, ""]


class TrainState(NamedTuple):
    """Everything that a step changes, and the key that every step's key is derived from."""

    step: Int[Array, ""]
    key: Key[Array, ""]
    params: Leaves
    rest: Leaves
    opt_state: optax.OptState
    bad: BadSteps


class Parts:
    """How a model of one structure comes apart into trained leaves and the rest, and together.

    The structure is taken from a model, real or abstract; models built by the same `Task.init`
    have the same.
    """

    def __init__(self, model: nnx.Module, trainable: Filter):
        self._trainable = trainable
        self._graph, *states = nnx.split(model, trainable, ...)
        self._templates = [
            [(path, _fill(leaf, _abstract(leaf))) for path, leaf in nnx.to_flat_state(state)]
            for state in states
        ]
        for template in self._templates:
            names = [_name(path) for path, _ in template]
            if len(set(names)) != len(names):
                raise ValueError("two variables of the model have the same dotted path")
        if not self._templates[0]:
            raise ValueError("Task.trainable selects no variable of the model")

    def split(self, model: nnx.Module) -> tuple[Leaves, Leaves]:
        """(trained leaves, rest). The arrays are the model's own, not copies."""
        _, *states = nnx.split(model, self._trainable, ...)
        params, rest = (
            {_name(path): _value(leaf) for path, leaf in nnx.to_flat_state(state)}
            for state in states
        )
        return params, rest

    def param_axes(self) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...] | None]]:
        """Shape and logical axes (`nnx.Param(..., axes=...)`; None: not given) by name."""
        return {
            _name(path): (tuple(leaf.shape), leaf.get_metadata().get("axes"))
            for path, leaf in self._templates[0]
        }

    def full_precision(self) -> set[str]:
        """Names of parameters that are never rounded (`nnx.Param(..., full_precision=True)`)."""
        return {
            _name(path)
            for path, leaf in self._templates[0]
            if leaf.get_metadata().get("full_precision")
        }

    def check_same(self, model: nnx.Module) -> None:
        """A ValueError if `model` has other leaves than the model this was made from."""
        for template, leaves in zip(self._templates, self.split(model), strict=True):
            was = {_name(path): (leaf.shape, leaf.dtype) for path, leaf in template}
            now = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
            for name in sorted(was.keys() | now.keys()):
                if was.get(name) != now.get(name):
                    raise ValueError(
                        f"Task.prepare changed {name} from {was.get(name)} to {now.get(name)}: "
                        "it must keep the structure and shapes that Task.init gives"
                    )

    def merge(self, params: Leaves, rest: Leaves) -> nnx.Module:
        """A model that holds these arrays (also under a JAX transformation)."""
        states = [
            nnx.from_flat_state([(path, _fill(leaf, leaves[_name(path)])) for path, leaf in flat])
            for flat, leaves in zip(self._templates, (params, rest), strict=True)
        ]
        return nnx.merge(self._graph, *states)


def abstract_model(task: Task) -> nnx.Module:
    """The model that `task.init` builds, shapes and dtypes only: nothing is allocated."""
    return nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))


def streams(seed: int) -> tuple[Array, Array, Array]:
    """Independent keys for `Task.init`, `Task.prepare` and the steps."""
    init, prepare, steps = jax.random.split(jax.random.key(seed), 3)
    return init, prepare, steps


def first_state(
    params: Leaves, rest: Leaves, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """The state before step 0, in buffers of its own.

    `Parts.split` shares its arrays with the model; the step donates its state, and a donated
    buffer is gone, so what it is given must belong to nobody else.
    """
    params, rest = own((params, rest))
    zeros = [jnp.zeros((), jnp.int32) for _ in range(5)]
    return TrainState(zeros[0], key, params, rest, optimizer.init(params), BadSteps(*zeros[1:]))


def own(tree: Any) -> Any:
    """The same tree in fresh device buffers."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path)


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype only, so that a template doesn't keep the first parameters alive."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _fill(template: Any, value: Any) -> Any:
    return template.replace(value) if isinstance(template, nnx.Variable) else value
