"""The oracle: every expert sees every token, and a mask keeps what was routed to it.

It does num_experts / k times the needed work, on purpose: nothing in it can be wrong in the
ways a grouped kernel can. Plain JAX, so every transformation works on it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_kernels.activations import ACTIVATIONS
from moe_kernels.arguments import Experts
from moe_kernels.plan import make_plan as make_plan
from moe_kernels.varying import match_axes


@partial(jax.jit, static_argnames="activation")
def moe_ffn(
    x_td: Float[Array, "t d"],
    expert_tk: Int[Array, "t k"],
    weight_tk: Float[Array, "t k"],
    experts: Experts,
    *,
    activation: str,
) -> Float[Array, "t d"]:
    """y_t = sum_k weight_tk * expert_{expert_tk}(x_t), one expert after the other.

    Sums are in float32 (float64 for float64 inputs); y has the dtype of x.
    """
    wide = jnp.promote_types(x_td.dtype, jnp.float32)

    def add_one(y_td: Array, indexed: tuple[Array, Experts]) -> tuple[Array, None]:
        e, own = indexed
        hit_tk = expert_tk == e
        # Tokens of other experts are zeroed before the sums, so a NaN in one of them stays its own.
        own_x_td = jnp.where(jnp.any(hit_tk, axis=1, keepdims=True), x_td, 0)
        scale_t = jnp.sum(jnp.where(hit_tk, weight_tk, 0), axis=1, dtype=wide)
        return y_td + scale_t[:, None] * expert_ffn(own_x_td, own, activation), None

    y_td, _ = match_axes((jnp.zeros(x_td.shape, wide), x_td))
    num_experts = experts.w_in.shape[0]
    y_td, _ = lax.scan(add_one, y_td, (jnp.arange(num_experts), experts))
    return y_td.astype(x_td.dtype)


def expert_ffn(x_td: Float[Array, "t d"], own: Experts, activation: str) -> Float[Array, "t d"]:
    """One expert: W_out (act(x W_gate + b_gate) * (x W_in + b_in)) + b_out, or
    W_out act(x W_in + b_in) + b_out without w_gate. `own` holds its parameters, without axis e.
    """
    act = ACTIVATIONS[activation]
    h_tf = _linear(x_td, own.w_in, own.b_in)
    a_tf = act(h_tf) if own.w_gate is None else act(_linear(x_td, own.w_gate, own.b_gate)) * h_tf
    return _linear(a_tf.astype(x_td.dtype), own.w_out, own.b_out)


def _linear(x: Array, w: Array, b: Array | None) -> Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.dot(x, w, preferred_element_type=wide)
    return y if b is None else y + b.astype(wide)[None]


def grouped_matmul(
    x: Array,
    w: Array,
    offset: Array,
    *,
    index: Array | None = None,
    bias: Array | None = None,
    x2: Array | None = None,
    w2: Array | None = None,
    transposed: bool = False,
) -> Array:
    """`protocols.GroupedMatmul`: every row with every expert's matrix, then a mask."""
    owner_se = owners(offset, x.shape[0] if index is None else index.size)

    def one(x: Array, w: Array) -> Array:
        w = w.swapaxes(1, 2) if transposed else w
        # Masked before and after, so that derivatives keep a NaN to its row and expert too.
        x_sek = jnp.where(owner_se[:, :, None], _rows(x, index)[:, None, :], 0)
        y_sen = jnp.einsum("sek,ekn->sen", x_sek, w, preferred_element_type=_wide(x))
        return jnp.sum(jnp.where(owner_se[:, :, None], y_sen, 0), axis=1)

    y = one(x, w)
    if x2 is not None and w2 is not None:
        y += one(x2, w2)
    if bias is not None:
        y += owner_se.astype(y.dtype) @ bias.astype(y.dtype)
    return y.astype(x.dtype)


def weight_grad(
    x: Array,
    dy: Array,
    offset: Array,
    *,
    x_index: Array | None = None,
    dy_index: Array | None = None,
) -> Array:
    """`protocols.WeightGrad`: every expert sees every row, a mask keeps its own."""
    left, right = _rows(x, x_index), _rows(dy, dy_index)
    owner_se = owners(offset, left.shape[0])[:, :, None]
    parts = (jnp.where(owner_se, rows[:, None, :], 0) for rows in (left, right))
    return jnp.einsum("sek,sen->ekn", *parts, preferred_element_type=_wide(x)).astype(x.dtype)


def segment_pool(
    x: Array, offset: Array, *, index: Array | None = None, weight_s: Array | None = None
) -> Array:
    """`protocols.SegmentPool`: every expert sees every row, a mask keeps its own."""
    rows = _rows(x, index).astype(_wide(x))
    owner_se = owners(offset, rows.shape[0])
    if weight_s is not None:
        kept_s = jnp.any(owner_se, axis=1)
        rows = jnp.where(kept_s[:, None], rows, 0)
        rows *= jnp.where(kept_s, weight_s, 0).astype(rows.dtype)[:, None]
    return jnp.sum(jnp.where(owner_se[:, :, None], rows[:, None, :], 0), axis=0).astype(x.dtype)


def combine(y_sd: Array, row_tk: Array, kept: Array, weight_tk: Array | None) -> Array:
    """`protocols.Combine`: all k rows at once."""
    kept_tk = row_tk < kept
    y_tkd = jnp.where(kept_tk[:, :, None], y_sd[row_tk], 0).astype(_wide(y_sd))
    if weight_tk is not None:
        y_tkd *= jnp.where(kept_tk, weight_tk, 0).astype(y_tkd.dtype)[:, :, None]
    return jnp.sum(y_tkd, axis=1).astype(y_sd.dtype)


def topk_route(logits_te: Array, k: int, *, scores: str) -> tuple[Array, Array, Array]:
    """`protocols.TopkRoute`: a whole stable sort, and counts from one-hot choices."""
    logits_te = logits_te.astype(jnp.float32)
    score_te = jax.nn.softmax(logits_te) if scores == "softmax" else jax.nn.sigmoid(logits_te)
    order_te = lax.stop_gradient(jnp.where(jnp.isnan(logits_te), jnp.inf, -logits_te))
    expert_tk = jnp.argsort(order_te, axis=1, stable=True)[:, :k].astype(jnp.int32)
    hit_tke = expert_tk[:, :, None] == jnp.arange(logits_te.shape[1])[None, None]
    count_e = jnp.sum(hit_tke, axis=(0, 1), dtype=jnp.int32)
    return expert_tk, jnp.take_along_axis(score_te, expert_tk, axis=1), count_e


def owners(offset: Array, num_rows: int) -> Array:
    """[s e]: whether expert e owns row s."""
    row = jnp.arange(num_rows)[:, None]
    return (row >= offset[None, :-1]) & (row < offset[None, 1:])


def _rows(values: Array, index: Array | None) -> Array:
    return values if index is None else values[index]


def _wide(array: Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)
