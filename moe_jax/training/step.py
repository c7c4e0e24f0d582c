"""One training step: a pure function (state, batch) -> (state, metrics), and its optimizer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from moe_jax.training.config import TrainConfig
from moe_jax.training.layout import Layout
from moe_jax.training.state import BadSteps, Leaves, Parts, TrainState
from moe_jax.training.task import Batch, Task

Metrics = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

RESERVED = ("loss", "grad_norm", "learning_rate", "ok")
"""Metrics that the step itself gives; `Task.loss` may not use these names."""


def make_schedule(config: TrainConfig) -> optax.Schedule:
    """Learning rate by the number of updates made.

    rate * n / warmup below `warmup_steps`; then the rate, or with "cosine"
    rate * (1 + cos(pi * (n - warmup) / (steps - warmup))) / 2.
    """
    rate, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, config.steps - warmup)
    else:
        after = optax.constant_schedule(rate)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW whose decay leaves out leaves of fewer than two axes (`clipped` comes before it).

    It works on each number apart, so a part of a parameter is updated as the whole would be.
    """
    return optax.adamw(
        make_schedule(config),
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params),
    )


def make_step(task: Task, parts: Parts, config: TrainConfig, layout: Layout) -> Step:
    """The step of the whole mesh, to compile with `jax.jit(step, donate_argnums=0)`.

    Written for one device with named axes, and mapped over the mesh. Each device computes the loss
    of its part of the batch; the loss minimised is the mean of these, and so are the metrics and
    the variables that are not trained (those of integers and keys must be the same on all). The
    random draws of step n come from fold_in(state.key, n), on a mesh of several devices folded with
    the device's number: nothing else is carried. If the loss or a gradient is not finite, the step
    counts but changes nothing else: parameters, optimizer and running averages stay as they were.
    The metrics are scalars on the device: the task's own, and `loss`, `grad_norm` (before
    clipping), `learning_rate`, and `ok` (False when the step was skipped).
    """
    optimizer, schedule = make_optimizer(config), make_schedule(config)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = layout.device_key(jax.random.fold_in(state.key, state.step))

        def objective(params: Leaves):
            model = parts.merge(layout.gather(params), state.rest)
            loss, metrics = task.loss(model, batch, nnx.Rngs(key))
            after = parts.split(model)[1]
            return _scalar(loss), (_checked(metrics), {name: after[name] for name in state.rest})

        with_grads = jax.value_and_grad(objective, has_aux=True)
        (loss, (metrics, rest)), grads = with_grads(state.params)
        loss, metrics, rest = layout.mean((loss, metrics, rest))
        grads = layout.mean_grads(grads)
        squares = layout.square_sums(grads)
        norm = jnp.sqrt(jnp.sum(squares))
        ok, bad = _guard(loss, squares, state, config.max_bad_steps)
        grads = clipped(grads, norm, config.grad_clip)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, rest, opt_state = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (params, rest, opt_state),
            (state.params, state.rest, state.opt_state),
        )
        metrics |= {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step - state.bad.total)),
            "ok": ok,
        }
        return TrainState(state.step + 1, state.key, params, rest, opt_state, bad), metrics

    return layout.map(step, optimizer)


def _guard(
    loss: Float[Array, ""], squares: Float[Array, " leaves"], state: TrainState, limit: int
) -> tuple[Bool[Array, ""], BadSteps]:
    """Is this step to be taken, and the counts after it.

    A leaf's sum of squares is finite exactly when its entries are, and their squares: a gradient
    of 1e20 or more is as useless to Adam as an infinite one.
    """
    bad = state.bad
    finite = jnp.isfinite(jnp.concatenate([loss[None].astype(jnp.float32), squares]))
    latched = bad.in_a_row >= limit
    fault = ~jnp.all(finite) & ~latched
    after = BadSteps(
        total=bad.total + fault,
        in_a_row=jnp.where(fault | latched, bad.in_a_row + fault, 0),
        last=jnp.where(fault, state.step + 1, bad.last),
        where=jnp.where(fault, jnp.argmin(finite).astype(jnp.int32), bad.where),
    )
    return ~(fault | latched), after


def clipped(grads: Leaves, norm: Float[Array, ""], limit: float) -> Leaves:
    """Gradients of a global norm of at most `limit` (0: as they are)."""
    if not limit:
        return grads
    return jax.tree.map(
        lambda g: jnp.where(norm < limit, g, (g / norm.astype(g.dtype)) * limit), grads
    )


def _scalar(loss: Array) -> Array:
    if jnp.shape(loss) != ():
        raise ValueError(f"Task.loss gave a loss of shape {jnp.shape(loss)}: must be a scalar")
    return loss


def _checked(metrics: Metrics) -> Metrics:
    for name, value in metrics.items():
        if name in RESERVED:
            raise ValueError(f"Task.loss gave a metric named {name!r}, which the step itself gives")
        if jnp.shape(value) != ():
            raise ValueError(
                f"Task.loss gave metric {name!r} of shape {jnp.shape(value)}, must be a scalar"
            )
    return {n: v if _inexact(v) else jnp.float32(v) for n, v in metrics.items()}


def _inexact(value: Array) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)
