"""The backend "xla": grouped experts as a loop of plain XLA products, with its own backward pass.

Kept for the backward pass: the arguments, the pre-activations and the plan's integers. The experts'
outputs are not: with dA' = dy W_out^T, which dx needs anyway, the gradient of a combine weight is
<dA', a> + <dy, b_out> (the identity of SonicMoE, Guo et al. 2025). Sums over a token's choices read
rows through the inverse permutation; nothing is scattered.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Float, Int

from moe_kernels.activations import ACTIVATIONS
from moe_kernels.arguments import Experts
from moe_kernels.blocks import block_sizes, run_blocks
from moe_kernels.manual_axes import unify
from moe_kernels.plan import Plan, make_plan


class Saved(NamedTuple):
    """What the forward pass keeps for the backward pass, besides its arguments."""

    plan: Plan
    h_in_sf: Array | None  # x W_in + b_in, rows in the plan's order, padded by one block
    h_gate_sf: Array | None


@partial(jax.jit, static_argnames="activation")
def moe_ffn(
    x_td: Float[Array, "t d"],
    expert_tk: Int[Array, "t k"],
    weight_tk: Float[Array, "t k"],
    experts: Experts,
    *,
    activation: str,
) -> Float[Array, "t d"]:
    """The same function as `reference.moe_ffn`, doing only the routed work.

    Only first-order reverse-mode derivatives exist. Under vmap, experts that are not mapped see all
    tokens in one call; mapped experts, and derivatives, take one loop step per mapped element.
    """
    if x_td.shape[0] == 0:
        return x_td
    return _moe_ffn(activation, x_td, expert_tk, weight_tk, experts)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _moe_ffn(
    activation: str, x_td: Array, expert_tk: Array, weight_tk: Array, experts: Experts
) -> Array:
    def plain(*args: Any) -> Array:
        return _forward(activation, False, *args)[0]

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


def _fwd(activation: str, *args: Any) -> tuple[Array, Any]:
    def keep(*args: Any) -> tuple[Array, Saved]:
        return _forward(activation, True, *args)

    y_td, saved = sequential_vmap(keep)(*args)
    x_td, _, weight_tk, experts = args
    return y_td, (x_td, weight_tk, experts, saved)


def _bwd(activation: str, residuals: Any, dy_td: Array) -> tuple[Any, ...]:
    def pull(*args: Any) -> tuple[Array, Array, Experts]:
        return _backward(activation, *args)

    dx_td, dweight_tk, dexperts = sequential_vmap(pull)(*residuals, dy_td)
    return dx_td, None, dweight_tk, dexperts


_moe_ffn.defvjp(_fwd, _bwd)


def _forward(
    activation: str, keep: bool, x_td: Array, expert_tk: Array, weight_tk: Array, experts: Experts
) -> tuple[Array, Saved]:
    """y, and what `_backward` needs (no pre-activations unless `keep`)."""
    num_experts, _, f = experts.w_in.shape
    plan = make_plan(expert_tk, num_experts)
    sizes = block_sizes(expert_tk.size, num_experts)
    token_s = jnp.pad(plan.token, (0, sizes[-1]))

    def work(own: Experts, row: Array, rows: Array, size: int) -> tuple[Any, tuple[()]]:
        x = _rows(x_td, _slice(token_s, row, size))
        h_in = _linear(x, own.w_in, own.b_in)
        h_gate = None if own.w_gate is None else _linear(x, own.w_gate, own.b_gate)
        a = _hidden(activation, h_in, h_gate).astype(x.dtype)
        out = _linear(a, own.w_out, own.b_out), *((h_in, h_gate) if keep else (None, None))
        return jax.tree.map(lambda v: v.astype(x.dtype), out), ()

    h_row = jax.ShapeDtypeStruct((f,), x_td.dtype) if keep else None
    h_gate_row = None if experts.w_gate is None else h_row
    per_row = jax.ShapeDtypeStruct(x_td.shape[1:], x_td.dtype), h_row, h_gate_row
    (y_sd, h_in_sf, h_gate_sf), _ = run_blocks(work, plan, experts, sizes, per_row, ())
    return _combine(y_sd, plan, weight_tk), Saved(plan, h_in_sf, h_gate_sf)


def _backward(
    activation: str, x_td: Array, weight_tk: Array, experts: Experts, saved: Saved, dy_td: Array
) -> tuple[Array, Array, Experts]:
    """The gradients of x, weight and the parameters, each in its own dtype."""
    plan = saved.plan
    sizes = block_sizes(weight_tk.size, experts.w_in.shape[0])
    token_s = jnp.pad(plan.token, (0, sizes[-1]))
    slot_s = jnp.pad(plan.slot, (0, sizes[-1]))
    wide = _wide(x_td.dtype)

    def work(own: Experts, row: Array, rows: Array, size: int) -> tuple[Any, Experts]:
        real = (jnp.arange(size) < rows)[:, None]

        # Rows of others are zeroed, not only weighed with 0: they may hold NaN.
        def own_rows(values: Array) -> Array:
            return jnp.where(real, values, 0)

        token = _slice(token_s, row, size)
        x, dy = own_rows(_rows(x_td, token)), own_rows(_rows(dy_td, token))
        weight = own_rows(_rows(weight_tk.reshape(-1, 1), _slice(slot_s, row, size)).astype(wide))
        h_in, h_gate = jax.tree.map(
            lambda h: own_rows(_slice(h, row, size)).astype(wide), (saved.h_in_sf, saved.h_gate_sf)
        )
        a, hidden_vjp = jax.vjp(partial(_hidden, activation), h_in, h_gate)
        da = _product(dy, own.w_out, 1, 1)
        dweight = jnp.sum(da * a, axis=1)
        if own.b_out is not None:
            dweight += _product(dy, own.b_out[:, None], 1, 0)[:, 0]
        dh_in, dh_gate = hidden_vjp(weight * da)
        dx = _product(dh_in.astype(x.dtype), own.w_in, 1, 1)
        if own.w_gate is not None:
            dx += _product(dh_gate.astype(x.dtype), own.w_gate, 1, 1)
        sums = Experts(
            w_in=_product(x, dh_in.astype(x.dtype), 0, 0),
            w_out=_product((weight * a).astype(x.dtype), dy, 0, 0),
            w_gate=None if own.w_gate is None else _product(x, dh_gate.astype(x.dtype), 0, 0),
            b_in=None if own.b_in is None else jnp.sum(dh_in, axis=0),
            b_gate=None if own.b_gate is None else jnp.sum(dh_gate, axis=0),
            b_out=None if own.b_out is None else jnp.sum(weight * dy, axis=0),
        )
        return (dx.astype(x.dtype), dweight), sums

    per_row = jax.ShapeDtypeStruct(x_td.shape[1:], x_td.dtype), jax.ShapeDtypeStruct((), wide)
    per_expert = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), experts)
    (dx_sd, dweight_s), dexperts = run_blocks(work, plan, experts, sizes, per_row, per_expert)
    # Rows of dropped slots are 0: no block, or only the masked part of one, wrote them.
    dweight_s = _rows(dweight_s, plan.row).astype(weight_tk.dtype)
    dx_td = _combine(dx_sd, plan, jnp.ones_like(weight_tk))
    return dx_td, dweight_s.reshape(weight_tk.shape), dexperts


def _combine(values_sd: Array, plan: Plan, weight_tk: Array) -> Array:
    """sum_k weight_tk * values[row of (t, k)] over the choices that were kept."""
    row_tk = plan.row.reshape(weight_tk.shape)
    kept_tk = row_tk < plan.offset[-1]
    wide = _wide(values_sd.dtype)
    weight_tk = jnp.where(kept_tk, weight_tk, 0).astype(wide)

    def add(j: Array, y_td: Array) -> Array:
        values = jnp.where(kept_tk[:, j, None], _rows(values_sd, row_tk[:, j]), 0)
        return y_td + weight_tk[:, j, None] * values.astype(wide)

    t, k = weight_tk.shape
    y_td, *_ = unify((jnp.zeros((t, values_sd.shape[1]), wide), values_sd))
    return lax.fori_loop(0, k, add, y_td, unroll=min(k, 16)).astype(values_sd.dtype)


def _hidden(activation: str, h_in: Array, h_gate: Array | None) -> Array:
    act = ACTIVATIONS[activation]
    return act(h_in) if h_gate is None else act(h_gate) * h_in


def _linear(x: Array, w: Array, b: Array | None) -> Array:
    y = _product(x, w, 1, 0)
    return y if b is None else y + b.astype(y.dtype)[None]


def _product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """The matrix product over one axis of each, summed in float32 (or float64)."""
    return lax.dot_general(
        a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=_wide(a.dtype)
    )


def _rows(values: Array, index: Array) -> Array:
    return values.at[index].get(mode="promise_in_bounds")


def _slice(values: Array, start: Array, size: int) -> Array:
    return lax.dynamic_slice_in_dim(values, start, size)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
