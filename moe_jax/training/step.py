"""One training step: a pure function (state, batch) -> (state, metrics), and its optimizer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from moe_jax.training.config import TrainConfig
from moe_jax.training.gradient import Metrics, make_gradient
from moe_jax.training.layout import Layout
from moe_jax.training.state import BadSteps, Leaves, Parts, TrainState
from moe_jax.training.task import Batch, Task

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


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
    return layout.map(_device_step(task, parts, config, layout), make_optimizer(config))


def compile_step(task: Task, parts: Parts, config: TrainConfig, layout: Layout) -> Step:
    """`make_step`, compiled, the state donated (or by `jax.pmap`, if the config says so)."""
    # JAX looks for the first NaN by running the step again, on what it was given.
    donate = () if jax.debug_nans.value else (0,)
    if config.mesh.pmap:
        return layout.pmap(_device_step(task, parts, config, layout), donate)
    return jax.jit(make_step(task, parts, config, layout), donate_argnums=donate)


def _device_step(task: Task, parts: Parts, config: TrainConfig, layout: Layout) -> Step:
    """What one device does."""
    optimizer, schedule = make_optimizer(config), make_schedule(config)
    gradient = make_gradient(task, parts, config.accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = layout.device_key(jax.random.fold_in(state.key, state.step))
        out = gradient(layout.gather(state.params), state.rest, batch, key)
        loss, metrics, rest = layout.mean((out.loss, out.metrics, out.rest))
        grads = {n: g.astype(state.params[n].dtype) for n, g in out.grads.items()}
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


def clipped(grads: Leaves, norm: Float[Array, ""], limit: float) -> Leaves:
    """Gradients of a global norm of at most `limit` (0: as they are)."""
    if not limit:
        return grads
    return jax.tree.map(
        lambda g: jnp.where(norm < limit, g, (g / norm.astype(g.dtype)) * limit), grads
    )
