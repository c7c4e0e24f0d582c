"""The layer in plain XLA: grouped experts as one loop of products over blocks of rows.

The experts' outputs are not kept: with dA' = dy W_out^T, which dx needs anyway, the gradient of a
combine weight is <dA', a> + <dy, b_out> (the identity of SonicMoE, Guo et al. 2025). Sums over a
token's choices read rows through the inverse permutation; nothing is scattered.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from moe_kernels.activations import ACTIVATIONS
from moe_kernels.arguments import Experts
from moe_kernels.plan import PADDING, Plan
from moe_kernels.xla.blocks import block_sizes, run_blocks
from moe_kernels.xla.ops import combine
from moe_kernels.xla.products import linear, product, wide
from moe_kernels.xla.slices import block, rows_of


def forward(
    x_td: Array, weight_tk: Array, experts: Experts, plan: Plan, *, activation: str, keep: bool
) -> tuple[Array, Array | None, Array | None]:
    """y_td and, if `keep`, the pre-activations h_in_sf and h_gate_sf (else None)."""
    num_experts, _, f = experts.w_in.shape
    sizes = block_sizes(weight_tk.size, num_experts)
    token_s = jnp.pad(plan.token, (0, PADDING))

    def work(own: Experts, row: Array, rows: Array, size: int) -> tuple[Any, tuple[()]]:
        x = rows_of(x_td, block(token_s, row, size))
        h_in, h_gate = _pre_activations(own, x)
        a = _hidden(activation, h_in, h_gate).astype(x.dtype)
        out = linear(a, own.w_out, own.b_out), *((h_in, h_gate) if keep else (None, None))
        return jax.tree.map(lambda v: v.astype(x.dtype), out), ()

    h_row = jax.ShapeDtypeStruct((f,), x_td.dtype) if keep else None
    h_gate_row = None if experts.w_gate is None else h_row
    per_row = jax.ShapeDtypeStruct(x_td.shape[1:], x_td.dtype), h_row, h_gate_row
    (y_sd, h_in_sf, h_gate_sf), _ = run_blocks(
        work, plan.offset, plan.slot.size, experts, sizes, per_row, ()
    )
    row_tk = plan.row.reshape(weight_tk.shape)
    return combine(y_sd, row_tk, plan.offset[-1], weight_tk), h_in_sf, h_gate_sf


def backward(
    x_td: Array,
    weight_tk: Array,
    experts: Experts,
    plan: Plan,
    h_in_sf: Array | None,
    h_gate_sf: Array | None,
    dy_td: Array,
    *,
    activation: str,
) -> tuple[Array, Array, Experts]:
    """The gradients of x, weight and the parameters, each in its own dtype.

    Without h_in_sf the pre-activations are computed again, block by block.
    """
    sizes = block_sizes(weight_tk.size, experts.w_in.shape[0])
    token_s = jnp.pad(plan.token, (0, PADDING))
    slot_s = jnp.pad(plan.slot, (0, PADDING))
    sum_dtype = wide(x_td.dtype)

    def work(own: Experts, row: Array, rows: Array, size: int) -> tuple[Any, Experts]:
        real = (jnp.arange(size) < rows)[:, None]

        # Rows of others are zeroed, not only weighed with 0: they may hold NaN.
        def own_rows(values: Array) -> Array:
            return jnp.where(real, values, 0)

        token = block(token_s, row, size)
        x, dy = own_rows(rows_of(x_td, token)), own_rows(rows_of(dy_td, token))
        weight = rows_of(weight_tk.reshape(-1, 1), block(slot_s, row, size)).astype(sum_dtype)
        if h_in_sf is None:
            h = _pre_activations(own, x)
        else:
            h = jax.tree.map(lambda h: own_rows(block(h, row, size)), (h_in_sf, h_gate_sf))
        h_in, h_gate = jax.tree.map(lambda h: h.astype(sum_dtype), h)
        return _block_gradients(activation, own, x, dy, own_rows(weight), h_in, h_gate)

    per_row = jax.ShapeDtypeStruct(x_td.shape[1:], x_td.dtype), jax.ShapeDtypeStruct((), sum_dtype)
    per_expert = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), experts)
    (dx_sd, dweight_s), dexperts = run_blocks(
        work, plan.offset, plan.slot.size, experts, sizes, per_row, per_expert
    )
    # Rows of dropped slots are 0: no block, or only the masked part of one, wrote them.
    dweight_tk = rows_of(dweight_s, plan.row).astype(weight_tk.dtype).reshape(weight_tk.shape)
    row_tk = plan.row.reshape(weight_tk.shape)
    return combine(dx_sd, row_tk, plan.offset[-1], None), dweight_tk, dexperts


def _block_gradients(
    activation: str,
    own: Experts,
    x: Array,
    dy: Array,
    weight: Array,
    h_in: Array,
    h_gate: Array | None,
) -> tuple[Any, Experts]:
    """Rows of (dx, dweight), and the sums that are the gradients of one expert's parameters."""
    a, hidden_vjp = jax.vjp(partial(_hidden, activation), h_in, h_gate)
    da = product(dy, own.w_out, 1, 1)
    dweight = jnp.sum(da * a, axis=1)
    if own.b_out is not None:
        dweight += product(dy, own.b_out[:, None], 1, 0)[:, 0]
    dh_in, dh_gate = hidden_vjp(weight * da)
    dx = product(dh_in.astype(x.dtype), own.w_in, 1, 1)
    if own.w_gate is not None:
        dx += product(dh_gate.astype(x.dtype), own.w_gate, 1, 1)
    sums = Experts(
        w_in=product(x, dh_in.astype(x.dtype), 0, 0),
        w_out=product((weight * a).astype(x.dtype), dy, 0, 0),
        w_gate=None if own.w_gate is None else product(x, dh_gate.astype(x.dtype), 0, 0),
        b_in=None if own.b_in is None else jnp.sum(dh_in, axis=0),
        b_gate=None if own.b_gate is None else jnp.sum(dh_gate, axis=0),
        b_out=None if own.b_out is None else jnp.sum(weight * dy, axis=0),
    )
    return (dx.astype(x.dtype), dweight), sums


def _pre_activations(own: Experts, x: Array) -> tuple[Array, Array | None]:
    h_in = linear(x, own.w_in, own.b_in)
    return h_in, None if own.w_gate is None else linear(x, own.w_gate, own.b_gate)


def _hidden(activation: str, h_in: Array, h_gate: Array | None) -> Array:
    act = ACTIVATIONS[activation]
    return act(h_in) if h_gate is None else act(h_gate) * h_in
