"""One training step: a pure function (state, batch) -> (state, metrics), and its optimizer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from moe_jax.training.config import TrainConfig
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
    """Clipping by global norm, then AdamW whose decay leaves out leaves of fewer than two axes."""
    adamw = optax.adamw(
        make_schedule(config),
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params),
    )
    if not config.grad_clip:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.grad_clip), adamw)


def make_step(task: Task, parts: Parts, config: TrainConfig) -> Step:
    """The step to compile with `jax.jit(step, donate_argnums=0)`.

    The random draws of step n come from fold_in(state.key, n): nothing else is carried. If the
    loss or a gradient is not finite, the step counts but changes nothing else: parameters,
    optimizer and running averages stay as they were. The metrics are scalars on the device: the
    task's own, and `loss`, `grad_norm` (before clipping), `learning_rate`, and `ok` (False when
    the step was skipped).
    """
    optimizer, schedule = make_optimizer(config), make_schedule(config)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)

        def objective(params: Leaves):
            model = parts.merge(params, state.rest)
            loss, metrics = task.loss(model, batch, nnx.Rngs(key))
            after = parts.split(model)[1]
            return _scalar(loss), (_checked(metrics), {name: after[name] for name in state.rest})

        with_grads = jax.value_and_grad(objective, has_aux=True)
        (loss, (metrics, rest)), grads = with_grads(state.params)
        squares = jnp.stack([_square(grads[name]) for name in sorted(grads)])
        ok, bad = _guard(loss, squares, state, config.max_bad_steps)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, rest, opt_state = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (params, rest, opt_state),
            (state.params, state.rest, state.opt_state),
        )
        metrics |= {
            "loss": loss,
            "grad_norm": jnp.sqrt(jnp.sum(squares)),
            "learning_rate": jnp.asarray(schedule(state.step - state.bad.total)),
            "ok": ok,
        }
        return TrainState(state.step + 1, state.key, params, rest, opt_state, bad), metrics

    return step


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


def _square(grad: Array) -> Float[Array, ""]:
    return jnp.sum(jnp.square(jnp.abs(grad).astype(jnp.float32)))


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
    return dict(metrics)
