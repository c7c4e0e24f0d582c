"""The layer as one differentiable function: plan, forward and backward of whichever backend.

Kept for the backward pass: the arguments, the pre-activations (unless they are recomputed) and the
plan's integers.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Float, Int

from moe_kernels import backends, reference
from moe_kernels.arguments import Experts
from moe_kernels.first_order import reverse_only
from moe_kernels.plan import Plan

H_IN, H_GATE, PLAN = RESIDUALS = ("moe_h_in", "moe_h_gate", "moe_plan")
"""Names (`jax.ad_checkpoint.checkpoint_name`) of what is kept for the backward pass besides the
arguments: the pre-activations and the integers of the plan. For the policies of `jax.checkpoint`.
"""


class Options(NamedTuple):
    """What is fixed while tracing."""

    activation: str
    backend: str | None  # None: by platform
    recompute: bool  # pre-activations are made again in the backward pass, not kept
    precision: str | None  # of products: what jax.default_matmul_precision takes


class Saved(NamedTuple):
    """What the forward pass keeps for the backward pass, besides its arguments."""

    plan: Plan
    h_in_sf: Array | None  # x W_in + b_in, rows in the plan's order and PADDING more
    h_gate_sf: Array | None


@partial(jax.jit, static_argnames="options")
def moe_ffn(
    x_td: Float[Array, "t d"],
    expert_tk: Int[Array, "t k"],
    weight_tk: Float[Array, "t k"],
    experts: Experts,
    *,
    options: Options,
) -> Float[Array, "t d"]:
    """The same function as `reference.moe_ffn`, doing only the routed work.

    Except for the reference itself, only first-order reverse-mode derivatives exist. Under vmap,
    experts that are not mapped see all tokens in one call; mapped experts, and derivatives, take
    one loop step per mapped element.
    """
    if options.backend == "reference":
        with jax.default_matmul_precision(options.precision):
            return reference.moe_ffn(
                x_td, expert_tk, weight_tk, experts, activation=options.activation
            )
    if x_td.shape[0] == 0:
        return x_td
    plain, forward, keep, backward = (partial(f, options) for f in (_plain, _fwd, _keep, _bwd))
    why = backends.only_once(options.backend)
    own = reverse_only(why, plain, forward, keep, backward, named=_named)
    return own(x_td, expert_tk, weight_tk, experts)


def _plain(
    options: Options, x_td: Array, expert_tk: Array, weight_tk: Array, experts: Experts
) -> Array:
    def plain(*args: Any) -> Array:
        return _forward(options, False, *args)[0]

    flat = custom_vmap(plain)

    @flat.def_vmap
    def batched(size: int, mapped: Any, *args: Any) -> tuple[Array, bool]:
        if any(jax.tree.leaves(mapped[3])):
            axes = jax.tree.map(lambda m: 0 if m else None, tuple(mapped))
            return jax.vmap(sequential_vmap(plain), in_axes=axes)(*args), True
        each = [
            a if m else jnp.broadcast_to(a[None], (size, *a.shape))
            for a, m in zip(args[:3], mapped[:3], strict=True)
        ]
        y = flat(*(a.reshape(-1, a.shape[-1]) for a in each), args[3])
        return y.reshape(size, -1, y.shape[-1]), True

    return flat(x_td, expert_tk, weight_tk, experts)


def _fwd(options: Options, *args: Any) -> tuple[Array, Saved]:
    def both(*args: Any) -> tuple[Array, Saved]:
        return _forward(options, not options.recompute, *args)

    return sequential_vmap(both)(*args)


def _keep(
    options: Options, x_td: Array, expert_tk: Array, weight_tk: Array, experts: Experts
) -> tuple[Array, Array, Experts]:
    return x_td, weight_tk, experts


def _named(saved: Saved) -> Saved:
    plan, h_in_sf, h_gate_sf = saved
    return Saved(
        jax.tree.map(lambda a: checkpoint_name(a, PLAN), plan),
        None if h_in_sf is None else checkpoint_name(h_in_sf, H_IN),
        None if h_gate_sf is None else checkpoint_name(h_gate_sf, H_GATE),
    )


def _bwd(options: Options, kept: Any, saved: Saved, dy_td: Array) -> tuple[Any, ...]:
    def pull(*args: Any) -> tuple[Array, Array, Experts]:
        return _backward(options, *args)

    dx_td, dweight_tk, dexperts = sequential_vmap(pull)(*kept, saved, dy_td)
    return dx_td, None, dweight_tk, dexperts


def _forward(
    options: Options, keep: bool, x_td: Array, expert_tk: Array, weight_tk: Array, experts: Experts
) -> tuple[Array, Saved]:
    """y, and what `_backward` needs (no pre-activations unless `keep`)."""
    num_experts = experts.w_in.shape[0]
    plan = backends.run(
        options.backend, "make_plan", {"expert_tk": expert_tk}, num_experts=num_experts
    )
    with jax.default_matmul_precision(options.precision):
        y_td, h_in_sf, h_gate_sf = backends.run(
            options.backend,
            "forward",
            {"x_td": x_td, "weight_tk": weight_tk, "experts": experts, "plan": plan},
            activation=options.activation,
            keep=keep,
        )
    return y_td, Saved(plan, h_in_sf, h_gate_sf)


def _backward(
    options: Options, x_td: Array, weight_tk: Array, experts: Experts, saved: Saved, dy_td: Array
) -> tuple[Array, Array, Experts]:
    """The gradients of x, weight and the parameters, each in its own dtype."""
    arrays = {"x_td": x_td, "weight_tk": weight_tk, "experts": experts, "dy_td": dy_td}
    with jax.default_matmul_precision(options.precision):
        return backends.run(
            options.backend,
            "backward",
            arrays | saved._asdict(),
            activation=options.activation,
        )
