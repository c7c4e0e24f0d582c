"""An exchange by buffers: as many rounds as the fullest pair of devices needs."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from moe_kernels import vjp
from moe_kernels.arguments import Experts
from moe_kernels.expert_parallel.exchange import (
    Sizes,
    combine,
    dispatch,
    exchange,
    exchange_sizes,
    loads,
    make_buffer,
)
from moe_kernels.first_order import reverse_only
from moe_kernels.plan import Plan, make_plan
from moe_kernels.varying import match_axes

ONLY_ONCE = (
    "moe_ffn_expert_parallel has first derivatives in reverse mode only (jax.grad, jax.vjp); for "
    "jax.jvp, jax.hessian and other second derivatives use exchange='all_gather' with "
    "backend='reference', or moe_ffn with backend='reference'"
)


class ExchangePlan(NamedTuple):
    """What is fixed while tracing."""

    axis_name: str
    peers: int
    rows: int  # that a round sends to each peer
    ragged: bool  # moves only the rows in use
    options: vjp.Options


def exchanged(
    exchange_plan: ExchangePlan, x: Array, expert: Array, weight: Array, experts: Experts
) -> Array:
    """Y of this device's tokens, whose choices travel to the owners of their experts and back.

    Arguments are those of `moe_ffn_expert_parallel`, checked, of at least one token.
    """
    passes = [partial(f, exchange_plan) for f in (_rounds, _rounds_fwd, _rounds_kept, _rounds_bwd)]
    return reverse_only(ONLY_ONCE, *passes)(x, expert, weight, experts)


def _round(
    exchange_plan: ExchangePlan,
    plan: Plan,
    expert: Array,
    index: Array | int,
    x: Array,
    weight: Array,
    experts: Experts,
) -> Array:
    """What the choices of one round contribute to y."""
    axis_name, peers, rows, ragged, options = exchange_plan
    buffer = make_buffer(plan, expert, peers, rows, index)
    with jax.named_scope("dispatch"):
        sizes: Sizes | None = exchange_sizes(buffer.sent, axis_name) if ragged else None
        # Few bytes: always all rows, so that empty ones arrive as such.
        ids = exchange(buffer.expert, None, axis_name)
        weight_r = weight.reshape(-1).at[buffer.slot].get(mode="fill", fill_value=0)
        weights = exchange(weight_r, None, axis_name)
        received = exchange(dispatch(options.backend, x, buffer), sizes, axis_name)
    y = vjp.moe_ffn(received, ids[:, None], weights[:, None], experts, options=options)
    with jax.named_scope("combine"):
        back = exchange(y, None if sizes is None else sizes.back(), axis_name)
        return combine(options.backend, back, buffer)


def _rounds(
    exchange_plan: ExchangePlan, x: Array, expert: Array, weight: Array, experts: Experts
) -> Array:
    plan, number = _start(exchange_plan, expert, experts)
    y = _round(exchange_plan, plan, expert, 0, x, weight, experts)
    return _further(
        exchange_plan, number, y, partial(_round, exchange_plan, plan, expert), x, weight, experts
    )


def _rounds_fwd(
    exchange_plan: ExchangePlan, x: Array, expert: Array, weight: Array, experts: Experts
) -> tuple[Array, Any]:
    plan, number = _start(exchange_plan, expert, experts)
    one = partial(_round, exchange_plan, plan, expert)
    y, pull = jax.vjp(partial(one, 0), x, weight, experts)
    y = _further(exchange_plan, number, y, one, x, weight, experts)
    return y, (pull, plan, number)


def _rounds_kept(exchange_plan: ExchangePlan, *args: Any) -> Any:
    return args


def _rounds_bwd(exchange_plan: ExchangePlan, kept: Any, made: Any, dy: Array) -> tuple[Any, ...]:
    x, expert, weight, experts = kept
    pull, plan, number = made

    def one(index: Array, *args: Any) -> Any:
        return jax.vjp(partial(_round, exchange_plan, plan, expert, index), *args)[1](dy)

    grads = _further(exchange_plan, number, pull(dy), one, x, weight, experts)
    dx, dweight, dexperts = grads
    return dx, None, dweight, dexperts


def _start(exchange_plan: ExchangePlan, expert: Array, experts: Experts) -> tuple[Plan, Array]:
    """The plan over all experts, and how many rounds the fullest pair of the axis needs."""
    plan = make_plan(expert, exchange_plan.peers * experts.w_in.shape[0])
    if _one_round(exchange_plan, expert):
        return plan, jnp.int32(1)
    most = jnp.max(loads(plan, exchange_plan.peers))
    with jax.named_scope("dispatch"):
        return plan, lax.pmax(-(-most // exchange_plan.rows), exchange_plan.axis_name)


def _one_round(exchange_plan: ExchangePlan, slots: Array) -> bool:
    """Has the first round room for everything, whatever the load?"""
    return exchange_plan.rows >= slots.size


def _further(exchange_plan: ExchangePlan, number: Array, total: Any, one: Any, *args: Any) -> Any:
    """`total` plus one(index, *args) for rounds 1, 2, ...; args[1] is weight."""
    if _one_round(exchange_plan, args[1]):
        return total

    def body(state: tuple[Array, Any]) -> tuple[Array, Any]:
        index, total = state
        return index + 1, jax.tree.map(jnp.add, total, one(index, *args))

    start = match_axes((jnp.int32(1), number, total))
    return lax.while_loop(lambda state: state[0] < start[1], body, (start[0], start[2]))[1]
