"""`moe_ffn` with the experts spread over the devices of a mesh axis (expert parallelism)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_kernels import layer
from moe_kernels.arguments import Experts, check
from moe_kernels.backends import choose
from moe_kernels.exchange import Sizes, agree, collect, fill, loads, make_round, transfer
from moe_kernels.first_order import reverse_only
from moe_kernels.manual_axes import unify
from moe_kernels.plan import Plan, make_plan
from moe_kernels.precision import resolve

EXCHANGES = ("all_to_all", "ragged_all_to_all", "all_gather")
SLACK = 1.25
"""Room in the buffers of a round, over what an even load needs."""

ONLY_ONCE = (
    "moe_ffn_expert_parallel has first derivatives in reverse mode only (jax.grad, jax.vjp); for "
    "jax.jvp, jax.hessian and other second derivatives use exchange='all_gather' with "
    "backend='reference', or moe_ffn with backend='reference'"
)


class How(NamedTuple):
    """What is fixed while tracing."""

    axis_name: str
    peers: int
    rows: int  # in the buffer, for each peer
    ragged: bool
    options: layer.Options


def moe_ffn_expert_parallel(
    x: Float[Array, "t d"],
    expert: Int[Array, "t k"],
    weight: Float[Array, "t k"],
    w_in: Float[Array, "e d f"],
    w_out: Float[Array, "e f d"],
    *,
    axis_name: str,
    exchange: str = "all_to_all",
    rows_per_peer: int | None = None,
    w_gate: Float[Array, "e d f"] | None = None,
    b_in: Float[Array, "e f"] | None = None,
    b_gate: Float[Array, "e f"] | None = None,
    b_out: Float[Array, "e d"] | None = None,
    activation: str = "silu",
    recompute: bool = False,
    precision: lax.Precision | str | None = None,
    backend: str | None = None,
) -> Float[Array, "t d"]:
    """`moe_ffn` inside `jax.shard_map`, each of the n devices of an axis owning e experts.

    Tokens and parameters are the device's own; expert ids count over all devices: device i owns
    experts i * e to (i + 1) * e - 1, and n * e means dropped. Nothing is ever dropped here: the
    result is that of `moe_ffn` with all experts in one place, up to the order of sums.

    The exchanges:

    * "all_to_all": activations travel to the owners of their experts and back, in buffers of
      `rows_per_peer` rows for each pair of devices. What finds no room goes in further rounds, as
      many as the fullest pair needs: one when the load is even. The backward pass computes the
      further rounds again, so that memory does not depend on the load.
    * "ragged_all_to_all": the same, moving only the rows in use (GPU, TPU; not XLA for CPU).
    * "all_gather": every device sees all tokens of the axis and does its experts' part; the parts
      are summed (reduce-scatter). For few tokens, or k near n or above.

    Bytes that a device sends forward, with t * k choices of width d (as many come back in the
    gradient): all_to_all 2 (n-1) * rows_per_peer * d * itemsize, about 2.5 (n-1)/n * t * k * d *
    itemsize a round; all_gather 2 (n-1) * t * d * itemsize.

    Args:
      x: this device's tokens.
      expert: their experts.
      weight: their combine weights.
      w_in: up-projections of this device's experts; the other parameters likewise.
      w_out: down-projections.
      axis_name: mesh axis that the experts are spread over.
      exchange: how tokens and experts meet.
      rows_per_peer: c, rows in the buffer of a round for each pair of devices; None: 1.25 times the
        even share t * k / n, rounded up to a multiple of 8.
      w_gate: gate projections, or None.
      b_in: bias, or None.
      b_gate: bias, or None.
      b_out: bias, or None.
      activation: as in `moe_ffn`.
      recompute: as in `moe_ffn`.
      precision: as in `moe_ffn`.
      backend: as in `moe_ffn`.

    Returns:
      y, in the dtype of x. Reverse-mode derivatives exist for x, weight and every parameter; those
      of a parameter are the device's own part where the experts are also copied over another axis,
      unless shard_map checks types (check_vma), where JAX sums them.

    Raises:
      ValueError: a shape, dtype or name is wrong; the message names the argument.
    """
    if exchange not in EXCHANGES:
        raise ValueError(f"exchange={exchange!r} is none of {', '.join(EXCHANGES)}")
    peers = _axis_size(axis_name)
    x, expert, weight, experts = check(
        x,
        expert,
        weight,
        Experts(w_in, w_out, w_gate, b_in, b_gate, b_out),
        activation,
        num_experts=peers * w_in.shape[0],
    )
    if rows_per_peer is not None and rows_per_peer < 1:
        raise ValueError(f"rows_per_peer={rows_per_peer} must be at least 1")
    if backend is not None:
        choose(backend)
    options = layer.Options(activation, backend, recompute, resolve(precision))
    x, expert, weight, experts = unify((x, expert, weight, experts))
    if x.shape[0] == 0:
        return x
    if exchange == "all_gather":
        return _gathered(axis_name, options, x, expert, weight, experts)
    slots = expert.size
    even = -(-int(SLACK * slots) // peers)
    rows = min(rows_per_peer or -(-even // 8) * 8, slots)
    how = How(axis_name, peers, rows, exchange == "ragged_all_to_all", options)
    passes = [partial(f, how) for f in (_rounds, _rounds_fwd, _rounds_kept, _rounds_bwd)]
    return reverse_only(ONLY_ONCE, *passes)(x, expert, weight, experts)


def _axis_size(axis_name: str) -> int:
    try:
        return lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"axis_name={axis_name!r} is no axis of a mesh here: call this inside jax.shard_map "
            "over a mesh that has it"
        ) from None


def _gathered(
    axis_name: str, options: layer.Options, x: Array, expert: Array, weight: Array, experts: Experts
) -> Array:
    """All tokens of the axis through this device's experts, summed over devices."""
    with jax.named_scope("dispatch"):
        x, expert, weight = (lax.all_gather(a, axis_name, tiled=True) for a in (x, expert, weight))
    share = experts.w_in.shape[0]
    local = expert - share * lax.axis_index(axis_name).astype(expert.dtype)
    local = jnp.where((local >= 0) & (local < share), local, share)
    y = layer.moe_ffn(x, local, weight, experts, options=options)
    with jax.named_scope("combine"):
        return lax.psum_scatter(y, axis_name, scatter_dimension=0, tiled=True)


def _round(
    how: How,
    plan: Plan,
    expert: Array,
    index: Array | int,
    x: Array,
    weight: Array,
    experts: Experts,
) -> Array:
    """What the choices of one round contribute to y."""
    backend = how.options.backend
    trip = make_round(plan, expert, how.peers, how.rows, index)
    with jax.named_scope("dispatch"):
        sizes: Sizes | None = agree(trip.sent, how.axis_name) if how.ragged else None
        # Few bytes: always whole buffers, so that empty rows arrive as such.
        ids = transfer(trip.expert, None, how.axis_name)
        weight_r = weight.reshape(-1).at[trip.slot].get(mode="fill", fill_value=0)
        weights = transfer(weight_r, None, how.axis_name)
        rows = transfer(fill(backend, x, trip), sizes, how.axis_name)
    y = layer.moe_ffn(rows, ids[:, None], weights[:, None], experts, options=how.options)
    with jax.named_scope("combine"):
        back = transfer(y, None if sizes is None else sizes.back(), how.axis_name)
        return collect(backend, back, trip)


def _rounds(how: How, x: Array, expert: Array, weight: Array, experts: Experts) -> Array:
    plan, number = _start(how, expert, experts)
    y = _round(how, plan, expert, 0, x, weight, experts)
    return _further(how, number, y, partial(_round, how, plan, expert), x, weight, experts)


def _rounds_fwd(
    how: How, x: Array, expert: Array, weight: Array, experts: Experts
) -> tuple[Array, Any]:
    plan, number = _start(how, expert, experts)
    one = partial(_round, how, plan, expert)
    y, pull = jax.vjp(partial(one, 0), x, weight, experts)
    y = _further(how, number, y, one, x, weight, experts)
    return y, (pull, plan, number)


def _rounds_kept(how: How, *args: Any) -> Any:
    return args


def _rounds_bwd(how: How, kept: Any, made: Any, dy: Array) -> tuple[Any, ...]:
    x, expert, weight, experts = kept
    pull, plan, number = made

    def one(index: Array, *args: Any) -> Any:
        return jax.vjp(partial(_round, how, plan, expert, index), *args)[1](dy)

    grads = _further(how, number, pull(dy), one, x, weight, experts)
    dx, dweight, dexperts = grads
    return dx, None, dweight, dexperts


def _start(how: How, expert: Array, experts: Experts) -> tuple[Plan, Array]:
    """The plan over all experts, and how many rounds the fullest pair of the axis needs."""
    plan = make_plan(expert, how.peers * experts.w_in.shape[0])
    if _one_round(how, expert):
        return plan, jnp.int32(1)
    most = jnp.max(loads(plan, how.peers))
    with jax.named_scope("dispatch"):
        return plan, lax.pmax(-(-most // how.rows), how.axis_name)


def _one_round(how: How, slots: Array) -> bool:
    """Has the first round room for everything, whatever the load?"""
    return how.rows >= slots.size


def _further(how: How, number: Array, total: Any, one: Any, *args: Any) -> Any:
    """`total` plus one(index, *args) for rounds 1, 2, ...; args[1] is weight."""
    if _one_round(how, args[1]):
        return total

    def body(state: tuple[Array, Any]) -> tuple[Array, Any]:
        index, total = state
        return index + 1, jax.tree.map(jnp.add, total, one(index, *args))

    start = unify((jnp.int32(1), number, total))
    return lax.while_loop(lambda state: state[0] < start[1], body, (start[0], start[2]))[1]
