"""`moe_ffn` with the experts spread over the devices of a mesh axis (expert parallelism)."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_kernels import vjp
from moe_kernels.arguments import Experts, check
from moe_kernels.backends import resolve_backend
from moe_kernels.expert_parallel.rounds import ExchangePlan, exchanged
from moe_kernels.precision import resolve
from moe_kernels.varying import match_axes

EXCHANGES = ("all_to_all", "ragged_all_to_all", "all_gather")
SLACK = 1.25
"""Room in the buffers of a round, over what an even load needs."""


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
        resolve_backend(backend)
    options = vjp.Options(activation, backend, recompute, resolve(precision))
    x, expert, weight, experts = match_axes((x, expert, weight, experts))
    if x.shape[0] == 0:
        return x
    if exchange == "all_gather":
        return _gathered(axis_name, options, x, expert, weight, experts)
    slots = expert.size
    even = -(-int(SLACK * slots) // peers)
    rows = min(rows_per_peer or -(-even // 8) * 8, slots)
    exchange_plan = ExchangePlan(axis_name, peers, rows, exchange == "ragged_all_to_all", options)
    return exchanged(exchange_plan, x, expert, weight, experts)


def _axis_size(axis_name: str) -> int:
    try:
        return lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"axis_name={axis_name!r} is no axis of a mesh here: call this inside jax.shard_map "
            "over a mesh that has it"
        ) from None


def _gathered(
    axis_name: str, options: vjp.Options, x: Array, expert: Array, weight: Array, experts: Experts
) -> Array:
    """All tokens of the axis through this device's experts, summed over devices."""
    with jax.named_scope("dispatch"):
        x, expert, weight = (lax.all_gather(a, axis_name, tiled=True) for a in (x, expert, weight))
    share = experts.w_in.shape[0]
    local = expert - share * lax.axis_index(axis_name).astype(expert.dtype)
    local = jnp.where((local >= 0) & (local < share), local, share)
    y = vjp.moe_ffn(x, local, weight, experts, options=options)
    with jax.named_scope("combine"):
        return lax.psum_scatter(y, axis_name, scatter_dimension=0, tiled=True)
