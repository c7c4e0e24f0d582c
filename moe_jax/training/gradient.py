"""The gradient of a task's loss on one device's part of a batch, whole or in pieces."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key

from moe_jax.errors import UserError
from moe_jax.training.state import Leaves, Parts
from moe_jax.training.task import Batch, Task

Metrics = dict[str, Array]

RESERVED = ("loss", "grad_norm", "learning_rate", "ok")
"""Metrics that the step itself gives; `Task.loss` may not use these names."""


class Gradient(NamedTuple):
    """What the loss says about one batch.

    Attributes:
      grads: by parameter; in pieces, their mean, in float32 at least.
      loss: likewise.
      metrics: the task's own, floats.
      rest: the variables that are not trained, after the batch.
    """

    grads: Leaves
    loss: Float[Array, ""]
    metrics: Metrics
    rest: Leaves


def make_gradient(
    task: Task, parts: Parts, pieces: int
) -> Callable[[Leaves, Leaves, Batch, Key[Array, ""]], Gradient]:
    """The function (params, rest, batch, key) -> Gradient.

    With several pieces the batch is cut into as many equal ones, worked through in order: each
    sees the `rest` that the one before left, and a key of its own.

    Raises (the function):
      UserError: the pieces don't divide the examples.
      ValueError: `Task.loss` gives something else than scalars, or a reserved name.
    """

    def whole(params: Leaves, rest: Leaves, batch: Batch, key: Key[Array, ""]) -> Gradient:
        def objective(params: Leaves) -> tuple[Array, tuple[Metrics, Leaves]]:
            model = parts.merge(params, rest)
            with jax.named_scope("loss"):
                loss, metrics = task.loss(model, batch, nnx.Rngs(key))
            after = parts.split(model)[1]
            return _scalar(loss), (_checked(metrics), {name: after[name] for name in rest})

        (loss, (metrics, after)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return Gradient(grads, loss, metrics, after)

    def in_pieces(params: Leaves, rest: Leaves, batch: Batch, key: Key[Array, ""]) -> Gradient:
        scalars = {name: array for name, array in batch.items() if not array.ndim}
        cut = {n: _cut(n, array, pieces) for n, array in batch.items() if array.ndim}

        def one(
            sums: Any, rest: Leaves, piece: dict[str, Array], number: Array
        ) -> tuple[Any, Leaves]:
            out = whole(params, rest, piece | scalars, jax.random.fold_in(key, number))
            mine = (out.grads, out.loss, out.metrics)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, mine), out.rest

        def body(carry: tuple[Any, Leaves], inputs: Any) -> tuple[tuple[Any, Leaves], None]:
            return one(*carry, *inputs), None

        first = {name: array[0] for name, array in cut.items()}
        like = jax.eval_shape(whole, params, rest, {**first, **scalars}, key)
        zeros = jax.tree.map(_zero, (like.grads, like.loss, like.metrics))
        (sums, rest), _ = lax.scan(body, (zeros, rest), (cut, jnp.arange(pieces)))
        grads, loss, metrics = jax.tree.map(lambda a: a / pieces, sums)
        return Gradient(grads, loss, metrics, rest)

    return whole if pieces == 1 else in_pieces


def _cut(name: str, array: Array, pieces: int) -> Array:
    if array.shape[0] % pieces:
        raise UserError(
            f"each device has {array.shape[0]} examples of a batch ({name}), which "
            f"train.accumulate={pieces} does not divide: change it, or the batch size"
        )
    return array.reshape(pieces, -1, *array.shape[1:])


def _zero(like: jax.ShapeDtypeStruct) -> Array:
    return jnp.zeros(like.shape, jnp.promote_types(like.dtype, jnp.float32))


def _scalar(loss: Array) -> Array:
    if jnp.shape(loss) != ():
        raise ValueError(f"Task.loss gave a loss of shape {jnp.shape(loss)}: must be a scalar")
    return loss


def _checked(metrics: dict[str, Any]) -> Metrics:
    for name, value in metrics.items():
        if name in RESERVED:
            raise ValueError(f"Task.loss gave a metric named {name!r}, which the step itself gives")
        if jnp.shape(value) != ():
            raise ValueError(
                f"Task.loss gave metric {name!r} of shape {jnp.shape(value)}, must be a scalar"
            )
    arrays = {name: jnp.asarray(value) for name, value in metrics.items()}
    return {
        name: a if jnp.issubdtype(a.dtype, jnp.inexact) else a.astype(jnp.float32)
        for name, a in arrays.items()
    }
